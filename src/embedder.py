"""A finished run's network, to be used: `embed = load("runs/…")`, then `embed(images)` is `(N, D)`."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from hydra.utils import get_class, instantiate
from numpy.typing import NDArray
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from src.augmentations.functional import clean
from src.backbones.head import Head
from src.backbones.mirror import features_of
from src.backbones.whitening import Whitening
from src.datamodules.images import read_rgb, to_rgb, to_square
from src.running import checkpoints, runs
from src.running.hardware import recall_precision, select_accelerator

Space = Literal["embedding", "pooled"]
One = str | Path | Image.Image | NDArray[np.uint8]
DEVICES = {"gpu": "cuda", "mps": "mps", "cpu": "cpu"}
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Encoder(nn.Module):
    """Backbone, head and normalisation in one: squares of pixels to points on the sphere.

    Args:
        backbone: images to pooled features `(B, F)`.
        head: pooled features to embeddings, learned or fitted; None leaves them as they are.
        size: side S that the backbone takes, in pixels; of larger images the middle is seen.
        mean, std: of each channel, in grey levels 0 to 255.
        mirror: whether features are the mean of an image's and of its mirror image's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: Head | Whitening | None,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        mirror: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.size, self.mirror = backbone, head, size, mirror
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """RGB `(B, H, W, 3)` uint8, H and W at least S, to unit-norm `(B, D)` float32."""
        features = features_of(self.backbone, clean(images, self.size, self.mean, self.std), self.mirror)
        return self.head(features) if self.head else functional.normalize(features.float(), dim=1)


