"""Self-taught metric learning: a teacher says how alike the images of a batch are (Kim et al., CVPR 2022)."""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Generator, Tensor, nn
from torch.nn import functional

from src.hints import MOST, Dimension, Momentum, Positive
from src.methods.base import Extract, TaughtMethod, TrainingSet
from src.running.distributed import gather_rows, gather_views
from src.vectors.distances import distances
from src.vectors.neighbors import neighbor_batches

Neighbors = Annotated[int, Interval(ge=2, le=MOST)]


def pairwise_similarity(embeddings: Tensor, sigma: float) -> Tensor:
    """exp(-|t_i - t_j|^2 / sigma), `(R, R)`, of unit-norm embeddings `(R, D)`."""
    return ((2 * embeddings @ embeddings.T - 2).clamp(max=0) / sigma).exp()


def contextual_similarity(pairwise: Tensor, image: Tensor, k: int) -> Tensor:
    """How much of their neighbourhoods rows share: `(R, R)`, symmetric, 0 to 1.

    With V_i the rows j such that i and j are among each other's k most similar,

        w_ij = |V_i and V_j| / |V_i| where j is in V_i, else 0,

    then the mean of w over the k / 2 rows most similar to i, and the mean of that and its transpose.

    Args:
        pairwise: similarities `(R, R)`, 0 to 1.
        image: `(R,)`, of which image a row is a view: all views of one image are as similar as can be.
        k: even, or R if that is less; a row is its own most similar.
    """
    # Of the views of one image, which are equals, the more similar come first, so that no order of rows decides.
    k = min(k, len(pairwise))
    nearest = (pairwise + (image == image.unsqueeze(1))).topk(k).indices
    among = torch.zeros_like(pairwise).scatter(1, nearest, 1)
    mutual = among * among.T
    shared = mutual * (mutual @ mutual) / mutual.sum(1, keepdim=True).clamp(min=1)
    smoothed = shared[nearest[:, : k // 2]].mean(1)
    return (smoothed + smoothed.T) / 2


def relative_distances(embeddings: Tensor) -> Tensor:
    """Distances `(R, R)` between embeddings `(R, D)` over the mean of their row, through which gradient flows too."""
    distance = distances(embeddings)
    return distance / distance.mean(1, keepdim=True).clamp(min=1e-12)


def relaxed_contrastive_loss(distance: Tensor, similarity: Tensor, delta: float) -> Tensor:
    """The mean over pairs i != j of w_ij d_ij^2 + (1 - w_ij) max(0, delta - d_ij)^2.

    Args:
        distance: d `(R, R)`, relative.
        similarity: w `(R, R)`, 0 to 1.
        delta: how far apart unlike rows have to be, positive.
    """
    rows = len(distance)
    losses = similarity * distance.square() + (1 - similarity) * functional.relu(delta - distance).square()
    itself = torch.eye(rows, dtype=torch.bool, device=distance.device)
    return losses.masked_fill(itself, 0).sum() / (rows * (rows - 1))


def distillation_loss(distance: Tensor, target: Tensor) -> Tensor:
    """The mean over rows of the divergence KL(softmax(-target) || softmax(-distance)); no gradient through the target.

    Args:
        distance, target: `(R, R)`, relative.
    """
    log_target = (-target.detach()).log_softmax(1)
    return functional.kl_div((-distance).log_softmax(1), log_target, reduction="batchmean", log_target=True)


class STML(TaughtMethod):
    """The loss over the images of all ranks, in batches of neighbours.

    Beside the network's own head f stands a wider one, g. The teacher's g says how alike two rows are; from that both
    of the network's learn, and f from g besides.

    Args:
        sigma: of `pairwise_similarity`.
        delta: of `relaxed_contrastive_loss`.
        neighbors: images in a row that are neighbours in a batch; with their views, k of `contextual_similarity`.
        momentum: of the teacher.
        g_dim: dimensions of g.
    """

    unit_norm = False
    teacher_evaluates = True
    g: nn.Linear
    teacher_weight: Tensor
    teacher_bias: Tensor

    def __init__(
        self, sigma: Positive, delta: Positive, neighbors: Neighbors, momentum: Momentum, g_dim: Dimension
    ) -> None:
        super().__init__()
        self.sigma, self.delta, self.neighbors, self.g_dim = sigma, delta, neighbors, g_dim
        self.teacher_decay = momentum

    def setup(self, data: TrainingSet) -> None:
        self.g = nn.Linear(data.num_features, self.g_dim)
        nn.init.orthogonal_(self.g.weight)
        nn.init.zeros_(self.g.bias)
        self.register_buffer("teacher_weight", self.g.weight.detach().clone())
        self.register_buffer("teacher_bias", self.g.bias.detach().clone())

    @torch.no_grad()
    def order(self, extract: Extract, generator: Generator, batch: int) -> Tensor:
        features, _ = extract("pooled")
        return neighbor_batches(self.g(features), batch, self.neighbors, generator)

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, index: Tensor, features: Tensor, teacher: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        wide = self.g(features.to(self.g.weight.dtype))
        f, g = (relative_distances(gather_views(head)) for head in (embeddings, wide))
        with torch.no_grad():
            taught = functional.linear(teacher[0].to(wide.dtype), self.teacher_weight, self.teacher_bias)
            pairwise = pairwise_similarity(gather_views(functional.normalize(taught, dim=1)), self.sigma)
            image = gather_rows(index).repeat(self.views)
            similarity = (pairwise + contextual_similarity(pairwise, image, self.neighbors * self.views)) / 2
        losses = [relaxed_contrastive_loss(distance, similarity, self.delta) for distance in (f, g)]
        contrastive = (losses[0] + losses[1]) / 2
        distillation = distillation_loss(f, g)
        loss = contrastive + distillation
        return {"loss": loss, "contrastive": contrastive.detach(), "distillation": distillation.detach()}

    @torch.no_grad()
    def after_step(self, embeddings: Tensor, index: Tensor) -> None:
        assert self.teacher_decay is not None
        for average, now in ((self.teacher_weight, self.g.weight), (self.teacher_bias, self.g.bias)):
            average.lerp_(now, 1 - self.teacher_decay)
