"""A training small enough to be written down twice: twelve images, their views, batches and draws, and a network."""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

IMAGES, PIXELS, FEATURES, DIM = 12, 6, 8, 4
BATCH, EPOCHS = 4, 3  # nine steps
MOMENTUM = 0.9
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What a step leaves: `values` are the parameters after it and the buffers that a checkpoint keeps."""

    index: list[int]
    terms: Weights
    gradients: Weights
    values: Weights


@dataclass
class Run:
    """All that can be seen of a training: the method's `start`, what the epochs asked for, and the steps."""

    start: Weights
    companions: list[list[list[int]] | None] = field(default_factory=list)
    orders: list[list[list[int]] | None] = field(default_factory=list)
    looks: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def clean_images() -> Tensor:
    """Every image of the training set, `(N, P)`."""
    return torch.randn(IMAGES, PIXELS, generator=Generator().manual_seed(0), dtype=torch.float64)


def draw_views(images: Tensor, step: int) -> Tensor:
    """The images with the step's own noise."""
    noise = torch.randn(images.shape, generator=Generator().manual_seed(1000 + step), dtype=torch.float64)
    return images + 0.5 * noise


def order(epoch: int) -> list[list[int]]:
    """The places of each batch."""
    drawn = torch.randperm(IMAGES, generator=Generator().manual_seed(2000 + epoch))
    return [batch.tolist() for batch in drawn.split(BATCH)]


def generator_of(epoch: int) -> Generator:
    """What `on_epoch_start` and `order` draw from."""
    return Generator().manual_seed(3000 + epoch)


def seed_step(step: int) -> None:
    """What `forward` draws from."""
    torch.manual_seed(4000 + step)


class Tiny(nn.Module):
    """Images to pooled features to embeddings; too small for batch norm, so that it can be written down again."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.backbone = nn.Sequential(nn.Linear(PIXELS, FEATURES), nn.Tanh())
        self.head = nn.Linear(FEATURES, DIM)
        self.double()

    def forward(self, images: Tensor, unit_norm: bool = True) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        embeddings = self.head(features)
        return features, functional.normalize(embeddings, dim=1) if unit_norm else embeddings
