"""From pooled features to the embedding that the loss and the metrics see."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Head(nn.Module):
    """A linear layer and l2 normalisation, in float32 whatever the network before it computes in."""

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to unit-norm embeddings `(B, D)`."""
        return functional.normalize(self.project(features), dim=1)

    def project(self, features: Tensor) -> Tensor:
        """Features `(B, F)` to embeddings `(B, D)` of any norm."""
        with torch.autocast(features.device.type, enabled=False):
            projected: Tensor = self.linear(features.float())
            return projected
