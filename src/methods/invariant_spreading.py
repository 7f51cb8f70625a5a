"""The paper's method: a softmax embedding on 'real' instance features (Ye et al., CVPR 2019, section 3.2)."""

import math

import torch
from torch import Generator, Tensor

from src.distributed import gather_views
from src.methods.base import Extract, Method
from src.neighbors import nearest_neighbors

NEGATIVES = ("all", "hard", "easy")
POSITIVES = ("self", "nearest")


def _check(rows: tuple[int, ...], temperature: float, negatives: str, fraction: float) -> None:
    if len(rows) != 2 or rows[0] % 2:
        raise ValueError(f"embeddings must be (2N, D), two views of N images; got shape {rows}")
    if rows[0] < 4:
        raise ValueError(f"one image has no negatives: embeddings of shape {rows} need at least 4 rows, two images")
    if not 0 < temperature < math.inf:
        raise ValueError(f"method.temperature={temperature} must be positive")
    if negatives not in NEGATIVES:
        raise ValueError(f"method.negatives={negatives!r} is unknown; choose one of {', '.join(NEGATIVES)}")
    if not 0 < fraction <= 1:
        raise ValueError(f"method.fraction={fraction} must lie in (0, 1]")


def invariant_spreading_terms(
    embeddings: Tensor,
    temperature: float = 0.1,
    negatives: str = "all",
    stop_gradient: bool = True,
    fraction: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """The two terms of `invariant_spreading_loss`, `(positive, negative)`, whose sum it is; same arguments.

    Leaves out the test for finite numbers, which would make the host wait for the device.
    """
    _check(tuple(embeddings.shape), temperature, negatives, fraction)
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
    rows = len(embeddings)
    itself = torch.eye(rows, dtype=torch.bool, device=embeddings.device)
    partner = itself.roll(rows // 2, dims=1)

    others = embeddings.detach() if stop_gradient else embeddings
    similarity = (embeddings @ others.T / temperature).masked_fill(itself, -math.inf)
    negative = ~(itself | partner)
    if negatives != "all":
        kept = max(1, round(fraction * (rows - 2)))
        ranking = similarity.detach() if negatives == "hard" else -similarity.detach()
        chosen = ranking.masked_fill(~negative, -math.inf).topk(kept, dim=1).indices
        negative = torch.zeros_like(negative).scatter_(1, chosen, True)
        similarity = similarity.masked_fill(~(negative | partner), -math.inf)
    log_sum = similarity.logsumexp(1, keepdim=True)
    log_p = similarity - log_sum

    # log(1 - P) loses its digits where P is close to 1, which only a row's largest entry can be. There 1 - P is
    # taken as what it is, the share of all the other entries.
    largest = similarity.detach().argmax(1, keepdim=True)
    is_largest = torch.zeros_like(itself).scatter_(1, largest, True)
    log_rest = similarity.masked_fill(is_largest, -math.inf).logsumexp(1, keepdim=True) - log_sum
    log_not_p = torch.log1p(-log_p.masked_fill(is_largest | ~negative, -math.inf).exp())
    log_not_p = torch.where(is_largest & negative, log_rest, log_not_p)

    return -log_p[partner].mean(), -log_not_p.sum() / rows


def invariant_spreading_loss(
    embeddings: Tensor,
    temperature: float = 0.1,
    negatives: str = "all",
    stop_gradient: bool = True,
    fraction: float = 0.5,
) -> Tensor:
    """Negative log-likelihood of instances recognised as themselves and as no other: equations (3) to (7).

    With s_ij = z_i.z_j / temperature, P_ij = exp(s_ij) / sum_{k != i} exp(s_ik) and p(i) the other view of row i,

        J = 1/2N sum_i [ -log P_{i,p(i)} - sum_{j not in {i, p(i)}} log(1 - P_ij) ],

    so each of the 2N rows is an anchor with one positive and 2N - 2 negatives.

    Args:
        embeddings: `(2N, D)`, unit norm; rows i and i + N are two views of one image. Computed in float32 or better.
        temperature: the concentration tau, positive; the paper uses 0.1.
        negatives: `all`, or per row only the most (`hard`) or least (`easy`) similar ones, in the sum and in the
            denominator alike (the paper's Table 8).
        stop_gradient: let the gradient flow through z_i only, as the authors' published code does; False takes it
            through both operands, as the equations read.
        fraction: the share of the negatives that `hard` and `easy` keep; the paper uses a half.

    Returns:
        The scalar J.

    Raises:
        ValueError: the rows are not pairs of at least two images, a number is not finite, or an option is invalid.
    """
    if not embeddings.isfinite().all():
        raise ValueError(f"embeddings of shape {tuple(embeddings.shape)} hold numbers that are not finite")
    positive, negative = invariant_spreading_terms(embeddings, temperature, negatives, stop_gradient, fraction)
    return positive + negative


def nearest_or_itself(features: Tensor, generator: Generator) -> Tensor:
    """Companions `(N, 2)`: every image, and by the toss of a coin itself or its nearest neighbour.

    Args:
        features: `(N, F)`, unit norm.
        generator: tosses the coins.
    """
    itself = torch.arange(len(features))
    nearest = nearest_neighbors(features, features, 1, own=itself.to(features.device))[1].squeeze(1).cpu()
    tossed = torch.rand(len(features), generator=generator) < 0.5
    return torch.stack([itself, torch.where(tossed, nearest, itself)], 1)


class InvariantSpreading(Method):
    """The loss over the images of all ranks: W ranks with N images each see 2WN - 2 negatives.

    Args:
        positives: `self`, two views of one image; or `nearest`, the second view by the toss of a coin of its nearest
            neighbour in the pooled features, searched anew each epoch (the paper on CUB200, as published).
        temperature, negatives, stop_gradient, fraction: of `invariant_spreading_loss`.
    """

    def __init__(
        self, temperature: float, negatives: str, stop_gradient: bool, fraction: float, positives: str
    ) -> None:
        super().__init__()
        _check((4, 1), temperature, negatives, fraction)
        if positives not in POSITIVES:
            raise ValueError(f"method.positives={positives!r} is unknown; choose one of {', '.join(POSITIVES)}")
        self.positives = positives
        self.temperature, self.negatives = temperature, negatives
        self.stop_gradient, self.fraction = stop_gradient, fraction

    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor | None:
        return nearest_or_itself(extract()[0], generator) if self.positives == "nearest" else None

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Unit-norm `(2N, D)` of this rank and the images' `index` `(N,)`: the `loss` to minimise and its terms."""
        positive, negative = invariant_spreading_terms(
            gather_views(embeddings), self.temperature, self.negatives, self.stop_gradient, self.fraction
        )
        return {"loss": positive + negative, "positive": positive.detach(), "negative": negative.detach()}
