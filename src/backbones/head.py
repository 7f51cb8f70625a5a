"""From pooled features to the embedding that the loss and the metrics see."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.vectors.principal import principal

EPSILON = 1e-3  # of the mean variance, added to each before a direction is divided by its root


class Head(nn.Module):
    """A linear layer, behind hidden ones if any, and l2 normalisation; in float32 whatever the network computes in.

    Args:
        num_features: of the pooled features, F.
        dim: of the embedding, D.
        hidden: widths of the hidden layers, each with batch norm and ReLU; none in the paper.
        orthogonal: begin with orthogonal weights and no bias, instead of torch's uniform ones.
        whitened: `whiten` is to be called before training.

    Raises:
        ValueError: these do not go together.
    """

    def __init__(
        self,
        num_features: int,
        dim: int,
        hidden: Sequence[int] = (),
        orthogonal: bool = False,
        whitened: bool = False,
    ) -> None:
        super().__init__()
        if whitened and (hidden or orthogonal):
            raise ValueError("head.whitened=true is of one linear layer: head.hidden=[] head.orthogonal=false")
        if whitened and dim > num_features:
            raise ValueError(
                f"head.whitened=true: embedding_dim={dim} is more than the network's {num_features} features"
            )
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([num_features, *hidden]):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.linear = nn.Linear([num_features, *hidden][-1], dim)
        if orthogonal:
            for layer in (part for part in self.modules() if isinstance(part, nn.Linear)):
                nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def whiten(self, features: Tensor) -> None:
        """Make the linear layer the PCA whitening of `features` `(N, F)` (Jégou and Chum, ECCV 2012).

        Its outputs are where they vary most, in D directions without correlation, of mean 0 and variance 1, nearly: a
        direction in which they hardly vary is not blown up.
        """
        features = features.cpu().double()
        variances, directions = principal(features.T.cov())
        whitening = directions / (variances + EPSILON * variances.mean()).sqrt().unsqueeze(1)
        whitening = whitening[: self.linear.out_features]
        self.linear.weight.copy_(whitening.float())
        self.linear.bias.copy_(-(whitening @ features.mean(0)).float())

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to unit-norm embeddings `(B, D)`."""
        return functional.normalize(self.project(features), dim=1)

    def project(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to embeddings `(B, D)` of any norm."""
        with torch.autocast(features.device.type, enabled=False):
            projected: Tensor = self.linear(self.hidden(features.float()))
            return projected
