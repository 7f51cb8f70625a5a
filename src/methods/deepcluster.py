"""DeepCluster: k-means of the features gives the labels of the next epoch (Caron et al., ECCV 2018)."""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from src.methods.base import Extract, Method, TrainingSet
from src.methods.exemplar import softmax_loss
from src.vectors.kmeans import kmeans


def whiten(features: Tensor, dim: int) -> Tensor:
    """PCA to at most `dim` dimensions, each scaled to unit variance, and l2 normalisation: `(N, F)` to `(N, dim)`.

    Directions without variance stay at 0.
    """
    centred = (features - features.mean(0)).double()
    variances, directions = torch.linalg.eigh(centred.T @ centred / len(features))
    variances, directions = variances.flip(0)[:dim], directions.flip(1)[:, :dim]
    scale = torch.where(variances > 1e-8 * variances[0], variances.clamp(min=1e-30).rsqrt(), 0)
    return functional.normalize(centred @ (directions * scale), dim=1).to(features.dtype)


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


def cluster_loss(embeddings: Tensor, weights: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Cross entropy of a cosine classifier: embeddings `(B, D)`, unit norm, weights `(K, D)`, labels `(B,)`."""
    return softmax_loss(embeddings, functional.normalize(weights, dim=1), labels, temperature)


class DeepCluster(Method):
    """Before each epoch clusters the pooled features and forgets the classifier; one view a step.

    Args:
        clusters: K.
        pca: dimensions to cluster in, whitened.
        temperature: of the classifier's cosine.
    """

    views = 1
    restarts = True
    weights: nn.Parameter
    labels: Tensor

    def __init__(self, clusters: int, pca: int, temperature: float) -> None:
        super().__init__()
        if clusters < 1 or pca < 1 or temperature <= 0:
            raise ValueError(
                f"method.clusters={clusters} and method.pca={pca} must be at least 1, "
                f"method.temperature={temperature} positive"
            )
        self.clusters, self.pca, self.temperature = clusters, pca, temperature

    def setup(self, data: TrainingSet) -> None:
        if data.images < self.clusters:
            raise ValueError(f"method.clusters={self.clusters}, but there are {data.images} training images: lower it")
        self.weights = nn.Parameter(torch.zeros(self.clusters, data.embedding_dim))  # until the first epoch
        self.register_buffer("labels", torch.zeros(data.images, dtype=torch.long))

    @torch.no_grad()
    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor:
        features, _ = extract()
        seed = int(torch.randint(2**31, (1,), generator=generator))
        labels, _ = kmeans(whiten(features, self.pca), self.clusters, seed)
        self.labels.copy_(labels)
        # Of unit norm, since a cosine classifier turns the slower the longer its weights are.
        self.weights.copy_(functional.normalize(torch.randn(self.weights.shape, generator=generator), dim=1))
        return uniform_over_clusters(labels.cpu(), generator).unsqueeze(1)

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": cluster_loss(embeddings, self.weights, self.labels[index], self.temperature)}
