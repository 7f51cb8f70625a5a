"""A network that follows another: an exponential moving average of its weights."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from src.backbones.head import Head


class Average(nn.Module):
    """A backbone and its head as they were, on average: after each step `decay` of themselves, the rest of the live.

    Batch norm's running statistics are averaged likewise.

    Args:
        backbone, head: what it begins as a copy of.
        decay: from 0, below 1.
        evaluates: always in evaluation mode.
    """

    def __init__(self, backbone: nn.Module, head: Head, decay: float, evaluates: bool = False) -> None:
        super().__init__()
        self.backbone, self.head = deepcopy(backbone), deepcopy(head)
        self.requires_grad_(False)
        self.decay, self.evaluates = decay, evaluates
        self.train(self.training)

    def train(self, mode: bool = True) -> "Average":
        return super().train(mode and not self.evaluates)

    @torch.no_grad()
    def forward(self, images: Tensor, unit_norm: bool = True, at_once: int | None = None) -> tuple[Tensor, Tensor]:
        """Images `(B, 3, H, W)`, all or `at_once`, to features `(B, F)` and embeddings `(B, D)`, without gradient."""
        features = torch.cat([self.backbone(part) for part in images.split(at_once or len(images))])
        return features, self.head(features) if unit_norm else self.head.project(features)

    @torch.no_grad()
    def follow(self, backbone: nn.Module, head: Head) -> None:
        """Take in what an optimizer's step has made of the live network."""
        floats: tuple[list[Tensor], list[Tensor]] = [], []
        for mine, live in ((self.backbone, backbone), (self.head, head)):
            pairs = zip([*mine.parameters(), *mine.buffers()], [*live.parameters(), *live.buffers()], strict=True)
            for average, now in pairs:
                if average.is_floating_point():
                    floats[0].append(average)
                    floats[1].append(now.detach())
                else:
                    average.copy_(now)  # counters
        torch._foreach_lerp_(floats[0], floats[1], 1 - self.decay)
