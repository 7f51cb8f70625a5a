"""Images a second through the paper's Inception-V1 in evaluation, 227 pixels: `python -m benchmarks.extract`."""

import copy

import torch
from torch import nn

from benchmarks.timing import heading, medians, report
from src.backbones.inception import GoogLeNet, LocalResponseNorm

BATCH = 64


def main() -> None:
    heading(f"Inception-V1, {BATCH} images of 227 pixels, bfloat16 autocast")
    torch.manual_seed(0)
    network = GoogLeNet().eval().to(memory_format=torch.channels_last)
    plain = copy.deepcopy(network)
    plain.norm1, plain.norm2 = nn.LocalResponseNorm(5), nn.LocalResponseNorm(5)  # type: ignore[assignment]
    images = torch.randn(BATCH, 3, 227, 227).mul(50).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(network(images[:2]), plain(images[:2]), rtol=1e-4, atol=1e-4)
        assert isinstance(network.norm1, LocalResponseNorm)

        def run(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                model(images)

        contenders = {
            "ours": lambda: run(network),
            "with torch's LocalResponseNorm": lambda: run(plain),
            "ours in float32": lambda: run(network, torch.float32),
        }
        seconds = medians(contenders, rounds=3)
    report("forward", seconds)
    print(f"| ours | {BATCH / seconds['ours']:.0f} images/s | |")


if __name__ == "__main__":
    main()
