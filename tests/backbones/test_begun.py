"""A network that begins with that of another run."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import nn

from src.assemble import assemble, make_backbone
from src.embedder import load
from src.running import checkpoints, runs
from src.running.cli import explain
from tests.conftest import Run
from tests.test_settings import plain

SMALL = {
    "resnet18": ["backbone.width=4"],
    "resnet50": ["backbone.width=4"],
    "airbench": ["backbone.widths=[4,4,4]"],
    "inception": [],
    "resnet18_imagenet": [],
    "timm": ["backbone.name=resnet10t"],
}


def configured(backbone: str, *overrides: str) -> DictConfig:
    return OmegaConf.create(plain(f"backbone={backbone}", *SMALL[backbone], *overrides))


def a_run(folder: Path, config: DictConfig) -> nn.Module:
    """A network of `config`, and the folder of a run that ended with it."""
    folder.mkdir(exist_ok=True)
    network: nn.Module = make_backbone(config, filled=True)
    runs.begin(folder, config)
    state = {f"backbone.{name}": weight for name, weight in network.state_dict().items()}
    save_file(state, folder / checkpoints.EXPORTED)
    return network


@pytest.mark.parametrize("backbone", SMALL)
def test_every_backbone_begins_with_a_run_of_its_own_kind(tmp_path: Path, backbone: str) -> None:
    if backbone == "timm":
        pytest.importorskip("timm", reason="the extra timm is not installed")
    expected = a_run(tmp_path, configured(backbone)).state_dict()
    config = configured(backbone, f"backbone.weights={tmp_path}")
    begun, filled = (make_backbone(config, filled).state_dict() for filled in (False, True))
    assert begun.keys() == expected.keys()
    assert all(torch.equal(begun[name], weight) for name, weight in expected.items())
    assert any(not torch.equal(filled[name], weight) for name, weight in expected.items()), "a checkpoint fills it"


def test_from_scratch_is_from_scratch(tmp_path: Path) -> None:
    expected = a_run(tmp_path, configured("inception"))
    config = configured("inception", f"backbone.weights={tmp_path}", "backbone.pretrained=false")
    scratch = make_backbone(config, filled=False)
    assert not torch.equal(scratch.conv2_3x3.weight, expected.conv2_3x3.weight)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_resnet_for_small_images_takes_a_file(tmp_path: Path, suffix: str) -> None:
    config = configured("resnet18", f"backbone.weights={tmp_path / f'net.{suffix}'}")
    state = make_backbone(config, filled=True).state_dict()
    (torch.save if suffix == "pth" else save_file)(state, tmp_path / f"net.{suffix}")
    begun = make_backbone(config, filled=False).state_dict()
    assert all(torch.equal(begun[name], weight) for name, weight in state.items())
    with pytest.raises(Exception, match=f"net.{suffix} does not fit"):
        make_backbone(OmegaConf.merge(config, {"backbone": {"width": 8}}), filled=False)  # type: ignore[arg-type]


def test_another_network_is_told_with_both_names(tmp_path: Path) -> None:
    a_run(tmp_path / "run", configured("resnet18"))
    for config, name in (
        (configured("resnet18", "backbone.width=8"), "resnet18(width=8"),
        (configured("inception"), "inception"),
        (configured("resnet18_imagenet"), "from_torchvision(name=resnet18)"),
    ):
        config.backbone.weights = str(tmp_path / "run")
        with pytest.raises(ValueError, match="choose the backbone of that run") as caught:
            make_backbone(config, filled=False)
        said = explain(caught.value)
        assert said.startswith(f"backbone.weights={tmp_path / 'run'}: its network is resnet18(width=4, ")
        assert f", not {name}" in said


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = configured("resnet18")
    for weights, message in (
        ("empty", "no run is there"),
        ("nowhere", "there is no such file"),
        ("empty/checkpoints/last.ckpt", "no run is there"),
    ):
        config.backbone.weights = str(tmp_path / weights)
        with pytest.raises(Exception, match=message) as caught:
            make_backbone(config, filled=False)
        assert f"backbone.weights={tmp_path / weights}: " in explain(caught.value)
    a_run(tmp_path / "run", config)
    (tmp_path / "run" / checkpoints.EXPORTED).write_bytes(b"damaged")
    config.backbone.weights = str(tmp_path / "run")
    with pytest.raises(ValueError, match=r"backbone.weights=.*model.safetensors is damaged"):
        make_backbone(config, filled=False)


@pytest.mark.parametrize("begun", [False, True])
def test_a_method_is_told_of_a_network_that_was_trained_before(cache: Path, trained: Path, begun: bool) -> None:
    few = ["dataset.limit=300", "protocol.metrics.knn.k=20", f"cache_dir={cache}"]
    weights = [f"backbone.weights={trained}"] if begun else []
    config = OmegaConf.create(plain("method=mom", *few, *weights))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assemble(config, 1)
    assert any("was not trained before" in str(warning.message) for warning in caught) != begun


def test_a_run_from_before_there_were_weights(tmp_path: Path, trained: Path) -> None:
    old = shutil.copytree(trained, tmp_path / "old")
    config: dict[str, Any] = yaml.safe_load((old / "config.yaml").read_text())
    del config["backbone"]["weights"]
    del config["graph"]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    assert load(old).fingerprint == load(trained).fingerprint
    (old / "results.json").unlink()
    runs.begin(old, runs.load_config(trained))  # it goes on with what conf/ says today
    network = instantiate(runs.load_config(old).backbone)
    assert network.num_features == 128


def test_a_run_on_top_of_another_and_without_it(run: Run, tmp_path: Path, trained: Path) -> None:
    """It starts from the features the other ended with and a new head; later nothing needs the other."""
    before = shutil.copytree(trained, tmp_path / "before")
    ended = json.loads((before / "results.json").read_text())
    options = [
        *("method=simclr", f"backbone.weights={before}", "dataset.limit=300", "protocol.metrics.knn.k=20"),
        *("trainer.precision=32-true", "callbacks.pictures=null", "logger=none", f"run_dir={tmp_path / 'run'}"),
    ]
    done = run("src.train", *options, "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    begun = json.loads((tmp_path / "run" / "results.json").read_text())["untrained"]
    compared = [name for name in begun if name.startswith("pooled/") and name in ended["last"]]
    assert {"pooled/knn/top1", "pooled/linear/svm", "pooled/geometry/rank"} <= {*compared}
    for name in compared:
        assert begun[name] == pytest.approx(ended["last"][name], rel=1e-6), name
    assert begun["geometry/rank"] != pytest.approx(ended["last"]["geometry/rank"], rel=1e-3)
    assert any(ended["untrained"][name] != pytest.approx(ended["last"][name]) for name in compared)

    shutil.rmtree(before)
    further = run("src.train", *options, "trainer.max_epochs=2")
    assert further.returncode == 0, further.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [row["epoch"] for row in results["history"]] == [0, 1, 2]
    again = run("src.evaluate", f"run={tmp_path / 'run'}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(f"{results['last']['knn/top1']:.4f}") >= 2
