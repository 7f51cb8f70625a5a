import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from src.backbones.inception import CLASSIFIERS, GoogLeNet, LocalResponseNorm
from src.backbones.inception import inception as published
from src.backbones.weights import read_weights
from tests.conftest import Server
from tests.shared import shared

MEAN = torch.tensor([122.7717, 115.9465, 102.9801]).view(3, 1, 1)


def inception(weights: str) -> GoogLeNet:
    return published(weights, pretrained=True, cache_dir="unused", pool="average")


def caffe_weights() -> dict[str, Tensor]:
    """Random weights of the right shapes under Caffe's names, with a classifier beside them."""
    names = {
        name.replace("conv1_", "conv1/").replace("conv2_", "conv2/").replace(".", "/", name.count(".") - 1): tensor
        for name, tensor in GoogLeNet().state_dict().items()
    }
    return names | {"loss3/classifier.weight": torch.zeros(10, 4), "loss3/classifier.bias": torch.zeros(10)}


@pytest.mark.parametrize("channels", [7, 64, 192])
def test_local_response_norm_is_torchs(channels: int) -> None:
    images = torch.randn(2, channels, 9, 9) * 300
    ours, theirs = LocalResponseNorm(channels)(images), nn.LocalResponseNorm(5, 1e-4, 0.75, 1)(images)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_local_response_norm_of_large_numbers_in_float16() -> None:
    """Whose squares float16 does not have."""
    norm, images = LocalResponseNorm(64), torch.randn(2, 64, 9, 9) * 2000
    found = norm(images.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), norm(images), rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("pool", ["average", "average_max"])
def test_pooling(pool: Any) -> None:
    network, images = published(None, pretrained=False, cache_dir="unused", pool=pool).eval(), torch.randn(2, 3, 96, 96)
    seen: list[Tensor] = []
    network.last_relu.register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    with torch.no_grad():
        pooled = network(images)
    pixels = seen[-1].flatten(2)
    assert pixels.shape == (2, 1024, 9)
    expected = pixels.mean(2) + (pixels.max(2).values if pool == "average_max" else 0)
    torch.testing.assert_close(pooled, expected)


def test_a_pyramid_has_the_means_of_the_maps_from_4a_on() -> None:
    network, images = GoogLeNet("pyramid").eval(), torch.randn(2, 3, 96, 96)
    means: list[Tensor] = []
    for name in ("4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        module = network.get_submodule(f"inception_{name}")
        module.register_forward_hook(lambda _, inputs, output: means.append(output.flatten(2).mean(2)))
    with torch.no_grad():
        found = network(images)
    assert [mean.shape[1] for mean in means] == [512, 512, 512, 528, 832, 832, 1024]
    assert found.shape == (2, network.num_features) == (2, 4752)
    torch.testing.assert_close(found, torch.cat(means, 1))
    assert network.state_dict().keys() == GoogLeNet().state_dict().keys()


@pytest.mark.parametrize("size", [224, 227])
def test_shapes_and_parameters(size: int) -> None:
    network = GoogLeNet().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 5_973_552
    with torch.inference_mode():
        assert network(torch.randn(1, 3, size, size)).shape == (1, 1024)


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(tensor: Tensor, legacy: bool) -> bytes:
    """A BlobProto with a packed shape, or with the four old dimensions and its numbers one by one."""
    if not legacy:
        dims = b"".join(varint(dim) for dim in tensor.shape)
        return message(7, message(1, dims)) + message(5, tensor.numpy().astype("<f4").tobytes())
    shape = [1] * (4 - tensor.dim()) + list(tensor.shape)
    head = b"".join(varint(field << 3) + varint(dim) for field, dim in zip((1, 2, 3, 4), shape, strict=True))
    return head + b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in tensor.flatten().tolist())


def caffemodel(weights: dict[str, Tensor], legacy: bool) -> bytes:
    layers = sorted({name.rsplit(".", 1)[0] for name in weights})
    content = message(1, b"GoogleNet")
    for layer in layers:
        blobs = [blob(weights[f"{layer}.{part}"], legacy) for part in ("weight", "bias")]
        name_field, blobs_field, field = (4, 6, 2) if legacy else (1, 7, 100)
        kind = varint(5 << 3) + varint(4) if legacy else message(2, b"Convolution")
        content += message(
            field, message(name_field, layer.encode()) + kind + b"".join(message(blobs_field, b) for b in blobs)
        )
    return content + message(100, message(1, b"relu"))


