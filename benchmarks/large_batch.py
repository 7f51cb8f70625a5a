"""The gradient of one large batch in the memory of a small one: `python -m benchmarks.large_batch`.

Steps of the paper's loss with slim ResNet-18 on 32 pixels, as `microbatch` takes them and at once; and how far the
gradients are from each other where no batch norm tells parts from wholes: Inception-V1 on 64 pixels, float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import heading, medians, peak_memory
from src.backbones.head import Head
from src.backbones.inception import GoogLeNet
from src.backbones.resnet import resnet18
from src.methods.invariant_spreading import invariant_spreading_loss
from src.module import in_parts

IMAGES, AT_ONCE = 4096, 256  # views at once: those of 128 images


def step(network: nn.Module, head: Head, views: Tensor, at_once: int | None) -> Callable[[], None]:
    def call() -> None:
        features = in_parts(network, views, at_once)
        invariant_spreading_loss(head(features), stop_gradient=False).backward()

    return call


def main() -> None:
    heading(f"A step of {IMAGES:,} images, {AT_ONCE} views at once", ("seconds", "MiB beside the images"))
    network = resnet18(16).to(memory_format=torch.channels_last)
    head = Head(network.num_features, 128)
    views = torch.randn(2 * IMAGES, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    contenders = {
        f"{IMAGES:,} images, microbatch={AT_ONCE}": step(network, head, views, AT_ONCE),
        f"{IMAGES:,} images at once": step(network, head, views, None),
        f"{AT_ONCE // 2} images at once": step(network, head, views[:AT_ONCE], None),
    }
    for name, call in contenders.items():
        (seconds,) = medians({name: call}, 1).values()
        print(f"| {name} | {seconds:.2f} | {peak_memory(call):,.0f} |", flush=True)

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
