import math

import pytest
import torch
from torch import Tensor

from src.methods import invariant_spreading
from src.methods.invariant_spreading import InvariantSpreading, invariant_spreading_loss, nearest_or_itself


def naive(z: Tensor, tau: float, negatives: str, stop_gradient: bool, fraction: float = 0.5) -> Tensor:
    """Equations (3) to (7) read off as two loops, in float64; 1 - P is taken as the others' share where P > 1/2."""
    z = z.double()
    rows = len(z)
    total = z.new_zeros(())
    for i in range(rows):
        s = [(z[i] @ (z[j].detach() if stop_gradient else z[j])) / tau for j in range(rows)]
        partner = (i + rows // 2) % rows
        others = [j for j in range(rows) if j not in (i, partner)]
        weight, over = 1.0, rows
        if negatives == "hard_published":  # BatchAverage.py:71-101 of the first published program
            others = sorted(others, key=lambda j: s[j].item(), reverse=True)[: int(rows * fraction)]
            weight, over = fraction, int(rows * fraction) + 1
        elif negatives != "all":
            others = sorted(others, key=lambda j: s[j].item(), reverse=negatives == "hard")
            others = others[: max(1, round(fraction * len(others)))]
        peak = max(s[j].item() for j in [partner, *others])
        e = {j: (s[j] - peak).exp() for j in [partner, *others]}
        denominator = sum(e.values())
        total = total - (s[partner] - peak) + torch.as_tensor(denominator).log()
        for j in others:
            rest = sum(e[k] for k in e if k != j)
            total = total + weight * (torch.as_tensor(denominator).log() - torch.as_tensor(rest).log())
    return total / over


def unit(rows: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=1)


def value_and_gradient(loss: Tensor, z: Tensor) -> tuple[float, Tensor]:
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient.double()


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("negatives", ["all", "hard", "easy", "hard_published"])
@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_agrees_with_the_equations(
    dtype: torch.dtype, tolerance: float, tau: float, negatives: str, stop_gradient: bool
) -> None:
    z = unit(12, 8).to(dtype).requires_grad_()
    value, gradient = value_and_gradient(invariant_spreading_loss(z, tau, negatives, stop_gradient), z)
    expected, expected_gradient = value_and_gradient(naive(z, tau, negatives, stop_gradient), z)
    scale = max(1.0, 0.1 / tau)  # a gradient is as large as 1 / tau
    assert value == pytest.approx(expected, rel=tolerance, abs=tolerance)
    torch.testing.assert_close(gradient, expected_gradient, rtol=tolerance * scale, atol=tolerance * scale)


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("negatives", ["all", "hard", "easy", "hard_published"])
@pytest.mark.parametrize("block", [1, 30, 47])
def test_anchors_at_once_change_nothing(
    monkeypatch: pytest.MonkeyPatch, block: int, negatives: str, stop_gradient: bool
) -> None:
    z = unit(12, 8).requires_grad_()
    whole = value_and_gradient(2 * invariant_spreading_loss(z, 0.1, negatives, stop_gradient), z)
    monkeypatch.setattr(invariant_spreading, "BLOCK", block)
    parts = value_and_gradient(2 * invariant_spreading_loss(z, 0.1, negatives, stop_gradient), z)
    assert parts[0] == pytest.approx(whole[0], rel=1e-12)
    torch.testing.assert_close(parts[1], whole[1])


def test_autocast_changes_nothing() -> None:
    z = unit(12, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = invariant_spreading_loss(z)
    assert cast.item() == invariant_spreading_loss(z).item()


@pytest.mark.parametrize("fraction", [0.01, 0.25, 1.0])
def test_fraction_of_negatives(fraction: float) -> None:
    z = unit(10, 4)
    for negatives in ("hard", "easy"):
        ours = invariant_spreading_loss(z, 0.1, negatives, fraction=fraction)
        assert ours.item() == pytest.approx(naive(z, 0.1, negatives, True, fraction).item(), rel=1e-10)
    if fraction == 1.0:
        assert ours.item() == pytest.approx(invariant_spreading_loss(z).item(), rel=1e-12)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.8])
def test_fraction_of_negatives_as_published(fraction: float) -> None:
    z = unit(10, 4)  # of which 0.8 are all that are neither the anchor nor its partner
    ours = invariant_spreading_loss(z, 0.1, "hard_published", fraction=fraction)
    assert ours.item() == pytest.approx(naive(z, 0.1, "hard_published", True, fraction).item(), rel=1e-10)
    if fraction == 0.8:
        more = invariant_spreading_loss(z, 0.1, "hard_published", fraction=1.0)
        assert more.item() == pytest.approx(ours.item() / 0.8 - _positive(z) / 9 * (1 / 0.8 - 1), rel=1e-10)


