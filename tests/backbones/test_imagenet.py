import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from src.assemble import check_size
from src.backbones.imagenet import Pooled, _give_up_soon, from_timm, from_torchvision
from tests.conftest import Server

FEATURES = {"resnet18": 512, "resnet50": 2048, "googlenet": 1024}


@pytest.mark.parametrize("name", FEATURES)
def test_pooled_features(name: Any) -> None:
    network = from_torchvision(name, None, pretrained=False)
    assert network.num_features == FEATURES[name]
    assert network(torch.randn(2, 3, 224, 224)).shape == (2, FEATURES[name]), "in training mode too"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_of_weights(tmp_path: Path, suffix: str) -> None:
    whole = torchvision.models.resnet18().eval()
    path = tmp_path / f"net.{suffix}"
    if suffix == "pth":
        torch.save(whole.state_dict(), path)
    else:
        save_file(whole.state_dict(), path)
    network = from_torchvision("resnet18", str(path), pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(whole.fc(network(images)), whole(images))


def test_googlenet_is_the_same_network_wherever_its_weights_come_from(tmp_path: Path) -> None:
    """Torchvision's are of images in another range, and its file has two classifiers besides."""
    whole = torchvision.models.googlenet(weights=None, transform_input=True, init_weights=False).eval()
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    network = from_torchvision("googlenet", str(tmp_path / "net.pth"), pretrained=True).eval()
    bare = from_torchvision("googlenet", None, pretrained=False).eval()  # as a checkpoint fills it
    bare.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(whole.fc(network(images)), whole(images))
        assert torch.equal(bare(images), network(images))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_torchvision("resnet18", str(tmp_path / "none.pth"), pretrained=True)
    (tmp_path / "broken.pth").write_bytes(b"x")
    save_file(torchvision.models.resnet18().state_dict(), tmp_path / "other.safetensors")
    for file in ("broken.pth", "other.safetensors"):
        with pytest.raises(ValueError, match=rf"backbone.weights=.*{file} does not fit"):
            from_torchvision("resnet50", str(tmp_path / file), pretrained=True)


def test_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    network = from_timm("resnet10t", None, pretrained=False)
    assert isinstance(network, Pooled)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, network.num_features)
    whole = timm.create_model("resnet10t").eval()
    save_file(whole.state_dict(), tmp_path / "net.safetensors")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        ours = from_timm("resnet10t", str(tmp_path / "net.safetensors"), pretrained=True).eval()(images)
        torch.testing.assert_close(ours, whole.forward_head(whole.forward_features(images), pre_logits=True))
    other = from_timm("mobilenetv3_small_050", None, pretrained=False).eval()  # a layer behind its pooling
    assert other(torch.randn(1, 3, 64, 64)).shape == (1, other.num_features)
    other.num_features -= 1
    with pytest.raises(ValueError, match=r"does not suit the network \(it makes features of \(1024,\), not 1023\)"):
        check_size(other, 64)
    with pytest.raises(ValueError, match=r"backbone.name=nonsense"):
        from_timm("nonsense", None, pretrained=False)
    with pytest.raises(FileNotFoundError, match="no such file"):
        from_timm("resnet10t", str(tmp_path / "none.pth"), pretrained=True)
    with pytest.raises(ValueError, match=r"^input.size=32 or one of dataset.view_sizes does not suit .*224"):
        check_size(from_timm("vit_tiny_patch16_224", None, pretrained=False), 32)


def test_a_hub_that_is_out_of_reach_is_not_asked_again_and_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    _give_up_soon()
    assert "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    _give_up_soon()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
