"""From pooled features to the embedding that the loss and the metrics see."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """A linear layer, behind hidden ones if any, and l2 normalisation; in float32 whatever the network computes in.

    Args:
        num_features: of the pooled features, F.
        dim: of the embedding, D.
        hidden: widths of the hidden layers, each with batch norm and ReLU; none in the paper.
        orthogonal: begin with orthogonal weights and no bias, instead of torch's uniform ones.
    """

    def __init__(self, num_features: int, dim: int, hidden: Sequence[int] = (), orthogonal: bool = False) -> None:
        super().__init__()
        self.dim = dim
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([num_features, *hidden]):
            layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.linear = nn.Linear([num_features, *hidden][-1], dim)
        if orthogonal:
            for layer in (part for part in self.modules() if isinstance(part, nn.Linear)):
                nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to unit-norm embeddings `(B, D)`."""
        return functional.normalize(self.project(features), dim=1)

    def project(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to embeddings `(B, D)` of any norm."""
        with torch.autocast(features.device.type, enabled=False):
            projected: Tensor = self.linear(self.hidden(features.float()))
            return projected
