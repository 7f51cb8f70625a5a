"""Two gloo processes on CPU against one process with all the images."""

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from src.callbacks.refresh import Refresh
from src.methods.base import Extract, Method, TaughtMethod, TrainingSet
from src.methods.byol import BYOL
from src.methods.exemplar import Exemplar
from src.methods.invariant_spreading import InvariantSpreading, invariant_spreading_loss
from src.methods.nce import NCE
from src.methods.npsoftmax import NPSoftmax
from src.methods.simclr import SimCLR
from src.methods.stml import STML
from src.methods.supervised import Supervised
from src.methods.triplet import Triplet
from src.module import in_parts
from src.running.distributed import broadcast_buffers, gather_unique, gather_views

RANKS = 2


def _start(rank: int, port: int, function: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=RANKS)
    function(rank, folder)
    torch.distributed.destroy_process_group()


def on_two_ranks(function: Callable[[int, Path], None], folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = (port, function, folder)
    torch.multiprocessing.start_processes(_start, told, nprocs=RANKS, start_method="forkserver")


class Tiny(nn.Module):
    """Without batch norm, so that a rank's images do not change another's embeddings."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return normalize(self.layers(images), dim=1)


def views() -> torch.Tensor:
    """`(2, 8, 12)`: two views of eight images."""
    return torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


OPTIONS: list[tuple[Any, bool]] = [(negatives, stop) for negatives in ("all", "hard", "easy") for stop in (True, False)]


def methods() -> list[Method]:
    """One of every kind that sees eight images of eight dimensions."""
    torch.manual_seed(0)
    ours: list[Method] = [InvariantSpreading(0.1, n, stop, 0.5, "self") for n, stop in OPTIONS]
    others: list[Method] = [
        SimCLR(0.5),
        Triplet(0.5, "hard"),
        Triplet(0.5, "random"),
        NCE(0.5, 5, 0.5, 1.0),
        Supervised("MultiSimilarityLoss", {}, None, {}),
        Exemplar(1.0),
        NPSoftmax(0.1, 0.5),
        STML(1.0, 1.0, 2, 0.9, 5),
        BYOL(5, 0.9),
    ]
    for method in ours + others:
        labels = torch.arange(8) // 3 if method.supervised else None
        method.setup(TrainingSet(images=8, embedding_dim=8, pretrained=False, labels=labels, num_features=8))
        method.double()
    others[-1].eval()  # its batch norm sees a rank's images alone, but on GPUs
    return ours + others


def step(method: Method, network: nn.Module, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The loss, its gradients, and what the method remembers of it."""
    embeddings = network(images[: method.views].flatten(0, 1))
    given = {}
    if isinstance(method, TaughtMethod):
        with torch.no_grad():
            taught = images[: method.views].flatten(0, 1)[:, :8].tanh()
        given = {"features": embeddings, "teacher": (taught, taught)}
    torch.manual_seed(3)  # as in every step, where a method may draw
    loss = method(embeddings, index, **given)["loss"]
    loss.backward()
    method.after_step(embeddings.detach(), index)
    return loss.detach()


def _train(rank: int, folder: Path) -> None:
    results = []
    for method in methods():
        network = DistributedDataParallel(Tiny())
        loss = step(method, network, views()[:, rank * 4 : rank * 4 + 4], torch.arange(4) + rank * 4)
        own = [p.grad for p in method.parameters()]
        results.append((loss, [p.grad for p in network.parameters()], own, method.state_dict()))
    torch.save(results, folder / f"{rank}.pt")


def test_loss_gradient_and_memory_are_those_of_one_process(tmp_path: Path) -> None:
    on_two_ranks(_train, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for method, *found in zip(methods(), *ranks, strict=True):
        network = Tiny()
        expected = step(method, network, views(), torch.arange(8))
        mean = torch.stack([loss for loss, *_ in found]).mean()
        torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-10)
        for *each, parameter in zip(*(own for _, _, own, _ in found), method.parameters(), strict=True):
            torch.testing.assert_close(torch.stack(each).mean(0), parameter.grad, rtol=1e-10, atol=1e-10)
        for _, gradients, _, state in found:
            for gradient, parameter in zip(gradients, network.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(state, dict(method.state_dict()))


def _evaluate(rank: int, folder: Path) -> None:
    index = torch.arange(8)[rank::2] % 7  # seven images, padded to eight by repeating the first
    torch.save(gather_unique(index, index * 10, index.float().view(-1, 1)), folder / f"{rank}.pt")


def test_repeated_images_are_dropped(tmp_path: Path) -> None:
    on_two_ranks(_evaluate, tmp_path)
    for rank in range(RANKS):
        index, tens, column = torch.load(tmp_path / f"{rank}.pt")
        assert index.tolist() == list(range(7))
        assert tens.tolist() == [10 * i for i in range(7)]
        assert column.shape == (7, 1)


def _drift(rank: int, folder: Path) -> None:
    norm = nn.BatchNorm1d(3)
    norm(torch.randn(4, 3, generator=torch.Generator().manual_seed(rank)))
    broadcast_buffers(norm)
    torch.save(norm.running_mean, folder / f"{rank}.pt")


def test_buffers_follow_rank_0(tmp_path: Path) -> None:
    on_two_ranks(_drift, tmp_path)
    expected = nn.BatchNorm1d(3)
    expected(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    for rank in range(RANKS):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected.running_mean, rtol=0, atol=0)


class Rounding(Method):
    """Makes of the same features what is another's on every rank."""

    labels: torch.Tensor

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.register_buffer("labels", torch.full((3,), -1))

    def on_epoch_start(self, extract: Extract, generator: torch.Generator) -> torch.Tensor | None:
        self.labels.fill_(self.rank)
        return torch.full((8, 2), self.rank) if self.rank == 0 else None

    def order(self, extract: Extract, generator: torch.Generator, batch: int) -> torch.Tensor | None:
        return torch.arange(batch) + self.rank


def _prepare(rank: int, folder: Path) -> None:
    given: list[Any] = []
    data = SimpleNamespace(batch_size=4, pair=lambda *told: given.extend(told))
    trainer: Any = SimpleNamespace(current_epoch=0, world_size=RANKS, datamodule=data, optimizers=[])
    module: Any = SimpleNamespace(method=Rounding(rank))
    Refresh(0).on_train_epoch_start(trainer, module)
    torch.save([*given, module.method.labels], folder / f"{rank}.pt")


def test_what_an_epoch_begins_with_is_what_rank_0_made(tmp_path: Path) -> None:
    on_two_ranks(_prepare, tmp_path)
    for rank in range(RANKS):
        companions, views, order, labels = torch.load(tmp_path / f"{rank}.pt")
        assert companions.tolist() == [[0, 0]] * 8
        assert views == 2
        assert order.tolist() == list(range(8))
        assert labels.tolist() == [0, 0, 0]


def test_one_process_exchanges_nothing() -> None:
    embeddings = torch.randn(4, 2, requires_grad=True)
    assert gather_views(embeddings) is embeddings
    index, rows = gather_unique(torch.tensor([2, 0, 2, 1]), torch.tensor([20, 0, 21, 10]))
    assert (index.tolist(), rows.tolist()) == ([0, 1, 2], [0, 10, 20])


@pytest.mark.parametrize("empty", [torch.empty(0, dtype=torch.long)])
def test_nothing_to_gather(empty: torch.Tensor) -> None:
    assert [len(tensor) for tensor in gather_unique(empty, empty)] == [0, 0]


def _in_parts(rank: int, folder: Path, at_once: int | None = 3) -> None:
    """Lightning's own DDP around a whole step, whose views go through the network three at a time."""
    network = Whole(at_once)
    wrapped = DistributedDataParallel(network) if torch.distributed.is_initialized() else network
    part = views()[:, rank * 4 : rank * 4 + 4] if torch.distributed.is_initialized() else views()
    wrapped(part.flatten(0, 1)).backward()
    torch.save([parameter.grad for parameter in network.parameters()], folder / f"{rank}.pt")


class Whole(nn.Module):
    """Network and loss in one, as the module is."""

    def __init__(self, at_once: int | None) -> None:
        super().__init__()
        self.network, self.at_once = Tiny(), at_once

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings = gather_views(in_parts(self.network, images, self.at_once))
        return invariant_spreading_loss(embeddings, stop_gradient=False)


def test_on_two_ranks_in_parts_the_gradient_is_that_of_one_process_with_all_at_once(tmp_path: Path) -> None:
    on_two_ranks(_in_parts, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    _in_parts(0, tmp_path, at_once=None)
    for expected, *found in zip(torch.load(tmp_path / "0.pt"), *ranks, strict=True):
        for gradient in found:
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
