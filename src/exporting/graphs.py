"""A run's network as one graph, from pixels to unit-norm vectors: ONNX, or a program of torch.export."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.export import Dim, ExportedProgram

from src.embedder import Embedder, Encoder
from src.exporting.images import Pixels

FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
INPUT, OUTPUT = "images", "embeddings"
TOLERANCE = 1e-4  # of a coordinate of a unit-norm vector, between float32 here and there

Encode = Callable[[Pixels], NDArray[np.float32]]  # uint8 (N, S, S, 3) to unit-norm (N, D)


@contextmanager
def quiet() -> Iterator[None]:
    """Without a line for each thing that is made simpler, or that can't be."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def trace(encoder: Encoder) -> ExportedProgram:
    """The graph of `encoder`, for any number of images.

    Raises:
        ValueError: the network can't be traced.
    """
    example = torch.zeros(2, encoder.size, encoder.size, 3, dtype=torch.uint8)
    try:
        with torch.no_grad():
            program = torch.export.export(encoder, (example,), dynamic_shapes={INPUT: {0: Dim("N", min=1)}})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the run's network has no graph (torch.export: {reason}): use format=safetensors") from error
    for graph in (module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)):
        for node in graph.graph.nodes:
            node.meta.pop("stack_trace", None)  # it has the paths of this machine
    return program


def write(encoder: Encoder, path: Path) -> None:
    """Write the graph with its weights to `path`, `.onnx` or `.pt2`.

    Raises:
        ValueError: the network can't be traced, or has what ONNX has not.
    """
    program = trace(encoder)
    if path.suffix == ".pt2":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No complete tensor found")  # of weights that are channels last
            torch.export.save(program, path)
        return
    names: Any = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_shapes": {INPUT: {0: "N"}}}
    try:
        with quiet():
            torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False, **names)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"format=onnx can't say what the run's network does ({reason}): use format=torch") from error


def open_graph(path: Path) -> Encode:
    """The graph in `path` on the CPU: a `.pt2` by torch, ONNX by onnxruntime with as many threads as torch takes."""
    if path.suffix == ".pt2":
        network = torch.export.load(path).module()

        def by_torch(images: Pixels) -> NDArray[np.float32]:
            with torch.inference_mode():
                vectors: NDArray[np.float32] = network(torch.from_numpy(images)).numpy()
            return vectors

        return by_torch

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def by_onnxruntime(images: Pixels) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
        return vectors

    return by_onnxruntime


def check(encode: Encode, embedder: Embedder, images: Pixels) -> float:
    """The largest difference of any coordinate to the run's own, for one of the images, for three, and for all.

    Raises:
        ValueError: it is above `TOLERANCE`.
    """
    parts = [images[:1], images[:3], images]
    difference = max(float(np.abs(encode(part) - embedder.encode(part)).max()) for part in parts)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the exported network is {difference:.1e} away from the run's, more than {TOLERANCE:.0e}: nothing was "
            "written; use another format or another version of its packages"
        )
    return difference


def describe(embedder: Embedder) -> dict[str, Any]:
    """What has to be done to an image before the graph sees it, and what comes out: `preprocessing.json`."""
    size, corner = embedder.encoder.size, round((embedder.side - embedder.encoder.size) / 2)
    return {
        "steps": [
            {"do": "turn", "by": "EXIF orientation"},
            {"do": "lay on white", "what": "transparent pixels"},
            {"do": "convert", "to": "RGB of 8 bits"},
            {
                "do": "resize",
                "height": embedder.side,
                "width": embedder.side,
                "keep_aspect_ratio": False,
                "filter": embedder.resample,
                "antialias": True,
                "as": f"Pillow's Image.resize, Image.Resampling.{embedder.resample.upper()}",
            },
            {"do": "crop", "top": corner, "left": corner, "height": size, "width": size},
        ],
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["N", size, size, 3],
            "layout": "NHWC",
            "colour": "RGB",
        },
        "in_the_graph": {
            "mean": _plain(embedder.encoder.mean),
            "std": _plain(embedder.encoder.std),
            "mirror": embedder.encoder.mirror,
        },
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["N", embedder.dim],
            "unit_norm": True,
            "space": embedder.space,
        },
        "checkpoint": embedder.checkpoint,
        "trained": embedder.trained,
        "fingerprint": embedder.fingerprint,
    }


def _plain(channels: Tensor) -> list[float]:
    """The shortest numbers that are these in float32."""
    return [float(str(value)) for value in channels.numpy()]
