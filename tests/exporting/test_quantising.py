"""Networks in 8 bits."""

import tarfile
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from src.backbones.inception import GoogLeNet, load_caffe_weights
from src.datamodules.images import open_rgb, to_square
from src.embedder import Encoder
from src.exporting.graphs import open_graph, quiet, write
from src.exporting.quantising import quantise, score_of
from tests.exporting.test_graphs import encoder_of
from tests.shared import shared


def test_a_score_is_called_as_the_run_calls_it() -> None:
    for monitor in ("knn/top1", "embedding/knn/top1"):
        config = OmegaConf.create({"protocol": {"monitor": monitor, "space": "embedding"}})
        assert [score_of(config, space) for space in ("embedding", "pooled")] == ["knn/top1", "pooled/knn/top1"]


def similarity(tmp_path: Path, images: np.ndarray) -> Any:
    """Of the vectors of each image in 32 and in 8 bits."""
    vectors, small = (open_graph(tmp_path / f"{file}.onnx")(images) for file in ("model", "small"))
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-5)
    return (vectors * small).sum(1)


@pytest.mark.parametrize(("name", "left"), [("resnet18", 0), ("inception, a pyramid", 2)])
def test_every_layer_that_learned_is_in_8_bits(tmp_path: Path, name: str, left: int) -> None:
    """Left are the convolutions with a constant, of Inception's two normalisations."""
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    encoder = encoder_of(name)
    write(encoder, tmp_path / "model.onnx")
    quantise(tmp_path / "model.onnx", tmp_path / "small.onnx", encoder)
    kinds = [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node]
    assert kinds.count("ConvInteger") == sum(isinstance(layer, torch.nn.Conv2d) for layer in encoder.modules())
    assert kinds.count("MatMulInteger") == 1
    assert kinds.count("Conv") == left
    images = np.random.default_rng(0).integers(0, 256, (4, encoder.size, encoder.size, 3), dtype=np.uint8)
    assert similarity(tmp_path, images).min() > 0.98


def test_photographs_in_8_bits_are_where_they_were(tmp_path: Path) -> None:
    """With the sums of squares of its normalisation in 8 bits too, it is three times further off and more."""
    quantization = pytest.importorskip("onnxruntime.quantization", reason="the extra export is not installed")
    network = GoogLeNet()
    load_caffe_weights(network, shared("weights/bvlc_googlenet.npz"))
    encoder = Encoder(network, None, 227, [122.7717, 115.9465, 102.9801], [1, 1, 1]).eval()
    with tarfile.open(shared("data/cars196_half.tar")) as archive:
        files = islice((member for member in archive if member.isfile()), 8)
        opened = [open_rgb(archive.extractfile(member), member.name) for member in files]  # type: ignore[arg-type]
    images = np.stack([to_square(image, 227, "bilinear") for image in opened])
    write(encoder, tmp_path / "model.onnx")
    quantise(tmp_path / "model.onnx", tmp_path / "small.onnx", encoder)
    ours = similarity(tmp_path, images)
    assert ours.min() > 0.99
    with quiet():
        quantization.quantize_dynamic(
            tmp_path / "model.onnx", tmp_path / "small.onnx", weight_type=quantization.QuantType.QUInt8
        )
    assert (1 - similarity(tmp_path, images)).mean() > 3 * (1 - ours).mean()
