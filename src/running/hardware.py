"""What the machine has, and the settings that follow from it."""

import ctypes
import logging
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "numpy")


def select_accelerator(asked: str, scores: bool = False) -> str:
    """`auto` to what is there; `cpu`, `gpu` (or `cuda`) or `mps` as asked.

    Args:
        scores: whether it shall score too, which takes float64.

    Raises:
        ValueError: what is asked for is absent, or can't score.
    """
    if scores and asked == "mps":
        raise ValueError("trainer.accelerator=mps: it has no float64, which scores are taken in: use cpu")
    mps = torch.backends.mps.is_available() and not scores
    present = {"gpu": torch.cuda.is_available(), "mps": mps, "cpu": True}
    if asked == "auto":
        return next(name for name, there in present.items() if there)
    accelerator = "gpu" if asked == "cuda" else asked
    if not present[accelerator]:
        raise ValueError(f"trainer.accelerator={asked}, but none is visible here: use trainer.accelerator=cpu or auto")
    return accelerator


def count_ranks(accelerator: str, devices: int | str | Sequence[int]) -> int:
    """How many processes `trainer.devices` means: a number, a list of devices, or all of them (-1 or `auto`).

    Raises:
        ValueError: more GPUs than there are, or a list where there are no GPUs.
    """
    here = {"gpu": torch.cuda.device_count(), "mps": 1}.get(accelerator)
    if devices in (-1, "-1", "auto"):
        return here or 1
    if not isinstance(devices, (int, str)) and accelerator != "gpu":
        raise ValueError(f"trainer.devices={devices}: a list names GPUs; on {accelerator} give a number")
    ranks = int(devices) if isinstance(devices, (int, str)) else len(devices)
    if here is not None and ranks > here:
        raise ValueError(f"trainer.devices={devices}, but this machine has {here}: use at most that many")
    return ranks


def select_precision(asked: str, accelerator: str) -> str:
    """`auto` to bf16 autocast where the hardware computes faster in it, else float32.

    Raises:
        ValueError: the accelerator does not compute in what is asked for.
    """
    if asked == "16-mixed" and accelerator == "cpu":
        raise ValueError("trainer.precision=16-mixed needs a GPU: choose bf16-mixed, 32-true or auto")
    if asked != "auto":
        return asked
    bfloat16 = {
        "gpu": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": _gains_from_bfloat16,
    }.get(accelerator, lambda: False)
    return "bf16-mixed" if bfloat16() else "32-true"


def recall_precision(saved: str, accelerator: str) -> str:
    """What a run computed in, which may have been on another machine; float32 where the accelerator does not."""
    return "32-true" if saved == "16-mixed" and accelerator == "cpu" else select_precision(saved, accelerator)


def _gains_from_bfloat16() -> bool:
    """Whether bf16 is faster than float32 on this CPU: Intel's have it in tiles (AMX); their vectors are slower in it.

    A training step of the ResNet-18 takes 1.4 times as long there.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    return torch.cpu._is_amx_tile_supported() or "Intel" not in _cpu_model()


def multiplies_bfloat16_in_vectors() -> bool:
    """Whether the CPU multiplies bfloat16 in vectors, not in the many times faster tiles (AMX) that some have."""
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def settle() -> None:
    """Quiet what Lightning says of settings made on purpose; let torch repeat its numbers and keep its memory."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # a batch is one gather from memory
    warnings.filterwarnings("ignore", message=".*`isinstance.treespec, LeafSpec.` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a run that goes on
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # its sampler is
    warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support is in beta.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # a teacher
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # CUDA graphs' own; autograd orders them
    # glibc returns large blocks to the system at once, and the next step's page faults then take 7% of its time.
    _tune_malloc(M_MMAP_MAX, 0)
    _tune_malloc(M_TRIM_THRESHOLD, -1)
    # Deterministic mode would also fill every fresh tensor, to expose code that reads uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def return_memory() -> None:
    """Let go of large blocks when they are freed, for a process that is mostly idle: glibc learns to keep them."""
    _tune_malloc(M_MMAP_THRESHOLD, 2**22)


def _tune_malloc(parameter: int, value: int) -> None:
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none
        libc.mallopt(parameter, value)


def describe_hardware(accelerator: str, devices: int | str | Sequence[int], nodes: int = 1) -> dict[str, str | int]:
    """What a reader of a result wants to know of the machine, and the `ranks` that `devices` on `nodes` like it are."""
    facts: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
        "ranks": nodes * count_ranks(accelerator, devices),
    }
    if accelerator == "gpu":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def describe_versions() -> dict[str, str]:
    """Python and the packages that a number can depend on."""
    return {"python": platform.python_version()} | {package: version(package) for package in PACKAGES}


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
