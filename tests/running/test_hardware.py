import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from src.running import hardware
from src.running.hardware import count_ranks, describe_hardware, describe_versions, select_accelerator, select_precision
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"), [(True, False, "gpu"), (False, True, "mps"), (True, True, "gpu"), (False, False, "cpu")]
)
def test_accelerator(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, auto: str) -> None:
    """On machines that have it, and that do not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert select_accelerator("auto") == auto
    assert select_accelerator("auto", scores=True) == auto.replace("mps", "cpu")
    with pytest.raises(ValueError, match=r"trainer.accelerator=mps: it has no float64"):
        select_accelerator("mps", scores=True)
    assert select_accelerator("cpu") == "cpu"
    for asked, accelerator, there in (("gpu", "gpu", cuda), ("cuda", "gpu", cuda), ("mps", "mps", mps)):
        if there:
            assert select_accelerator(asked) == accelerator
        else:
            with pytest.raises(ValueError, match=f"accelerator={asked}, but none is visible here"):
                select_accelerator(asked)


def test_what_a_run_of_a_gpu_computed_in_is_computed_here_in_float32() -> None:
    assert hardware.recall_precision("16-mixed", "cpu") == "32-true"
    assert hardware.recall_precision("16-mixed", "gpu") == "16-mixed"
    assert hardware.recall_precision("bf16-mixed", "cpu") == "bf16-mixed"
    with pytest.raises(ValueError, match="needs a GPU"):
        select_precision("16-mixed", "cpu")


@pytest.mark.parametrize(("devices", "ranks"), [(1, 1), ("3", 3), (-1, 1), ("-1", 1), ("auto", 1)])
def test_ranks_on_a_cpu(devices: int | str | list[int], ranks: int) -> None:
    assert count_ranks("cpu", devices) == ranks


def test_a_list_of_devices_without_gpus() -> None:
    with pytest.raises(ValueError, match=r"trainer.devices=\[0, 1\]: a list names GPUs; on cpu give a number"):
        count_ranks("cpu", [0, 1])


@pytest.mark.parametrize(("devices", "ranks"), [(1, 1), ("3", 3), ([0, 2], 2), (-1, 4), ("-1", 4), ("auto", 4)])
def test_ranks_on_four_gpus(monkeypatch: pytest.MonkeyPatch, devices: int | str | list[int], ranks: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert count_ranks("gpu", devices) == ranks
    with pytest.raises(ValueError, match=r"trainer.devices=5, but this machine has 4: use at most that many"):
        count_ranks("gpu", 5)


@pytest.mark.parametrize(("bfloat16", "auto"), [(True, "bf16-mixed"), (False, "32-true")])
def test_precision(monkeypatch: pytest.MonkeyPatch, bfloat16: bool, auto: str) -> None:
    """bfloat16 where the hardware has it; CUDA would also emulate it, slowly."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(hardware, "_cpu_model", lambda: "AMD EPYC")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation
    )
    assert select_precision("auto", "cpu") == auto
    assert select_precision("auto", "gpu") == auto
    assert select_precision("auto", "mps") == "32-true"
    for asked in ("32-true", "bf16-mixed"):
        assert select_precision(asked, "cpu") == asked
    assert select_precision("16-mixed", "gpu") == "16-mixed"
    with pytest.raises(ValueError, match=r"trainer.precision=16-mixed needs a GPU"):
        select_precision("16-mixed", "cpu")


@pytest.mark.parametrize(("tiles", "auto"), [(True, "bf16-mixed"), (False, "32-true")])
def test_vectors_of_intel_are_no_faster_in_bfloat16(monkeypatch: pytest.MonkeyPatch, tiles: bool, auto: str) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(hardware, "_cpu_model", lambda: "Intel(R) Xeon(R) Processor")
    assert select_precision("auto", "cpu") == auto


def test_what_a_result_records() -> None:
    machine = describe_hardware("cpu", 2)
    assert (machine["accelerator"], machine["ranks"], machine["threads"]) == ("cpu", 2, torch.get_num_threads())
    assert machine["cores"] == os.cpu_count()
    assert machine["cpu"]
    versions = describe_versions()
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert versions["python"] == platform.python_version()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="only glibc is tuned")
def test_memory_is_returned_by_who_lives_long() -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from src.running import hardware

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def kept():
    before, blocks = resident(), []
    for _ in range(20):
        blocks.append((np.ones(2**21), bytearray(1000)))  # 16 MiB, and a little that lives on
    last = [little for _, little in blocks]
    del blocks
    return (resident() - before) // 2**20, last

first = kept()
print(kept()[0])
hardware.return_memory()
print(kept()[0])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert before > 200  # MiB that glibc has learned to keep
    assert after < 20
