"""Mining on Manifolds: triplets where neighbours in space and on the manifold differ (Iscen et al., CVPR 2018)."""

import warnings
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from src.methods.base import Extract, Method, TrainingSet
from src.vectors.neighbors import nearest_neighbors

LOSSES = ("triplet", "contrastive")
CHUNK = 256  # anchors whose diffusion is solved at once


def neighbor_graph(features: Tensor, k: int, power: float) -> Tensor:
    """The graph of mutual neighbours: sparse `(N, N)`, symmetric, weights max(0, cosine)^power, no loops.

    Args:
        features: `(N, F)`, unit norm.
        k: neighbours an image; an edge is kept where each is among the other's.
        power: of the cosine.
    """
    count = len(features)
    itself = torch.arange(count, device=features.device)
    similarity, neighbor = nearest_neighbors(features, features, k, own=itself)
    mutual = (neighbor[neighbor] == itself.view(-1, 1, 1)).any(2)
    edges = torch.stack([itself.repeat_interleave(k).view(-1, k)[mutual], neighbor[mutual]])
    weights = similarity[mutual].clamp(min=0).pow(power)
    return torch.sparse_coo_tensor(edges, weights, (count, count), check_invariants=False).coalesce()


def find_anchors(graph: Tensor) -> Tensor:
    """The modes of the graph's random walk: images whose stationary probability none of their neighbours exceeds.

    On a symmetric graph that probability is the degree, up to scale. Images without a neighbour are no anchors.

    Returns:
        Images `(A,)`, rising.
    """
    degree = graph.sum(1).to_dense()
    rows, columns = graph.indices()
    most = torch.zeros_like(degree).scatter_reduce(0, rows, degree[columns], "amax")
    return ((degree >= most) & (degree > 0)).nonzero().squeeze(1)


def diffuse(graph: Tensor, sources: Tensor, alpha: float, iterations: int = 30) -> Tensor:
    """Similarity on the manifold, of each of `sources` `(A,)` to every image: `(A, N)`.

    The random walk with restart f = (I - alpha S)^-1 e_i, S the graph normalised by the degrees, by conjugate
    gradients (Iscen et al., CVPR 2017).
    """
    degree = graph.sum(1).to_dense()
    scale = torch.where(degree > 0, degree.clamp(min=1e-12).rsqrt(), 0)
    rows, columns = graph.indices()
    walk = torch.sparse_coo_tensor(
        graph.indices(), graph.values() * scale[rows] * scale[columns], graph.shape, check_invariants=False
    ).to_sparse_csr()
    start = torch.zeros(len(degree), len(sources), dtype=graph.dtype, device=graph.device)
    start[sources, torch.arange(len(sources), device=graph.device)] = 1

    solution, residual = torch.zeros_like(start), start
    direction, energy = residual, residual.square().sum(0)
    for _ in range(iterations):
        image = direction - alpha * (walk @ direction)
        step = energy / (direction * image).sum(0).clamp(min=1e-30)
        solution, residual = solution + step * direction, residual - step * image
        before, energy = energy, residual.square().sum(0)
        direction = residual + energy / before.clamp(min=1e-30) * direction
    return solution.T


@dataclass(frozen=True)
class Mined:
    """Anchors `(A,)`, and for each the `(A, k)` candidates of either kind with a mask of those that are hard.

    Hard positives are among the k nearest on the manifold but not in space, hard negatives the reverse.
    """

    anchors: Tensor
    positives: Tensor
    is_positive: Tensor
    negatives: Tensor
    is_negative: Tensor


