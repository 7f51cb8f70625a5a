"""Mining on Manifolds: triplets where neighbours in space and on the manifold differ (Iscen et al., CVPR 2018)."""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional

from src.hints import Count, NonNegative, Positive, Share
from src.methods.base import Extract, Method, TrainingSet
from src.vectors.neighbors import nearest_neighbors

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


def diffuse(graph: Tensor, sources: Tensor, alpha: float, iterations: int = 20) -> Tensor:
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
    """Anchors `(A,)`, and for each its candidates of either kind with a mask of those that are hard.

    Hard positives, of `(A, k)`, are among the k nearest on the manifold but not in space, hard negatives, of
    `(A, negative_k)`, among those in space but not on the manifold. `weight` `(A, k)` is a positive's similarity on the
    manifold.
    """

    anchors: Tensor
    positives: Tensor
    is_positive: Tensor
    weight: Tensor
    negatives: Tensor
    is_negative: Tensor


def mine(
    features: Tensor, anchors: str, k: int, negative_k: int, pool: int | None, graph_k: int, power: float, alpha: float
) -> Mined:
    """Find anchors with their hard positives and negatives; an anchor that lacks either is left out.

    Args:
        features: `(N, F)`, unit norm.
        anchors: `all` images, or the `modes` of the graph.
        k, negative_k: how many nearest, in space and on the manifold, are compared for the positives and for the
            negatives; N is larger.
        pool: how many of an anchor's hard negatives are kept, the nearest in space; None: all.
        graph_k, power, alpha: of `neighbor_graph` and `diffuse`.
    """
    graph = neighbor_graph(features, graph_k, power)
    sources = torch.arange(len(features), device=features.device) if anchors == "all" else find_anchors(graph)
    parts = []
    for own in sources.split(CHUNK):
        near = nearest_neighbors(features[own], features, max(k, negative_k), own=own)[1]
        manifold = diffuse(graph, own, alpha).scatter(1, own.unsqueeze(1), 0)
        value, reached = manifold.topk(max(k, negative_k), dim=1)
        walked = value > 0  # what no walk reaches is no neighbour
        is_positive = walked[:, :k] & ~_among(reached[:, :k], near[:, :k])
        on_manifold = reached[:, :negative_k].where(walked[:, :negative_k], -1)
        is_negative = ~_among(near[:, :negative_k], on_manifold)
        if pool:
            is_negative &= is_negative.cumsum(1) <= pool
        useful = is_positive.any(1) & is_negative.any(1)
        columns = own, reached[:, :k], is_positive, value[:, :k], near[:, :negative_k], is_negative
        parts.append([column[useful] for column in columns])
    return Mined(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _among(rows: Tensor, others: Tensor) -> Tensor:
    """Whether each of `rows` `(A, k)` is among the same row of `others` `(A, l)`: `(A, k)`."""
    return (rows.unsqueeze(2) == others.unsqueeze(1)).any(2)


def hardest_negatives(mined: Mined, embeddings: Tensor, count: int) -> Tensor:
    """Of each anchor's hard negatives the `count` nearest to it in `embeddings` `(N, D)`: a mask `(A, negative_k)`."""
    parts = zip(mined.anchors.split(CHUNK), mined.negatives.split(CHUNK), strict=True)
    near = torch.cat([torch.einsum("ad,aid->ai", embeddings[own], embeddings[others]) for own, others in parts])
    near = near.masked_fill(~mined.is_negative, -torch.inf)
    chosen = near.topk(min(count, near.shape[1]), dim=1).indices
    return torch.zeros_like(mined.is_negative).scatter(1, chosen, True) & mined.is_negative


def draw_triplets(mined: Mined, allowed: Tensor, count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Triplets of anchors in turn, each with a hard positive, one an anchor, and a negative of those `allowed`.

    Returns:
        The triplets `(count, 3)`, and the weight of each anchor's positive `(A,)`.
    """
    anchors = len(mined.anchors)
    turns = [torch.randperm(anchors, generator=generator) for _ in range(-(-count // anchors))]
    row = torch.cat(turns)[:count]

    def column_of(mask: Tensor) -> Tensor:
        return torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1).argmax(1, keepdim=True)

    drawn = column_of(mined.is_positive)
    positives, weight = (each.gather(1, drawn).squeeze(1) for each in (mined.positives, mined.weight))
    negatives = mined.negatives[row].gather(1, column_of(allowed[row])).squeeze(1)
    return torch.stack([mined.anchors[row], positives[row], negatives], 1), weight


def mom_loss(embeddings: Tensor, margin: float, loss: str, weight: Tensor | None = None) -> Tensor:
    """The mean over triplets of max(0, margin + |a - p|^2 - |a - n|^2), or of |a - p|^2 + max(0, margin - |a - n|)^2.

    Args:
        embeddings: `(3B, D)`, unit norm: anchors, positives, negatives.
        margin: positive.
        loss: `triplet`, the first, or `contrastive`, the second.
        weight: `(B,)`, of each triplet; None, 1.
    """
    anchor, positive, negative = embeddings.chunk(3)
    near, far = (anchor - positive).square().sum(1), (anchor - negative).square().sum(1)
    if loss == "triplet":
        losses = functional.relu(margin + near - far)
    else:
        losses = near + functional.relu(margin - far.clamp(min=1e-12).sqrt()).square()
    return (losses if weight is None else losses * weight).mean()


class MiningOnManifolds(Method):
    """Every place of an epoch is a triplet, mined in the pooled features.

    Args:
        loss, margin: of `mom_loss`.
        anchors, k, negative_k, pool, graph_k, power, alpha: of `mine`.
        weighted: each triplet weighs its positive's similarity on the manifold.
        hardest: negatives are drawn from so many of an anchor's, the nearest in the embedding before the epoch; None
            draws from all of them.
        remine: mine anew before each epoch; otherwise once, in the features that training starts from.
    """

    views = 3
    weight: Tensor

    def __init__(
        self,
        loss: Literal["triplet", "contrastive"],
        margin: Positive,
        anchors: Literal["all", "modes"],
        k: Count,
        negative_k: Count,
        pool: Count | None,
        graph_k: Count,
        power: NonNegative,
        alpha: Share,
        weighted: bool,
        hardest: Count | None,
        remine: bool,
    ) -> None:
        super().__init__()
        self.loss, self.margin, self.anchors, self.k, self.negative_k = loss, margin, anchors, k, negative_k
        self.pool, self.graph_k, self.power, self.alpha = pool, graph_k, power, alpha
        self.weighted, self.hardest, self.remine = weighted, hardest, remine
        self.mined: Mined | None = None

    def setup(self, data: TrainingSet) -> None:
        most = max(self.k, self.negative_k, self.graph_k)
        if data.images <= most + 1:
            raise ValueError(
                f"method=mom compares the {most} nearest of an image, but there are {data.images} training images: "
                "lower method.k, method.negative_k and method.graph_k"
            )
        self.register_buffer("weight", torch.ones(data.images))
        if not data.pretrained:
            warnings.warn(
                "method=mom mines what the network's features say already, and this network was not trained before: "
                "expect little (the paper's Table 6)",
                stacklevel=2,
            )

    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor:
        mined = None if self.remine else self.mined
        if mined is None or self.hardest:
            features, embeddings = extract()
        self.mined = mined or self._mine(features)
        allowed = self.mined.is_negative
        if self.hardest:
            allowed = hardest_negatives(self.mined, embeddings.cpu(), self.hardest)
        triplets, weight = draw_triplets(self.mined, allowed, len(self.weight), generator)
        self.weight[self.mined.anchors] = weight.to(self.weight)
        return triplets

    def _mine(self, features: Tensor) -> Mined:
        mined = mine(features, self.anchors, self.k, self.negative_k, self.pool, self.graph_k, self.power, self.alpha)
        if not len(mined.anchors):
            raise ValueError("method=mom found no hard positives and negatives: change method.k or method.graph_k")
        return Mined(*(column.cpu() for column in vars(mined).values()))

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        weight = self.weight[index] if self.weighted else None
        return {"loss": mom_loss(embeddings, self.margin, self.loss, weight)}

    def get_extra_state(self) -> dict[str, Tensor]:
        """What was mined, for checkpoints: a run that goes on must not mine again."""
        return {} if self.mined is None or self.remine else vars(self.mined)

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        self.mined = Mined(**state) if state else None
