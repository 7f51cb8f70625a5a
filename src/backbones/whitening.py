"""What may be scored and used in the head's place: the pooled features, whitened (Jégou and Chum, ECCV 2012)."""

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
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.dim = min(dim, num_features)
        self.register_buffer("weight", torch.eye(num_features)[: self.dim])
        self.register_buffer("bias", torch.zeros(self.dim))

    def fit(self, features: Tensor) -> None:
        """Take the directions that `features` `(N, F)` vary most in, each over the root of its variance.

        Those of `shrunk_principal`: where features hardly vary, or too few images tell, nothing is blown up.
        """
        features = features.cpu()
        variances, directions = shrunk_principal(features, self.dim)
        weight = directions / variances.clamp(min=1e-12).sqrt().unsqueeze(1)
        self.weight.copy_(weight)
        self.bias.copy_(-weight @ features.mean(0, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to unit-norm embeddings `(B, D)`."""
        with torch.autocast(features.device.type, enabled=False):
            return functional.normalize(functional.linear(features.float(), self.weight, self.bias), dim=1)