def _positive(z: Tensor) -> float:
    """The sum over anchors of -log of the probability of the other view."""
    rows = len(z)
    similarity = (z @ z.T / 0.1).fill_diagonal_(-math.inf)
    return float(-similarity.log_softmax(1)[torch.arange(rows), torch.arange(rows).roll(rows // 2)].sum())


def test_the_defaults_are_the_papers() -> None:
    z = unit(10, 4).requires_grad_()
    plain, spelled = invariant_spreading_loss(z), invariant_spreading_loss(z, 0.1, "all", True, 0.5)
    assert torch.equal(value_and_gradient(plain, z)[1], value_and_gradient(spelled, z)[1])
    assert invariant_spreading_loss(z, negatives="hard") == invariant_spreading_loss(z, 0.1, "hard", True, 0.5)


@pytest.mark.parametrize("negatives", ["all", "hard", "easy"])
@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_identical_embeddings_are_finite(negatives: str, tau: float) -> None:
    z = unit(1, 8, dtype=torch.float32).repeat(16, 1).requires_grad_()
    value, gradient = value_and_gradient(invariant_spreading_loss(z, tau, negatives), z)
    kept = 14 if negatives == "all" else 7
    # All alike: P = 1/(kept + 1) everywhere.
    assert value == pytest.approx(math.log(kept + 1) - kept * math.log(kept / (kept + 1)), rel=1e-5)
    assert gradient.isfinite().all()


def test_a_negative_that_is_certain() -> None:
    """A negative equal to its anchor beside a partner far away: P rounds to 1 in float32, log(1 - P) must not."""
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]).requires_grad_()
    value, gradient = value_and_gradient(invariant_spreading_loss(z, 0.01, stop_gradient=False), z)
    expected, expected_gradient = value_and_gradient(naive(z, 0.01, "all", False), z)
    assert value == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-4)


def test_half_precision_is_computed_in_float32() -> None:
    z = unit(8, 16).to(torch.bfloat16)
    assert invariant_spreading_loss(z).item() == invariant_spreading_loss(z.float()).item()


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.ones(2, 4), r"\(2, 4\)"),
        (torch.ones(5, 4), r"\(5, 4\)"),
        (torch.ones(8), r"\(8,\)"),
        (torch.full((4, 4), torch.nan), r"\(4, 4\).*finite"),
    ],
)
def test_bad_embeddings_raise_with_their_shape(z: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invariant_spreading_loss(z)


def test_the_terms_add_up() -> None:
    terms = InvariantSpreading(0.1, "all", True, 0.5, "self")(unit(8, 4), torch.arange(4))
    assert terms["loss"].item() == pytest.approx((terms["positive"] + terms["negative"]).item())
    assert terms["loss"].item() == pytest.approx(invariant_spreading_loss(unit(8, 4)).item())


def test_a_coin_tosses_between_an_image_and_its_nearest() -> None:
    features = unit(400, 6)
    similarity = (features @ features.T).fill_diagonal_(-2)
    companions = nearest_or_itself(features, torch.Generator().manual_seed(0))
    itself = torch.arange(400)
    assert torch.equal(companions[:, 0], itself)
    near = companions[:, 1] != itself
    assert torch.equal(companions[near, 1], similarity.argmax(1)[near])
    assert 160 < near.sum() < 240, "a fair coin"
    assert not torch.equal(companions, nearest_or_itself(features, torch.Generator().manual_seed(1)))
    # A copy of an image is its neighbour; the image itself never is.
    twins = nearest_or_itself(features[:5].repeat(2, 1), torch.Generator().manual_seed(0))[:, 1]
    assert set((twins - torch.arange(10)).tolist()) == {0, 5, -5}


def test_only_nearest_positives_ask_for_features() -> None:
    def extract(kind: str = "unit") -> tuple[Tensor, Tensor]:
        return unit(4, 6), unit(4, 3)

    method = InvariantSpreading(0.1, "all", True, 0.5, "nearest")
    companions = method.on_epoch_start(extract, torch.Generator())
    assert companions is not None
    assert companions.shape == (4, 2)
    assert InvariantSpreading(0.1, "all", True, 0.5, "self").on_epoch_start(extract, torch.Generator()) is None
