"""Time and memory of the loss, forward and backward: ours, equation (7) written out, and NT-Xent of other libraries.

`python -m benchmarks.loss`. NT-Xent, and SupCon with a label an image, have the same similarities and fewer terms: the
nearest there is.
"""

import functools
from collections.abc import Callable
from multiprocessing import get_context

import torch
from lightly.loss import NTXentLoss
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.timing import DEVICE, heading, medians, peak_memory, report
from benchmarks.train_step import transcription
from src.methods.invariant_spreading import invariant_spreading_loss

Loss = Callable[[Tensor], Tensor]


def metric_learning(embeddings: Tensor) -> Tensor:
    return SupConLoss(0.1)(embeddings, torch.arange(len(embeddings) // 2, device=DEVICE).repeat(2))


def lightly(embeddings: Tensor) -> Tensor:
    return NTXentLoss(0.1)(*embeddings.chunk(2))


CONTENDERS: dict[str, Loss] = {
    "ours": functools.partial(invariant_spreading_loss, stop_gradient=False),
    "equation (7) written out": transcription,
    "NT-Xent of lightly": lightly,
    "SupCon of pytorch-metric-learning": metric_learning,
}


def embed(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(rows, 128, generator=generator), dim=1).to(DEVICE).requires_grad_()


def call(loss: Loss, embeddings: Tensor) -> None:
    embeddings.grad = None
    loss(embeddings).backward()


def peak(name: str, rows: int) -> float:
    """MiB that one forward and backward takes in a fresh process."""
    call(CONTENDERS[name], embed(64))  # what the first call loads does not count
    embeddings = embed(rows)
    return peak_memory(lambda: call(CONTENDERS[name], embeddings))


def main() -> None:
    heading("The loss, forward and backward, 128 dimensions")
    small = embed(256)
    torch.testing.assert_close(transcription(small), CONTENDERS["ours"](small))
    torch.testing.assert_close(metric_learning(small), lightly(small))
    for rows in (256, 1024, 4096, 8192):
        embeddings = embed(rows)
        contenders = {name: functools.partial(call, loss, embeddings) for name, loss in CONTENDERS.items()}
        report(f"2N = {rows:,}: time", medians(contenders, rounds=21 if rows < 4096 else 3))
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            mebibytes = {name: pool.apply(peak, (name, rows)) for name in CONTENDERS}
        (_, mine), *others = mebibytes.items()
        cells = "; ".join(f"{name} {amount:,.0f} MiB" for name, amount in others)
        print(f"| 2N = {rows:,}: peak memory | {mine:,.0f} MiB | {cells} |", flush=True)


if __name__ == "__main__":
    main()
