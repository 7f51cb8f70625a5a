"""A network's training pass as CUDA graphs: the host asks for its kernels once, and at every step for all of them."""

import gc
from typing import Any

import torch
from torch import Tensor, nn


class Captured:
    """`network` as training steps see it, on a GPU: features `(B, F)` of images `(B, 3, H, W)`, and their gradient.

    A GPU is done with a small network's kernel before the host has asked for the next one. Here they are captured with
    the first images, forward and backward, and again for images of another shape; then one request replays them: the
    same kernels on the same weights. In evaluation the network itself is called.

    Gradients are the replay's own tensors, which the next one overwrites: each step has to drop them (`zero_grad`), so
    they can't be accumulated over batches.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._captured: tuple[torch.Size, int] | None = None  # the shape of the images, and where the weights are
        self._replay: Any = None

    def prepare(self, images: Tensor) -> None:
        """Capture what the network does to images like these, which draws random numbers where the network does."""
        found = images.shape, next(self.network.parameters()).data_ptr()
        if found == self._captured:
            return
        self._captured = self._replay = None
        gc.collect()  # the memory of the graphs before, which may not be freed while others are captured
        kept = [buffer.clone() for buffer in self.network.buffers()]
        kind = images.device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        with torch.autocast(kind, dtype, enabled, cache_enabled=False):  # weights are cast at every step
            # Around the network, whose own forward would be replaced.
            around = nn.Sequential(self.network)
            self._replay = torch.cuda.make_graphed_callables(around, (images.clone(),), allow_unused_input=True)
        for buffer, before in zip(self.network.buffers(), kept, strict=True):
            buffer.copy_(before)  # running statistics, as capturing takes some runs
        self._captured = found

    def __call__(self, images: Tensor) -> Tensor:
        features: Tensor = self._replay(images)
        return features.clone()  # or the next step would overwrite them


def check_capturing(accelerator: str, ddp: bool, accumulated: int, microbatch: int | None, compiled: bool) -> None:
    """Raise a ValueError, naming the settings, where a run's network can't be trained by CUDA graphs.

    Args:
        ddp: whether ranks share what they see.
        accumulated: batches whose gradients make a step.
        microbatch: views the network sees at once; None: all.
        compiled: whether torch.compile has a part in it.
    """
    wrong = {
        f"trainer.accelerator={accelerator}": accelerator != "gpu",
        "trainer=ddp": ddp,
        f"trainer.accumulate_grad_batches={accumulated}": accumulated > 1,
        f"microbatch={microbatch}": microbatch is not None,
        "compile=true": compiled,
    }
    if any(wrong.values()):
        found = ", ".join(name for name, is_wrong in wrong.items() if is_wrong)
        raise ValueError(f"graph=true replays a whole step's network on one GPU: it does not go with {found}")
