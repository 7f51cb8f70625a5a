import pytest
import torch

from src.running.hardware import count_ranks, describe_hardware, describe_versions, select_accelerator, select_precision


def test_accelerator() -> None:
    assert select_accelerator("cpu") == "cpu"
    assert select_accelerator("auto") == select_accelerator(select_accelerator("auto"))
    with pytest.raises(ValueError, match=r"accelerator=quantum is unknown: choose auto, gpu, mps, cpu"):
        select_accelerator("quantum")


@pytest.mark.parametrize(("devices", "ranks"), [(1, 1), ("3", 3), ([0, 1], 2), (-1, 1), ("auto", 1)])
def test_ranks_on_a_cpu(devices: int | str | list[int], ranks: int) -> None:
    assert count_ranks("cpu", devices) == ranks


@pytest.mark.parametrize("devices", [0, -2, "two"])
def test_impossible_ranks_are_named(devices: int | str) -> None:
    with pytest.raises(ValueError, match=f"trainer.devices={devices}: give a positive number"):
        count_ranks("cpu", devices)


def test_more_gpus_than_there_are() -> None:
    here = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"trainer.devices={here + 1}, but this machine has {here}"):
        count_ranks("gpu", here + 1)


def test_precision() -> None:
    assert select_precision("16-mixed", "cpu") == "16-mixed"
    assert select_precision("auto", "mps") == "32-true"
    expected = "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32-true"
    assert select_precision("auto", "cpu") == expected


def test_what_a_result_records() -> None:
    hardware = describe_hardware("cpu", 2)
    assert hardware["ranks"] == 2
    assert hardware["cpu"]
    assert describe_versions()["torch"] == torch.__version__.split("+")[0]