@pytest.mark.parametrize("kind", ["npz", "safetensors", "caffemodel", "legacy"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    weights = caffe_weights()
    if kind == "legacy":
        weights = {name: tensor for name, tensor in weights.items() if name.startswith(("conv1/", "conv2/", "loss3"))}
    path = tmp_path / f"net.{kind.replace('legacy', 'caffemodel')}"
    if kind == "npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in weights.items()})  # type: ignore[arg-type]
    elif kind == "safetensors":
        save_file(weights, path)
    else:
        path.write_bytes(caffemodel(weights, legacy=kind == "legacy"))
    read = read_weights(path)
    assert read.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(read[name].reshape(tensor.shape), tensor, rtol=0, atol=0)
    if kind == "legacy":
        return
    network = inception(str(path))
    assert torch.equal(network.conv1_7x7_s2.weight, weights["conv1/7x7_s2.weight"].flip(1)), "BGR to RGB"
    module = network.get_submodule("inception_4c.5x5_reduce")
    assert torch.equal(next(module.parameters()), weights["inception_4c/5x5_reduce.weight"])


def test_published_weights_are_downloaded_once_and_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = caffe_weights()
    server.files["net.caffemodel"] = caffemodel(weights, legacy=False)
    monkeypatch.setattr("src.backbones.inception.URL", f"{server.url}/net.caffemodel")
    with pytest.raises(OSError, match=r"has the checksum sha1:.*backbone.weights=PATH.*backbone.pretrained=false"):
        published(None, pretrained=True, cache_dir=str(tmp_path), pool="average")
    checksum = f"sha1:{hashlib.sha1(server.files['net.caffemodel']).hexdigest()}"
    monkeypatch.setattr("src.backbones.inception.CHECKSUM", checksum)
    for _ in range(2):
        network = published(None, pretrained=True, cache_dir=str(tmp_path), pool="average")
        assert torch.equal(network.conv2_3x3.weight, weights["conv2/3x3.weight"])
    assert len(server.asked) == 2
    scratch = published(None, pretrained=False, cache_dir=str(tmp_path), pool="average")
    assert not torch.equal(scratch.conv2_3x3.weight, weights["conv2/3x3.weight"])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        inception(str(tmp_path / "none.npz"))
    for name, content in (("a.pth", b"x"), ("a.npz", b"x"), ("a.safetensors", b"x"), ("a.caffemodel", b"\x0a\xff")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"backbone.weights=.*{name}"):
            inception(str(tmp_path / name))
    weights = caffe_weights()
    (tmp_path / "half.caffemodel").write_bytes(caffemodel(weights, legacy=False)[:-1000])
    with pytest.raises(ValueError, match=r"half.caffemodel is damaged"):
        inception(str(tmp_path / "half.caffemodel"))
    weights["extra/layer.weight"] = weights.pop("conv2/3x3.weight")
    weights["inception_3a/1x1.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "other.safetensors")
    expected = (
        r"not BVLC GoogLeNet: missing \['conv2_3x3.weight'\].*unknown \['extra.layer.weight'\].*inception_3a.1x1.bias"
    )
    with pytest.raises(ValueError, match=expected):
        inception(str(tmp_path / "other.safetensors"))


def test_the_published_weights_recognise_photographs() -> None:
    """Through ImageNet's own classifier, fed by our features."""
    path = shared("weights/bvlc_googlenet.npz")
    network, weights = inception(str(path)).eval(), read_weights(path)
    assert {name for name in weights if name.startswith(CLASSIFIERS)} == {
        "loss3/classifier.weight",
        "loss3/classifier.bias",
    }
    photographs = (
        torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2).float()
    )
    images = functional.interpolate(photographs[..., 40:420], (227, 227), mode="bilinear", antialias=True) - MEAN
    with torch.inference_mode():
        features = network(images)
        scores = functional.linear(
            features, weights["loss3/classifier.weight"].flatten(1), weights["loss3/classifier.bias"]
        )
    # A Chinese temple: ImageNet's monastery and palace.
    assert {663, 698} <= set(scores[0].topk(5).indices.tolist())
    assert features.min() >= 0
    # The same through torch's own normalisation.
    network.norm1, network.norm2 = (nn.LocalResponseNorm(5, 1e-4, 0.75, 1) for _ in range(2))  # type: ignore[assignment]
    with torch.inference_mode():
        torch.testing.assert_close(network(images), features, rtol=1e-4, atol=1e-4)
