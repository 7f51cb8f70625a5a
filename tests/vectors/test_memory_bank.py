from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from src.vectors.memory_bank import MemoryBank
from tests.methods.reference import unit
from tests.running.test_distributed import on_two_ranks


def test_an_update_mixes_and_normalises() -> None:
    bank = MemoryBank(5, 3, momentum=0.25).double()
    before, new = bank.memory.clone(), unit(2, 3)
    bank.update(torch.tensor([3, 1]), new)
    for row, entry in ((3, new[0]), (1, new[1])):
        torch.testing.assert_close(bank.memory[row], normalize(0.25 * before[row] + 0.75 * entry, dim=0))
    for row in (0, 2, 4):
        assert torch.equal(bank.memory[row], before[row])
    assert bank.seen.tolist() == [False, True, False, True, False]
    torch.testing.assert_close(bank.memory.norm(dim=1), torch.ones(5, dtype=torch.float64))


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


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_impossible_momentum(momentum: float) -> None:
    with pytest.raises(ValueError, match=r"method.momentum"):
        MemoryBank(5, 3, momentum)
