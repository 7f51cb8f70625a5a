"""A network's training pass as CUDA graphs: the host asks for its kernels once, and at every step for all of them."""

from typing import Any

import torch
from torch import Tensor, nn


class Captured:
    """`network` as training steps see it, on a GPU: features `(B, F)` of images `(B, 3, H, W)`, and their gradient.

    A GPU is done with a small network's kernel before the host has asked for the next one. Here they are captured with
    the first images, forward and backward, and again for images of another shape; then one request replays them. They
    are the same kernels on the same weights, so every number is the same. In evaluation the network itself is called.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.shape: torch.Size | None = None
        self._replay: Any = None

    def prepare(self, images: Tensor) -> None:
        """Capture what the network does to images like these, which draws random numbers where the network does."""
        if images.shape == self.shape:
            return
        kept = [buffer.clone() for buffer in self.network.buffers()]
        kind = images.device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        torch.clear_autocast_cache()
        with torch.autocast(kind, dtype, enabled, cache_enabled=False):  # weights are cast at every step
            # Around the network, whose own forward would be replaced.
            around = nn.Sequential(self.network)
            self._replay = torch.cuda.make_graphed_callables(around, (images.clone(),), allow_unused_input=True)
        for buffer, before in zip(self.network.buffers(), kept, strict=True):
            buffer.copy_(before)  # running statistics, as capturing takes some runs
        # Captured on another stream than that of the steps, of which torch would warn: it makes them wait.
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        self.shape = images.shape

    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self._replay(images)
        return features.clone()  # or the next step would overwrite them


def check_capturing(accelerator: str, ranks: int, microbatch: int | None, compiled: bool) -> None:
    """Raise a ValueError, naming the settings, where a run's network can't be trained by CUDA graphs."""
    wrong = {
        f"trainer.accelerator={accelerator}": accelerator != "gpu",
        f"{ranks} ranks": ranks > 1,
        f"microbatch={microbatch}": microbatch is not None,
        "compile=true": compiled,
    }
    if any(wrong.values()):
        found = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
        raise ValueError(f"graph=true replays a whole network on one GPU: it does not go with {found}")
