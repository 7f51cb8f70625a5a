"""Training by CUDA graphs: what they leave as it is, and what they do not go with. What a GPU makes of them, and that
every number is the same, tests/test_gpu.py sees where there is one.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.backbones.captured import Captured, check_capturing

GOES: dict[str, Any] = {"accelerator": "gpu", "ddp": False, "accumulated": 1, "microbatch": None, "compiled": False}


def capture(network: nn.Module, images: tuple[Tensor], allow_unused_input: bool) -> Callable[[Tensor], Tensor]:
    """As torch does it, but for the kernels: some runs first, then images and features that keep their places."""
    assert not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
    for _ in range(3):
        made = network(*images).detach()

    def replay(fresh: Tensor) -> Tensor:
        return made.detach().copy_(network(images[0].copy_(fresh)))

    return replay


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> Captured:
    monkeypatch.setattr("torch.cuda.make_graphed_callables", capture)
    torch.manual_seed(0)
    return Captured(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))


def test_capturing_leaves_the_running_statistics_as_they_are(captured: Captured) -> None:
    images = torch.randn(4, 3, 8, 8)
    before = [buffer.clone() for buffer in captured.network.buffers()]
    with torch.autocast("cpu", torch.bfloat16):
        captured.prepare(images)
    for buffer, kept in zip(captured.network.buffers(), before, strict=True):
        assert torch.equal(buffer, kept)
    captured(images)
    assert not torch.equal(next(captured.network.buffers()), before[0]), "a step changes them"


def test_features_are_those_of_its_own_images_and_weights(captured: Captured) -> None:
    first, second = torch.randn(2, 4, 3, 8, 8)
    captured.prepare(first)
    kept = first.clone()
    made = [captured(images) for images in (first, second)]
    for images, features in zip((first, second), made, strict=True):
        torch.testing.assert_close(features, captured.network(images))
    assert torch.equal(first, kept), "the images of the step that captured are still its own"
    with torch.no_grad():
        captured.network[0].weight.mul_(-1)  # type: ignore[index]
    torch.testing.assert_close(captured(first), captured.network(first))


def test_it_captures_once_for_a_shape(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []

    def counted(network: nn.Module, images: tuple[Tensor], **options: Any) -> Callable[[Tensor], Tensor]:
        shapes.append(images[0].shape)
        return capture(network, images, **options)

    monkeypatch.setattr("torch.cuda.make_graphed_callables", counted)
    for size in (6, 6, 8, 8):
        images = torch.randn(4, 3, size, size)
        captured.prepare(images)
        torch.testing.assert_close(captured(images), captured.network(images))
    assert shapes == [(4, 3, 6, 6), (4, 3, 8, 8)]


def test_it_is_no_part_of_a_checkpoint(captured: Captured) -> None:
    before = set(captured.network.state_dict())
    captured.prepare(torch.randn(4, 3, 8, 8))
    assert set(captured.network.state_dict()) == before
    assert "forward" not in vars(captured.network)


def test_weights_elsewhere_are_captured_again(captured: Captured) -> None:
    images = torch.randn(4, 3, 8, 8)
    captured.prepare(images)
    before = captured._replay
    captured.prepare(images)
    assert captured._replay is before
    kept = [parameter.data for parameter in captured.network.parameters()]
    for parameter in captured.network.parameters():
        parameter.data = parameter.data.clone()
    captured.prepare(images)
    assert captured._replay is not before
    assert len(kept) == 4, "still there, so that no clone has the place of one"


def test_what_a_graph_does_not_go_with() -> None:
    check_capturing(**GOES)
    other: dict[str, Any] = {"accelerator": "cpu", "ddp": True, "accumulated": 2, "microbatch": 64, "compiled": True}
    named = [
        "trainer.accelerator=cpu",
        "trainer=ddp",
        "trainer.accumulate_grad_batches=2",
        "microbatch=64",
        "compile=true",
    ]
    for (setting, value), name in zip(other.items(), named, strict=True):
        with pytest.raises(ValueError, match=f"graph=true .* does not go with {name}$"):
            check_capturing(**GOES | {setting: value})
    with pytest.raises(ValueError, match=", ".join(named)):
        check_capturing(**other)
