"""Networks as graphs: the same vectors, of any number of images."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from src.backbones.airbench import Airbench
from src.backbones.head import Head
from src.backbones.imagenet import from_timm, from_torchvision
from src.backbones.inception import GoogLeNet
from src.backbones.resnet import resnet18, resnet50
from src.embedder import Encoder, load
from src.exporting.graphs import FILES, TOLERANCE, check, describe, open_graph, quiet, trace, write
from tests.conftest import ROOT

NETWORKS: dict[str, Any] = {
    "resnet18": (lambda: resnet18(8), 32),
    "resnet50, the corner pooled": (lambda: resnet50(4, pool=3), 32),
    "airbench, grids of parts that overlap": (lambda: Airbench((8, 16, 16), "pyramid"), 64),
    "inception, a pyramid": (lambda: GoogLeNet("pyramid"), 227),
    "torchvision's resnet18": (lambda: from_torchvision("resnet18", None, pretrained=False), 64),
    "timm's vit": (lambda: from_timm("test_vit", None, pretrained=False), 160),
}


@pytest.fixture(autouse=True)
def _needs_the_extra() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra export is not installed")


def encoder_of(name: str, pooled: bool = False) -> Encoder:
    """Of what is pooled, the mirror images too."""
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    network = make()
    head = None if pooled else Head(network.num_features, 16)
    encoder = Encoder(network, head, size, [120, 110, 100], [60, 61, 62], mirror=pooled)
    return encoder.eval().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_vectors_of_any_number_of_images(tmp_path: Path, name: str, format: str) -> None:
    if "timm" in name:
        pytest.importorskip("timm", reason="the extra timm is not installed")
    encoder = encoder_of(name, pooled=name == "resnet18")
    path = tmp_path / FILES[format]
    write(encoder, path)
    encode = open_graph(path)
    images = torch.randint(0, 256, (5, encoder.size, encoder.size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        for count in (1, 2, 5):
            expected = encoder(images[:count]).numpy()
            np.testing.assert_allclose(encode(images[:count].numpy()), expected, atol=1e-5)
    assert not np.allclose(expected[0], expected[1], atol=1e-5), "of vectors all alike, nothing could be told"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert str(ROOT).encode() not in path.read_bytes(), "nobody needs to know where it was made"


def test_onnx_says_what_it_takes_and_gives(tmp_path: Path) -> None:
    import onnxruntime

    write(encoder_of("resnet18"), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["N", 32, 32, 3])
    assert (made.name, made.type, made.shape) == ("embeddings", "tensor(float)", ["N", 16])


class Undecided(torch.nn.Module):
    """Its graph depends on what it sees."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_a_network_without_a_graph_is_told() -> None:
    encoder = Encoder(Undecided(), None, 8, [0, 0, 0], [1, 1, 1]).eval()
    with pytest.raises(ValueError, match=r"no graph \(torch.export: .*use format=safetensors"):
        trace(encoder)


def test_another_network_is_refused(tmp_path: Path, trained: Path) -> None:
    embedder = load(trained, accelerator="cpu", precision="32-true")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    assert check(embedder.encode, embedder, images) == 0
    write(embedder.encoder, tmp_path / "model.onnx")
    assert check(open_graph(tmp_path / "model.onnx"), embedder, images) <= TOLERANCE
    with torch.no_grad():
        embedder.encoder.get_parameter("head.linear.bias").add_(0.05)
    with pytest.raises(ValueError, match=r"away from the run's, more than 1e-04: nothing was written"):
        check(open_graph(tmp_path / "model.onnx"), embedder, images)
    with pytest.raises(ValueError, match=r"is nan away"):
        check(lambda part: np.full((len(part), 128), np.nan, np.float32), embedder, images)


def test_what_is_done_to_images_beforehand(trained: Path) -> None:
    embedder = load(trained, accelerator="cpu")
    embedder.side = 47  # as a dataset of larger images keeps them
    described = json.loads(json.dumps(describe(embedder)))
    assert described["steps"][-1] == {"do": "crop", "top": 8, "left": 8, "height": 32, "width": 32}
    image = np.random.default_rng(0).integers(0, 256, (1, 47, 47, 3), dtype=np.uint8)
    np.testing.assert_array_equal(embedder.encode(image), embedder.encode(image[:, 8:40, 8:40]))
    assert described["in_the_graph"] == {"mean": [77.84] * 3, "std": [95.89] * 3, "mirror": False}


def test_quiet_is_over_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        logging.getLogger("x").warning("inside")
    logging.getLogger("x").warning("afterwards")
    assert caplog.messages == ["afterwards"]
