"""Instance discrimination by noise-contrastive estimation (Wu et al., CVPR 2018, section 3)."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from src.hints import Momentum, NonNegative, Positive, Samples
from src.methods.base import Method, TrainingSet
from src.running.distributed import draw_rows, gather_rows
from src.vectors.memory_bank import MemoryBank


def estimate_log_z(scores: Tensor, images: int) -> Tensor:
    """Log of the constant Z = N mean(exp(scores)), from the `scores` `(B, m)` of noise samples (equation 8)."""
    return math.log(images) + scores.logsumexp((0, 1)) - math.log(scores.numel())


def nce_loss(positive: Tensor, noise: Tensor, log_z: Tensor, images: int) -> Tensor:
    """Telling the image itself from m samples of uniform noise (equations 5 to 7).

    With P(i|f) = exp(score) / Z and h = P / (P + m / N), the mean over the batch of

        -log h(positive) - sum over the m noise samples of log(1 - h(noise)).

    Args:
        positive: score v_i.f / temperature of each embedding with its own memory, `(B,)`.
        noise: scores with the memories of m random images, `(B, m)`.
        log_z: log Z.
        images: N.
    """
    log_odds = math.log(noise.shape[1] / images)  # of the noise: m / N
    hit = functional.softplus(log_odds - (positive - log_z))
    misses = functional.softplus(noise - log_z - log_odds).sum(1)
    return (hit + misses).mean()


def proximal_term(embeddings: Tensor, memory: Tensor, seen: Tensor) -> Tensor:
    """The mean over the batch of |f - v|^2, 0 where the memory v `(B, D)` is not `seen` `(B,)` yet (equation 9)."""
    return ((embeddings - memory).square().sum(1) * seen).mean()


class NCE(Method):
    """One view a step. Z is estimated from the first batch and kept.

    Args:
        temperature: positive.
        noise: m, how many noise samples an image is told from.
        momentum: of the memory.
        proximal: weight of the proximal term, which keeps an embedding near its memory.
    """

    views = 1
    bank: MemoryBank
    log_z: Tensor

    def __init__(self, temperature: Positive, noise: Samples, momentum: Momentum, proximal: NonNegative) -> None:
        super().__init__()
        self.temperature, self.noise, self.momentum, self.proximal = temperature, noise, momentum, proximal
        self.register_buffer("log_z", torch.tensor(math.nan))

    def setup(self, data: TrainingSet) -> None:
        self.bank = MemoryBank(data.images, data.embedding_dim, self.momentum)

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        memory, images = self.bank.memory, len(self.bank.memory)
        # Scores with all images cost less than copying m memories for every row.
        scores = embeddings @ memory.T / self.temperature
        drawn = draw_rows(lambda rows: torch.randint(images, (rows, self.noise), device=index.device), len(index))
        positive, noise = scores.gather(1, index.unsqueeze(1)).squeeze(1), scores.gather(1, drawn)
        first = gather_rows(estimate_log_z(noise, images).view(1))
        self.log_z.copy_(torch.where(self.log_z.isnan(), first.logsumexp(0) - math.log(len(first)), self.log_z))
        contrast = nce_loss(positive, noise, self.log_z, images)
        proximal = proximal_term(embeddings, memory[index], self.bank.seen[index])
        loss = contrast + self.proximal * proximal
        return {"loss": loss, "contrast": contrast.detach(), "proximal": proximal.detach()}

    def after_step(self, embeddings: Tensor, index: Tensor) -> None:
        self.bank.update(index, embeddings)
