"""Exemplar CNN: every image a class with a weight of its own (Dosovitskiy et al., PAMI 2016; Ye et al., equation 1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.hints import Positive
from src.methods.base import Method, TrainingSet


def softmax_loss(embeddings: Tensor, weights: Tensor, index: Tensor, temperature: float) -> Tensor:
    """The mean of -log P(i|x), P(i|x) = exp(w_i.f / temperature) / sum_k exp(w_k.f / temperature).

    Args:
        embeddings: f, `(B, D)`, unit norm.
        weights: w, `(N, D)`, one for each training image, of any norm.
        index: i, `(B,)`.
        temperature: positive; 1 is the equation as printed.
    """
    return functional.cross_entropy(embeddings @ weights.T / temperature, index)


class Exemplar(Method):
    """One view a step; the classifier weights are learned with the network."""

    views = 1
    weights: nn.Parameter

    def __init__(self, temperature: Positive) -> None:
        super().__init__()
        self.temperature = temperature

    def setup(self, data: TrainingSet) -> None:
        bound = data.embedding_dim**-0.5
        self.weights = nn.Parameter(torch.empty(data.images, data.embedding_dim).uniform_(-bound, bound))

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": softmax_loss(embeddings, self.weights, index, self.temperature)}
