"""The paper's method: a softmax embedding on 'real' instance features (Ye et al., CVPR 2019, section 3.2)."""

import math
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from src.hints import Fraction, Positive
from src.methods.base import Extract, Method
from src.running.distributed import gather_views
from src.vectors.neighbors import nearest_neighbors, queries_at_once

BLOCK = 2**19  # similarities that a CPU computes at once


def _check(rows: tuple[int, ...]) -> None:
    if len(rows) != 2 or rows[0] % 2:
        raise ValueError(f"embeddings must be (2N, D), two views of N images; got shape {rows}")
    if rows[0] < 4:
        raise ValueError(f"one image has no negatives: embeddings of shape {rows} need at least 4 rows, two images")


def _terms_of_rows(similarity: Tensor, partner: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Equation (7) for some anchors, and its derivative, without a number that over- or underflows.

    1 - P loses its digits where P is close to 1, which only a row's largest entry can be. There 1 - P is taken as what
    it is, the share of the rest, and the rest is measured by its own largest.

    Args:
        similarity: `(A, 2N)` s_ij, -inf where j does not count; overwritten.
        partner: `(A, 1)`, the column of each anchor's other view.
        weight: of the sum over the negatives; 1 in the paper.

    Returns:
        -log P of the partner and -weight x sum log(1 - P) of the negatives, both `(A, 1)`, and the derivative `(A, 2N)`
        of their sum.
    """
    to_partner = similarity.gather(1, partner)
    largest, first = similarity.max(1, keepdim=True)
    similarity.scatter_(1, first, -math.inf)
    second = similarity.amax(1, keepdim=True)
    rest = similarity.sub_(second).exp_()
    total = rest.sum(1, keepdim=True)
    log_rest = second + total.log()
    log_sum = torch.logaddexp(largest, log_rest)

    p_largest, scale = (largest - log_sum).exp(), (second - log_sum).exp()
    is_negative = weight * (first != partner).to(rest.dtype)
    p = (rest * scale).scatter_(1, partner, 0)  # of the negatives but the largest
    negative = is_negative * (log_sum - log_rest) - weight * torch.log1p(-p).sum(1, keepdim=True)

    # dJ/dP P is -1 for the partner and weight P / (1 - P) for a negative; less P times their sum, as of any softmax.
    derivative = p.div_(1 - p).mul_(weight)
    sum_of_others = derivative.sum(1, keepdim=True) - 1
    derivative.addcmul_(rest, scale * sum_of_others + is_negative * p_largest / total, value=-1)
    derivative.scatter_(1, first, p_largest * (is_negative - sum_of_others))
    derivative.scatter_(1, partner, derivative.gather(1, partner) - 1)
    return log_sum - to_partner, negative, derivative


class _Loss(torch.autograd.Function):
    """The loss and, apart, its two terms. The gradient is taken along with the value, some anchors at a time.

    So the 2N x 2N similarities are never held, but for `BLOCK` of them.
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, temperature: float, negatives: str, stop_gradient: bool, fraction: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = len(embeddings)
        gradient, terms = torch.zeros_like(embeddings), embeddings.new_zeros(2)
        at_once = queries_at_once(embeddings, BLOCK)
        number = torch.arange(rows, device=embeddings.device).unsqueeze(1)
        kept, weight, over = _weigh(rows, negatives, fraction)
        for part in (slice(start, start + at_once) for start in range(0, rows, at_once)):
            some, partner = embeddings[part], (number[part] + rows // 2) % rows
            # Autocast leaves products alone that say where they go.
            similarity = torch.mm(some, embeddings.T, out=embeddings.new_empty(len(some), rows)).div_(temperature)
            similarity.scatter_(1, number[part], -math.inf)
            if negatives != "all":
                _keep(similarity, partner, negatives, kept)
            positive, negative, derivative = _terms_of_rows(similarity, partner, weight)
            terms += torch.stack([positive.sum(), negative.sum()])
            gradient[part].addmm_(derivative, embeddings)
            if not stop_gradient:
                gradient.addmm_(derivative.T, some)
        ctx.save_for_backward(gradient.div_(over * temperature))
        positive, negative = terms / over
        ctx.mark_non_differentiable(positive, negative)
        return positive + negative, positive, negative

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[0] * gradient, None, None, None, None


def _weigh(rows: int, negatives: str, fraction: float) -> tuple[int, float, int]:
    """How many negatives a row keeps, what their sum weighs, and by what the sum over the rows is divided."""
    if negatives != "hard_published":
        return max(1, round(fraction * (rows - 2))), 1, rows
    kept = max(1, min(int(fraction * rows), rows - 2))
    return kept, fraction, kept + 1


def _keep(similarity: Tensor, partner: Tensor, negatives: str, count: int) -> None:
    """Leave -inf in place of all `(A, 2N)` but the partner and the `count` most or least similar negatives."""
    to_partner = similarity.gather(1, partner)
    similarity.scatter_(1, partner, -math.inf)
    if negatives == "easy":
        columns = similarity.masked_fill(similarity.isinf(), math.inf).topk(count, dim=1, largest=False).indices
    else:
        columns = similarity.topk(count, dim=1).indices
    kept = similarity.gather(1, columns)
    similarity.fill_(-math.inf).scatter_(1, columns, kept).scatter_(1, partner, to_partner)


def _loss_and_terms(
    embeddings: Tensor, temperature: float, negatives: str, stop_gradient: bool, fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check(tuple(embeddings.shape))
    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings = embeddings.float()
    return _Loss.apply(embeddings, temperature, negatives, stop_gradient, fraction)


def invariant_spreading_loss(
    embeddings: Tensor,
    temperature: float = 0.1,
    negatives: str = "all",
    stop_gradient: bool = True,
    fraction: float = 0.5,
) -> Tensor:
    """Negative log-likelihood of instances recognised as themselves and as no other: equations (3) to (7), but that no
    denominator has the anchor's own product, which equation (9) has and the authors' program leaves out.

    With s_ij = z_i.z_j / temperature, P_ij = exp(s_ij) / sum_{k != i} exp(s_ik) and p(i) the other view of row i,

        J = 1/2N sum_i [ -log P_{i,p(i)} - sum_{j not in {i, p(i)}} log(1 - P_ij) ],

    so each of the 2N rows is an anchor with one positive and 2N - 2 negatives.

    Args:
        embeddings: `(2N, D)`, unit norm; rows i and i + N are two views of one image. Computed in float32 or better.
        temperature: the concentration tau, positive; the paper uses 0.1.
        negatives: `all`, or per row only the most (`hard`) or least (`easy`) similar ones, in the sum and in the
            denominator alike (the paper's Table 8); `hard_published`, as the first published program has it
            (BatchAverage.py:71-101): 2N x `fraction` are kept, their sum weighs `fraction`, and the whole is divided by
            their number + 1, not by 2N.
        stop_gradient: let the gradient flow through z_i only, as the authors' published code does; False takes it
            through both operands, as the equations read.
        fraction: the share of the negatives that `hard` and `easy` keep; the paper uses a half.

    Returns:
        The scalar J.

    Raises:
        ValueError: the rows are not pairs of at least two images, or a number is not finite.
    """
    if not embeddings.isfinite().all():
        raise ValueError(f"embeddings of shape {tuple(embeddings.shape)} hold numbers that are not finite")
    return _loss_and_terms(embeddings, temperature, negatives, stop_gradient, fraction)[0]


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
        self,
        temperature: Positive,
        negatives: Literal["all", "hard", "easy", "hard_published"],
        stop_gradient: bool,
        fraction: Fraction,
        positives: Literal["self", "nearest"],
    ) -> None:
        super().__init__()
        self.positives = positives
        self.temperature, self.negatives = temperature, negatives
        self.stop_gradient, self.fraction = stop_gradient, fraction

    def on_epoch_start(self, extract: Extract, generator: Generator) -> Tensor | None:
        return nearest_or_itself(extract()[0], generator) if self.positives == "nearest" else None

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Unit-norm `(2N, D)` of this rank and the images' `index` `(N,)`: the `loss` to minimise and its terms."""
        loss, positive, negative = _loss_and_terms(
            gather_views(embeddings), self.temperature, self.negatives, self.stop_gradient, self.fraction
        )
        return {"loss": loss, "positive": positive, "negative": negative}
