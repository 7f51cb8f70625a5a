from pathlib import Path

import pytest
import torch

from src.vectors.memory_bank import MemoryBank
from tests.methods.reference import unit
from tests.running.test_distributed import on_two_ranks


def test_before_any_update_it_points_everywhere() -> None:
    torch.manual_seed(0)
    bank = MemoryBank(400, 3, 0.5)
    torch.testing.assert_close(bank.memory.norm(dim=1), torch.ones(400))
    assert bank.memory.mean(0).abs().max() < 0.15, "no direction is preferred"
    assert bank.memory.std(0).min() > 0.5
    assert bank.seen.dtype == torch.bool
    assert not bank.seen.any()


@pytest.mark.parametrize("momentum", [0, 0.25, 0.9])
def test_updates_mix_with_what_was_there_and_normalise(momentum: float) -> None:
    """Three in turn, some rows again, the others left alone; a row at a time, with plain numbers."""
    bank = MemoryBank(5, 3, momentum).double()
    expected, seen = bank.memory.tolist(), [False] * 5
    for step, index in enumerate(([3, 1], [0, 3], [3])):
        new = unit(len(index), 3, seed=step)
        bank.update(torch.tensor(index), new)
        for row, entry in zip(index, new.tolist(), strict=True):
            mixed = [momentum * old + (1 - momentum) * value for old, value in zip(expected[row], entry, strict=True)]
            length = sum(value * value for value in mixed) ** 0.5
            expected[row], seen[row] = [value / length for value in mixed], True
        torch.testing.assert_close(bank.memory, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
        assert bank.seen.tolist() == seen


def test_it_is_saved_and_no_parameter() -> None:
    bank, other = MemoryBank(5, 3, 0.5), MemoryBank(5, 3, 0.5)
    bank.update(torch.tensor([2]), torch.ones(1, 3).requires_grad_())
    assert not bank.memory.requires_grad
    assert not list(bank.parameters())
    other.load_state_dict(bank.state_dict())
    assert torch.equal(other.memory, bank.memory)
    assert torch.equal(other.seen, bank.seen)


def test_updates_are_in_place() -> None:
    bank = MemoryBank(105_000, 128, 0.5)
    place = bank.memory.data_ptr()
    bank.update(torch.arange(64), torch.randn(64, 128))
    assert bank.memory.data_ptr() == place
    assert bank.memory.nbytes == 4 * 128 * 105_000


def _update(rank: int, folder: Path) -> None:
    torch.manual_seed(0)
    bank = MemoryBank(6, 3, 0.5)
    bank.update(torch.tensor([rank, rank + 2]), unit(4, 3, dtype=torch.float32)[2 * rank : 2 * rank + 2])
    torch.save(bank.state_dict(), folder / f"{rank}.pt")


def test_every_rank_remembers_what_all_have_seen(tmp_path: Path) -> None:
    on_two_ranks(_update, tmp_path)
    torch.manual_seed(0)
    expected = MemoryBank(6, 3, 0.5)
    expected.update(torch.tensor([0, 2, 1, 3]), unit(4, 3, dtype=torch.float32))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found["memory"], expected.memory)
        assert torch.equal(found["seen"], expected.seen)