class Embedder:
    """What `load` returns: images as people have them to unit-norm vectors, by the preprocessing of the run.

    Attributes:
        encoder: the network, in evaluation mode on its device.
        run: where it came from.
        checkpoint: which of its checkpoints, `last`, `best` or `exported`; and `trained`, of which epoch, in words.
        space: `embedding` or `pooled`.
        dim: D, the length of a vector.
        side: of the squares that images are resized to, in pixels; the network sees the middle of them.
        resample: the filter they are resized by.
        batch_size: images the network sees at once.
        precision: as Lightning calls it.
        fingerprint: the same for the same weights, preprocessing and space, so that vectors can be compared.
    """

    def __init__(
        self,
        encoder: Encoder,
        dim: int,
        config: DictConfig,
        run: Path,
        checkpoint: tuple[str, str],
        space: Space,
        accelerator: str,
        precision: str,
    ) -> None:
        self.run, self.space, self.dim = run, space, dim
        self.checkpoint, self.trained = checkpoint
        self.side = _side(config)
        self.resample = str(config.dataset.get("resample", "bilinear"))
        self.batch_size, self.precision = int(config.dataset.eval_batch_size), precision
        self.device = torch.device(DEVICES[accelerator])
        self.fingerprint = _fingerprint(encoder, self.side, self.resample)
        self.encoder = encoder.eval().to(self.device).to(memory_format=torch.channels_last)

    def __call__(self, images: One | Iterable[One]) -> NDArray[np.float32]:
        """Embed one image, or many of any sizes.

        Args:
            images: each a file, an image of Pillow's, or RGB `(H, W, 3)` or grey `(H, W)` uint8.

        Returns:
            `(N, D)`, each row of unit norm.

        Raises:
            OSError: a file is missing or can't be decoded; the message names it.
            TypeError, ValueError: something else than an image.
            FloatingPointError: the network's output is not finite.
        """
        alone = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)
        vectors, batch = [np.empty((0, self.dim), np.float32)], []
        for image in [images] if alone else images:  # type: ignore[union-attr]
            batch.append(self.read(image))  # type: ignore[arg-type]
            if len(batch) == self.batch_size:
                vectors.append(self.encode(np.stack(batch)))
                batch = []
        if batch:
            vectors.append(self.encode(np.stack(batch)))
        return np.concatenate(vectors)

    def read(self, image: One) -> NDArray[np.uint8]:
        """One image as the run's dataset stores it: RGB `(side, side, 3)`. Errors as of calling."""
        if isinstance(image, str | Path):
            return read_rgb(Path(image).expanduser(), self.side, self.resample)
        if isinstance(image, np.ndarray):
            grey = image.ndim == 2
            if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] == 3)) or not image.size:
                raise ValueError(
                    f"an image must be uint8 (H, W, 3), RGB from 0 to 255, or (H, W), grey: got {image.dtype} "
                    f"{image.shape}"
                )
            image = Image.fromarray(image)
        if not isinstance(image, Image.Image):
            raise TypeError(f"an image must be a path, a PIL image or a numpy array: got {type(image).__name__}")
        return to_square(to_rgb(image), self.side, self.resample)

    def encode(self, squares: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The network alone: what `read` gave, `(B, side, side, 3)`, to `(B, D)`, of unit norm.

        All at once, or half of them where the device has not the memory: it may be smaller than the run's.
        """
        autocast = torch.autocast(self.device.type, AUTOCAST.get(self.precision), self.precision in AUTOCAST)
        try:
            with torch.inference_mode(), autocast:
                images = torch.from_numpy(squares).to(self.device, non_blocking=True)
                vectors: NDArray[np.float32] = self.encoder(images).float().cpu().numpy()
        except torch.OutOfMemoryError:
            if len(squares) == 1:
                raise
            return np.concatenate([self.encode(half) for half in np.array_split(squares, 2)])
        if not np.isfinite(vectors).all():
            raise FloatingPointError(f"the network of {self.run} has outputs that are not finite")
        return vectors


def load(
    run: str | Path,
    checkpoint: Literal["last", "best"] = "last",
    space: Space = "embedding",
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "32-true", "bf16-mixed"] | None = None,
) -> Embedder:
    """The network of a run, with the preprocessing that it was evaluated with; nothing in the run's files is executed.

    On the machine of the run its vectors are, bit for bit, those that its evaluation saw, where the same images come
    in the same batches.

    Args:
        run: a run's folder, one of its checkpoints, or the folder of an exported one (`src.export`).
        checkpoint: of a folder, which.
        space: `embedding`, what the loss saw or the whitening made, or `pooled`, the features before the head.
        accelerator: where to compute.
        precision: float32 or bfloat16 where layers allow it; `auto` takes what is fast here, None what the run had,
            if the accelerator can.

    Raises:
        FileNotFoundError: there is no run, or no such checkpoint.
        ValueError: the run's files are damaged, or name what this project does not make.
    """
    folder, which = runs.locate(Path(run).expanduser(), checkpoint)
    config = runs.load_config(folder)
    state, described = checkpoints.read_weights(folder, which)
    runs.forget_initial_weights(config)
    backbone = instantiate(config.backbone)
    num_features = int(backbone.num_features)
    head: Head | Whitening = (
        Whitening(num_features, config.whitening)
        if config.whitening
        else Head(num_features, config.embedding_dim, **config.head)
    )
    try:
        for part, network in (("backbone", backbone), ("head", head)):
            network.load_state_dict(checkpoints.part_of(state, part))
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the weights in {folder} are of another network than its config: {reason}") from error
    chosen = select_accelerator(accelerator)
    seen = config.input
    used = head if space == "embedding" else None
    encoder = Encoder(backbone, used, seen.size, [*seen.mean], [*seen.std], config.mirror)
    dim = head.dim if space == "embedding" else num_features
    computed = recall_precision(precision or config.trainer.precision, chosen)
    return Embedder(encoder, dim, config, folder, described, space, chosen, computed)


def _side(config: DictConfig) -> int:
    """Of the images as the run's dataset stores them; one of a single size says it in its class."""
    if size := config.dataset.get("size"):
        return int(size)
    dataset: Any = get_class(config.dataset._target_)  # takes long to import
    return int(dataset.side or config.input.size)


def _fingerprint(encoder: Encoder, side: int, resample: str) -> str:
    digest = hashlib.sha256(f"{side} {resample} {encoder.size} {[*encoder.mean]} {[*encoder.std]}".encode())
    digest.update(b" mirror" * encoder.mirror)  # nothing without: indices made before there was such stay valid
    state: dict[str, Any] = encoder.state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().cpu().numpy())
    return digest.hexdigest()[:32]
