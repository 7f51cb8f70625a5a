"""Eight-bit weights and activations, and what they cost by the run's own protocol."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from src.datamodules.base import StoreDataModule
from src.embedder import Encoder
from src.exporting.graphs import Encode, quiet
from src.exporting.images import batches
from src.scores import bare_of, in_space


class Measured(NamedTuple):
    """The monitored score of the test images, in percent, and images a second of the network alone."""

    score: float
    speed: float


def quantise(path: Path, to: Path, encoder: Encoder) -> None:
    """Write the ONNX file `path` of `encoder` with its layers' weights in 8 bits; activations follow when it runs.

    Dynamic quantisation: each activation's range is that of the batch, so no calibration is needed, and no vector is
    independent of the images beside it. What multiplies by a constant, which no training has fitted to such a range,
    stays as it is: the sums of squares of Inception's normalisation would lose most of their digits.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    constants = {name for name, _ in encoder.named_buffers()}
    left = [node.name for node in onnx.load(path).graph.node if constants.intersection(node.input)]
    with quiet():  # unsigned weights, since onnxruntime's convolutions of integers take no signed ones
        quantize_dynamic(path, to, weight_type=QuantType.QUInt8, nodes_to_exclude=left)


def score_of(config: DictConfig, space: str) -> str:
    """What a run calls the score that it is monitored by, of vectors of `space`."""
    bare = bare_of(config.protocol.monitor)
    return bare if space == config.protocol.space else in_space(bare, space)


def measure(
    encoders: Mapping[str, Encode], config: DictConfig, datamodule: StoreDataModule, batch_size: int
) -> dict[str, Measured]:
    """Score each of `encoders` on all test images as the run was scored; they take turns, batch by batch."""
    name, _, score = bare_of(config.protocol.monitor).partition("/")
    metric = instantiate(config.protocol.metrics[name])
    labels = {"query": datamodule.query_labels}
    if datamodule.gallery_labels is not None:
        labels["gallery"] = datamodule.gallery_labels
    vectors: dict[str, dict[str, list[Tensor]]] = {key: {which: [] for which in labels} for key in encoders}
    seconds = dict.fromkeys(encoders, 0.0)
    for which in labels:
        for batch in batches(datamodule, which, batch_size):
            for key, encode in encoders.items():
                start = time.perf_counter()
                found = encode(batch)
                seconds[key] += time.perf_counter() - start
                vectors[key][which].append(torch.from_numpy(found))
    measured, images = {}, sum(map(len, labels.values()))
    for key in encoders:
        metric.update(*(rows for which in labels for rows in (torch.cat(vectors[key][which]), labels[which])))
        measured[key] = Measured(float(metric.compute()[score]), images / seconds[key])
        metric.reset()
    return measured
