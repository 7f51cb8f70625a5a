"""The gradient of one large batch in the memory of a small one: `python -m benchmarks.large_batch`.

Steps of the paper's loss with slim ResNet-18 on 32 pixels, as `microbatch` takes them and at once; and how far the
gradients are from each other where no batch norm tells parts from wholes: Inception-V1 on 64 pixels, float32.
"""

from collections.abc import Callable
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from benchmarks.timing import heading, medians, peak_memory
from src.backbones.head import Head
from src.backbones.inception import GoogLeNet
from src.backbones.resnet import resnet18
from src.methods.invariant_spreading import invariant_spreading_loss
from src.module import in_parts
from src.running.hardware import settle

IMAGES, AT_ONCE = 4096, 256  # views at once: those of 128 images


def step(network: nn.Module, head: Head, views: Tensor, at_once: int | None) -> Callable[[], None]:
    def call() -> None:
        features = in_parts(network, views, at_once)
        invariant_spreading_loss(head(features), stop_gradient=False).backward()

    return call


def measure(images: int, at_once: int | None) -> tuple[float, float]:
    """Seconds of a step, and MiB that the first needs, in a process of its own: what one frees another would find."""
    settle()
    network = resnet18(16).to(memory_format=torch.channels_last)
    head = Head(network.num_features, 128)
    views = torch.randn(2 * images, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    call = step(network, head, views, at_once)
    memory = peak_memory(call)
    (seconds,) = medians({"": call}, 0).values()
    return seconds, memory


def main() -> None:
    heading(f"A step of {IMAGES:,} images, {AT_ONCE} views at once", ("seconds", "MiB beside the images"))
    contenders: dict[str, tuple[int, int | None]] = {
        f"{IMAGES:,} images, microbatch={AT_ONCE}": (IMAGES, AT_ONCE),
        f"{IMAGES:,} images at once": (IMAGES, None),
        f"{AT_ONCE // 2} images at once": (AT_ONCE // 2, None),
    }
    for name, contender in contenders.items():
        with get_context("spawn").Pool(1) as process:
            seconds, memory = process.apply(measure, contender)
        print(f"| {name} | {seconds:.2f} | {memory:,.0f} |", flush=True)

    torch.manual_seed(0)
    inception = GoogLeNet()
    head, images = Head(1024, 128), 30 * torch.randn(128, 3, 64, 64)
    gradients = []
    for at_once in (None, 16):
        inception.zero_grad()
        step(inception, head, images, at_once)()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in inception.parameters()]))  # type: ignore[union-attr]
    away = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    print(
        f"\nInception-V1, 64 images, 16 views at once: the gradient is {away:.1e} of its norm away from that at once."
    )


if __name__ == "__main__":
    main()
