"""DeepCluster: k-means of the features gives the labels of the next epoch (Caron et al., ECCV 2018)."""

from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from src.hints import Count, NonNegative, Positive
from src.methods.base import Extract, Method, TrainingSet
from src.vectors.kmeans import kmeans
from src.vectors.principal import principal


def whiten(features: Tensor, dim: int) -> Tensor:
    """PCA to at most `dim` dimensions, each scaled to unit variance, and l2 normalisation: `(N, F)` to `(N, dim)`.

    Directions without variance stay at 0.
    """
    centred = (features - features.mean(0)).double()
    variances, directions = (found[:dim] for found in principal(centred.T @ centred / len(features)))
    scale = torch.where(variances > 1e-8 * variances[0], variances.clamp(min=1e-30).rsqrt(), 0)
    return functional.normalize(centred @ (directions.T * scale), dim=1).to(features.dtype)


def uniform_over_clusters(clusters: Tensor, generator: Generator) -> Tensor:
    """As many images as there are, `(N,)`, drawn from each cluster alike: all of them before any again.

    Args:
        clusters: `(N,)`, the cluster of each image; clusters without an image are left out.
        generator: draws the images.
    """
    present, sizes = clusters.unique(return_counts=True)
    share = -(-len(clusters) // len(present))
    drawn = []
    for cluster, size in zip(present.tolist(), sizes.tolist(), strict=True):
        members = (clusters == cluster).nonzero().squeeze(1)
        turns = [members[torch.randperm(size, generator=generator)] for _ in range(-(-share // size))]
        drawn.append(torch.cat(turns)[:share])
    mixed = torch.cat(drawn)
    return mixed[torch.randperm(len(mixed), generator=generator)][: len(clusters)]


def cosine_logits(embeddings: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cosines `(B, K)` of unit-norm embeddings `(B, D)` with weights `(K, D)`, over the temperature."""
    return embeddings @ functional.normalize(weights, dim=1).T / temperature


class DeepCluster(Method):
    """Before each epoch clusters the pooled features and forgets the classifier; one view a step.

    Args:
        clusters: K.
        pca: dimensions to cluster in, whitened.
        iterations: of k-means, at most.
        features: what is clustered: `raw`, the pooled features of any norm and before the last ReLU (where the network
            has one to leave out), or `pooled`, of unit norm.
        classifier: `linear`, weights and biases over the head's output of any norm, or `cosine`, of unit norm both.
        temperature: of the cosine classifier.
        lr, weight_decay: of the classifier, without momentum; None, as the network's. A rate of its own stays.
    """

    views = 1
    restarts = True
    weights: nn.Parameter
    labels: Tensor

    def __init__(
        self,
        clusters: Count,
        pca: Count,
        iterations: Count,
        features: Literal["raw", "pooled"],
        classifier: Literal["linear", "cosine"],
        temperature: Positive,
        lr: Positive | None,
        weight_decay: NonNegative | None,
    ) -> None:
        super().__init__()
        self.clusters, self.pca, self.iterations = clusters, pca, iterations
        self.raw, self.unit_norm, self.temperature = features == "raw", classifier == "cosine", temperature
        own = {"lr": lr, "weight_decay": weight_decay}
        self.optimizer_options = {name: value for name, value in own.items() if value is not None}
        if self.optimizer_options:
            self.optimizer_options["momentum"] = 0

    def setup(self, data: TrainingSet) -> None:
        if data.images < self.clusters:
            raise ValueError(f"method.clusters={self.clusters}, but there are {data.images} training images: lower it")
        self.weights = nn.Parameter(torch.zeros(self.clusters, data.embedding_dim))  # until the first epoch
        self.biases = None if self.unit_norm else nn.Parameter(torch.zeros(self.clusters))
        self.register_buffer("labels", torch.zeros(data.images, dtype=torch.long))

    @torch.no_grad()
    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor:
        features, _ = extract("raw" if self.raw else "unit")
        seed = int(torch.randint(2**31, (1,), generator=generator))
        labels, _ = kmeans(whiten(features, self.pca), self.clusters, seed, iterations=self.iterations, tolerance=0)
        self.labels.copy_(labels)
        weights = torch.randn(self.weights.shape, generator=generator).to(self.weights)
        if self.biases is None:  # of unit norm, since a cosine classifier turns the slower the longer its weights are
            self.weights.copy_(functional.normalize(weights, dim=1))
        else:
            self.weights.copy_(0.01 * weights)
            self.biases.zero_()
        return uniform_over_clusters(labels.cpu(), generator).unsqueeze(1)

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        if self.biases is None:
            logits = cosine_logits(embeddings, self.weights, self.temperature)
        else:
            logits = functional.linear(embeddings, self.weights, self.biases)
        return {"loss": functional.cross_entropy(logits, self.labels[index])}
