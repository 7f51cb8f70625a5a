import math

import pytest
import torch
from torch import Tensor

from src.methods.base import TrainingSet
from src.methods.nce import NCE, estimate_log_z, nce_loss, proximal_term
from tests.methods.reference import assert_same, unit


def naive(f: Tensor, v: Tensor, index: Tensor, noise: Tensor, z: float, tau: float) -> Tensor:
    """Equations (4) to (7) of Wu et al., read off: P = exp(v.f / tau) / Z, h = P / (P + m P_n), P_n = 1 / N."""
    images, m, total = len(v), noise.shape[1], f.new_zeros(())
    for row, i in enumerate(index.tolist()):

        def h(k: int, row: int = row) -> Tensor:
            p = (v[k] @ f[row] / tau).exp() / z
            return p / (p + m / images)

        total = total - h(i).log()
        for k in noise[row].tolist():
            total = total - (1 - h(k)).log()
    return total / len(f)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_agrees_with_the_equations(tau: float) -> None:
    f, v, index = unit(5, 4).requires_grad_(), unit(9, 4, seed=1), torch.tensor([0, 8, 3, 4, 1])
    noise = torch.randint(9, (5, 12), generator=torch.Generator().manual_seed(0))
    scores = f @ v.T / tau
    positive, drawn = scores.gather(1, index.unsqueeze(1)).squeeze(1), scores.gather(1, noise)
    z = 123.4
    ours = nce_loss(positive, drawn, torch.tensor(z, dtype=torch.float64).log(), 9)
    assert_same(ours, naive(f, v, index, noise, z, tau), f)


def test_z_is_n_times_the_mean() -> None:
    scores = torch.randn(4, 7, dtype=torch.float64)
    assert estimate_log_z(scores, 50).exp().item() == pytest.approx(50 * scores.exp().mean().item())


def make(noise: int = 16, proximal: float = 2.0) -> NCE:
    torch.manual_seed(0)
    method = NCE(0.1, noise, 0.5, proximal)
    method.setup(TrainingSet(9, 4, pretrained=False, labels=None, num_features=8))
    return method


def test_z_is_estimated_once_and_kept_in_checkpoints() -> None:
    method, index = make(), torch.tensor([1, 2, 3])
    assert method.log_z.isnan()
    method(unit(3, 4, dtype=torch.float32), index)
    first = method.log_z.clone()
    assert first.isfinite()
    method(unit(3, 4, seed=5, dtype=torch.float32), index)
    assert torch.equal(method.log_z, first)
    other = make()
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.log_z, first)


def test_two_steps_may_share_a_backward_pass() -> None:
    method, z = make(), unit(3, 4, dtype=torch.float32).requires_grad_()
    losses = [method(z, torch.tensor(index))["loss"] for index in ([1, 2, 3], [4, 5, 6])]
    torch.stack(losses).sum().backward()
    assert z.grad is not None


def test_the_proximal_term_waits_for_a_memory() -> None:
    f, v, seen = unit(3, 4), unit(3, 4, seed=1), torch.tensor([True, False, True])
    expected = sum(float((f[i] - v[i]).square().sum()) for i in (0, 2)) / 3
    assert proximal_term(f, v, seen).item() == pytest.approx(expected)
    method, index = make(), torch.tensor([0, 1])
    embeddings = unit(2, 4, dtype=torch.float32)
    first = method(embeddings, index)
    assert first["proximal"] == 0
    assert first["loss"] == first["contrast"]
    method.after_step(embeddings, index)
    second = method(embeddings, index)
    assert second["proximal"] > 0
    assert second["loss"].item() == pytest.approx((second["contrast"] + 2 * second["proximal"]).item())


def test_far_scores_stay_finite() -> None:
    positive = torch.tensor([-1e4, 1e4]).requires_grad_()
    loss = nce_loss(positive, torch.full((2, 3), 1e4), torch.tensor(math.log(9)), 9)
    loss.backward()
    assert loss.isfinite()
    assert positive.grad is not None
    assert positive.grad.isfinite().all()