def mine(features: Tensor, k: int, graph_k: int, power: float, alpha: float) -> Mined:
    """Find anchors with their hard positives and negatives; an anchor that lacks either is left out.

    Args:
        features: `(N, F)`, unit norm.
        k: how many nearest, in space and on the manifold, are compared; N > k.
        graph_k, power, alpha: of `neighbor_graph` and `diffuse`.
    """
    graph = neighbor_graph(features, graph_k, power)
    parts = []
    for own in find_anchors(graph).split(CHUNK):
        near = nearest_neighbors(features[own], features, k, own=own)[1]
        manifold = diffuse(graph, own, alpha).scatter(1, own.unsqueeze(1), 0)
        value, reached = manifold.topk(k, dim=1)
        walked = value > 0  # what no walk reaches is no neighbour
        shared = (reached.unsqueeze(2) == near.unsqueeze(1)) & walked.unsqueeze(2)
        is_positive, is_negative = walked & ~shared.any(2), ~shared.any(1)
        useful = is_positive.any(1) & is_negative.any(1)
        parts.append([column[useful] for column in (own, reached, is_positive, near, is_negative)])
    return Mined(*(torch.cat(column) for column in zip(*parts, strict=True)))


def draw_triplets(mined: Mined, count: int, generator: Generator) -> Tensor:
    """`count` triplets `(count, 3)`: anchors in turn, each with one of its hard positives and one of its negatives."""
    anchors = len(mined.anchors)
    turns = [torch.randperm(anchors, generator=generator) for _ in range(-(-count // anchors))]
    row = torch.cat(turns)[:count]

    def one_of(candidates: Tensor, allowed: Tensor) -> Tensor:
        ticket = torch.rand(count, allowed.shape[1], generator=generator).masked_fill(~allowed[row], -1)
        return candidates[row].gather(1, ticket.argmax(1, keepdim=True)).squeeze(1)

    drawn = one_of(mined.positives, mined.is_positive), one_of(mined.negatives, mined.is_negative)
    return torch.stack([mined.anchors[row], *drawn], 1)


def mom_loss(embeddings: Tensor, margin: float, loss: str) -> Tensor:
    """The mean over triplets of max(0, margin + |a - p|^2 - |a - n|^2), or of |a - p|^2 + max(0, margin - |a - n|)^2.

    Args:
        embeddings: `(3B, D)`, unit norm: anchors, positives, negatives.
        margin: positive.
        loss: `triplet`, the first, or `contrastive`, the second.
    """
    anchor, positive, negative = embeddings.chunk(3)
    near, far = (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)
    if loss == "triplet":
        return functional.relu(margin + near - far).mean()
    return (near + functional.relu(margin - far.clamp(min=1e-12).sqrt()).square()).mean()


class MiningOnManifolds(Method):
    """Mines anew before each epoch, in the pooled features; every place of the epoch is a triplet.

    Args:
        loss, margin: of `mom_loss`.
        k, graph_k, power, alpha: of `mine`.
    """

    views = 3

    def __init__(self, loss: str, margin: float, k: int, graph_k: int, power: float, alpha: float) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"method.loss={loss!r} is unknown; choose one of {', '.join(LOSSES)}")
        if margin <= 0 or k < 1 or graph_k < 1 or not 0 < alpha < 1:
            raise ValueError(
                f"method.margin={margin} must be positive, method.k={k} and method.graph_k={graph_k} at least 1, "
                f"method.alpha={alpha} between 0 and 1"
            )
        self.loss, self.margin, self.k = loss, margin, k
        self.graph_k, self.power, self.alpha = graph_k, power, alpha

    def setup(self, data: TrainingSet) -> None:
        most = max(self.k, self.graph_k)
        if data.images <= most + 1:
            raise ValueError(
                f"method=mom compares the {most} nearest of an image, but there are {data.images} training images: "
                "lower method.k and method.graph_k"
            )
        if not data.pretrained:
            warnings.warn(
                "method=mom mines what the network's features say already, and this network was not trained before: "
                "expect little (the paper's Table 6)",
                stacklevel=2,
            )

    @torch.no_grad()
    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor:
        features, _ = extract()
        mined = mine(features, self.k, self.graph_k, self.power, self.alpha)
        if not len(mined.anchors):
            raise ValueError("method=mom found no hard positives and negatives: change method.k or method.graph_k")
        on_host = Mined(*(column.cpu() for column in vars(mined).values()))
        return draw_triplets(on_host, len(features), generator)

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": mom_loss(embeddings, self.margin, self.loss)}
