"""What may be scored and used in the head's place: the pooled features, whitened (Jégou and Chum, ECCV 2012)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.vectors.principal import shrunk_principal


class Whitening(nn.Module):
    """PCA whitening and l2 normalisation, in float32 whatever the network computes in: fitted, never learned.

    What tells alike things apart is little of what the features of a network vary in; here all directions count alike.

    Args:
        num_features: of the pooled features, F.
        dim: of what comes out, D; at most F.
        parts: numbers of features that add up to F, of which each is scaled to the same variance before, in all; by
            default they are taken as they are.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int, dim: int, parts: Sequence[int] = ()) -> None:
        super().__init__()
        self.dim, self.parts = min(dim, num_features), parts
        self.register_buffer("weight", torch.eye(num_features)[: self.dim])
        self.register_buffer("bias", torch.zeros(self.dim))

    def fit(self, features: Tensor) -> None:
        """Take the directions that `features` `(N, F)` vary most in, each over the root of its variance.

        Those of `shrunk_principal`: where features hardly vary, or too few images tell, nothing is blown up.
        """
        features = features.cpu()
        scale = self._scale(features) if self.parts else torch.ones(())
        variances, directions = shrunk_principal(features * scale, self.dim)
        weight = directions / variances.clamp(min=1e-12).sqrt().unsqueeze(1) * scale
        self.weight.copy_(weight)
        self.bias.copy_(-weight @ features.mean(0, dtype=torch.float64))

    def _scale(self, features: Tensor) -> Tensor:
        """What each feature of `(N, F)` is multiplied by, `(F,)`; a part that hardly varies is not blown up."""
        parts = features.float().var(0, correction=0).split([*self.parts])
        spread = torch.stack([part.sum() for part in parts])
        spread = spread.clamp(min=1e-6 * float(spread.max()) or 1.0).sqrt()
        return torch.cat([(1 / total).expand(len(part)) for total, part in zip(spread, parts, strict=True)])

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to unit-norm embeddings `(B, D)`."""
        with torch.autocast(features.device.type, enabled=False):
            return functional.normalize(functional.linear(features.float(), self.weight, self.bias), dim=1)
