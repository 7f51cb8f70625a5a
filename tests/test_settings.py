"""Every setting of every choice in conf/, with values it may not have."""

import math
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src.hints import Count, Devices, GreyLevels, Momentum, Positive, Seed, describe
from src.running.cli import explain
from src.settings import SEARCH, WrongSetting, check, check_foreign
from src.signatures import defines, signature
from tests.conftest import ROOT

GROUPS = ["augmentation", "backbone", "dataset", "experiment", "head", "logger", "method", "optimizer", "protocol"]
GROUPS += ["schedule", "trainer"]
NO_SETTINGS = {"augmentation", "save_dir", "params"}  # what constructors take besides
CHOICES = [f"{group}={path.stem}" for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
NEEDED = {"dataset=folder": ["dataset.root=images"], "backbone=timm": ["backbone.name=resnet18"]}


@cache
def composed(choice: str, *overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [choice, *NEEDED.get(choice, []), "run_dir=runs/x", *overrides])
    return OmegaConf.to_container(config, resolve=True)


def plain(choice: str = "method=invariant_spreading", *overrides: str) -> dict[str, Any]:
    return dict(deepcopy(composed(choice, *overrides)))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for name, member in node.items():
            yield from leaves(member, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, node


def put(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[name] = value
    return config


@pytest.mark.parametrize("choice", CHOICES)
def test_what_conf_offers_is_allowed(choice: str) -> None:
    check(plain(choice))


@pytest.mark.parametrize("method", [choice for choice in CHOICES if choice.startswith("method=")])
def test_every_experiment_goes_with_every_method(method: str) -> None:
    for experiment in (choice for choice in CHOICES if choice.startswith("experiment=")):
        check(plain(experiment, method))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_setting_has_a_type(choice: str) -> None:
    """So a new method, dataset or network whose constructor has none is noticed here."""
    config = plain(choice)
    for key, _ in leaves(config):
        if not key.endswith(("_target_", "_partial_")):
            with pytest.raises(WrongSetting, match=re.escape(key)):
                check(put(plain(choice), key, {"neither": ["fish", {"nor": math.nan}]}))


EDGES = st.one_of(
    st.sampled_from([None, True, False, "", " ", "no", "maybe", "abc", "../x", "a/b", "~", "ö", "1e3", "a\nb", "\0"]),
    st.sampled_from([0, 1, 2, -1, 10**9, 10**18, 10**400, 0.0, 0.5, 1.5, -0.5, 1e-300, 1e300]),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.text(max_size=5),
    st.integers(),
    st.floats(),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3)), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.just({"_target_": "os.system", "command": "true"}),
    st.lists(st.just({"_target_": "os.system", "command": "true"}), min_size=1, max_size=2),
)


def kind(value: Any) -> Any:
    return {int: "number", float: "number"}.get(type(value), type(value))


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(choice=st.sampled_from(CHOICES), place=st.integers(0, 10**6), value=EDGES)
def test_any_value_is_allowed_and_sane_or_told_in_one_line(choice: str, place: int, value: Any) -> None:
    config = plain(choice)
    keys = [(key, default) for key, default in leaves(config) if not key.endswith("_target_")]
    key, default = keys[place % len(keys)]
    try:
        check(put(config, key, value))
    except WrongSetting as error:
        said = explain(error)
    else:
        said = ""
    if said:
        assert len(said.splitlines()) == 1
        assert len(said) < 600
        assert key.split(".counts")[0] in said, "of STL-10's counts all are named"
        return
    if key.endswith("_partial_"):
        assert value is True
    for member in value if isinstance(value, list) else [value]:
        assert not isinstance(member, float) or math.isfinite(member)
        assert not member or not isinstance(member, dict), "nothing is made of it"
    free = "options" in key or default is None  # null, or what a loss of another library takes
    assert free or value is None or kind(value) == kind(default) or key == "trainer.devices" or "deterministic" in key
    assert isinstance(default, bool) == isinstance(value, bool) or free or "deterministic" in key


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("method.temperature", "abc", "must be a number above 0"),
        ("method.temperature", math.nan, "must be a number above 0"),
        ("method.stop_gradient", "no", "must be true or false"),
        ("method.negatives", "soft", "must be all, hard, easy or hard_published"),
        ("method.fraction", 0, "must be a number above 0 and of at most 1"),
        ("embedding_dim", 1.5, "must be a whole number of at least 1 and of at most 65536"),
        ("input.mean", 3, "must be three numbers from 0 to 255"),
        ("input.std", [1, 2, -1], "must be three numbers above 0"),
        ("augmentation.crop.scale", [2, 3], "must be two numbers, above 0 and at most 1"),
        ("augmentation.jitter.hue", 0.6, "must be a number of at least 0 and of at most 0.5"),
        ("augmentation.gray.p", 2, "must be a number of at least 0 and of at most 1"),
        ("dataset.name", "../../etc/x", "must be a name without a slash"),
        ("dataset.batch_size", 1, "must be a whole number of at least 2"),
        ("dataset.limit", 1000.0, "must be a whole number of at least 1 or null"),
        ("run_dir", "", "must be a text of one line, not empty"),
        ("run_dir", "a\nb", "must be a text of one line, not empty"),
        ("trainer.max_epochs", -1, "must be a whole number of at least 0"),
        ("trainer.devices", None, "must be a number of devices, a list of their numbers like [0,2], or auto for all"),
        ("backbone.width", 0, "must be a whole number of at least 1 and of at most 512"),
        ("protocol.metrics", None, "must be a group of settings"),
        ("protocol.metrics.knn.top", [], "must be a list of one or more whole numbers, each of at least 1"),
        ("method._target_", "os.system", "is not what method may be made of; conf/method says what is"),
        ("method._target_", "src.methods.supervised.find", "is not what method may be made of"),
        ("backbone._target_", "src.running.download.download", "is not what backbone may be made of"),
        ("augmentation.crop._target_", "src.methods.nce.NCE", "is not what augmentation may be made of"),
        ("optimizer._target_", "torch.optim.swa_utils.AveragedModel", "is not what optimizer may be made of"),
        ("callbacks.x", {"_target_": "builtins.exec"}, "is not what callbacks may be made of"),
        ("method.temprature", 1, "src.methods.invariant_spreading.InvariantSpreading takes only temperature"),
        ("method._args_", [1], "is not a setting"),
        ("trainer._partial_", True, "is not a setting"),
        ("else", 1, "is no setting"),
    ],
)
def test_what_is_wrong_is_said(key: str, value: Any, allowed: str) -> None:
    config = put(plain("dataset=cifar10"), key, value)
    with pytest.raises(WrongSetting) as caught:
        check(config)
    assert str(caught.value).startswith(f"{key}{'._target_' if isinstance(value, dict) else ''}=")
    assert allowed in str(caught.value)


def test_a_nested_object_is_no_way_around() -> None:
    """In a group, in a list, in what another library's loss takes."""
    evil = {"_target_": "shutil.copyfile", "src": "a", "dst": "b"}
    for key, value in (
        ("method.options", {"distance": evil}),
        ("method.options", {"several": [[evil]]}),
        ("method.loss", evil),
        ("callbacks.last", evil),
        ("callbacks.last", [evil]),
        ("trainer.plugins", [evil]),
    ):
        with pytest.raises(WrongSetting):
            check(put(plain("method=supervised"), key, value))


def test_missing_settings_are_named() -> None:
    for key in ("method.temperature", "dataset.batch_size", "input", "protocol.metrics.knn"):
        config = plain()
        *groups, name = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        del node[name]
        if key == "protocol.metrics.knn":
            check(config)  # a metric less is a protocol of its own
        else:
            with pytest.raises(WrongSetting, match=f"{key} is missing"):
                check(config)


def test_several_mistakes_are_told_at_once() -> None:
    config = put(put(plain(), "seed", -1), "compile", "maybe")
    with pytest.raises(WrongSetting, match=r"seed=-1: .*\(wrong too: compile"):
        check(config)


@pytest.mark.parametrize("dataset", ["cifar10", "stl10", "cub200", "products", "cars196"])
def test_somebodys_run_fetches_only_what_conf_does(dataset: str) -> None:
    config = plain(f"dataset={dataset}")
    check_foreign(config)
    key = next(name for name in ("url", "urls") if name in config["dataset"])
    config["dataset"][key] = "http://evil.example/x" if key == "url" else ["http://evil.example/x"]
    check(config)
    with pytest.raises(WrongSetting, match="dataset fetches"):
        check_foreign(config)


def test_types_in_words() -> None:
    assert describe(Positive) == "a number above 0"
    assert describe(Count | None) == "a whole number of at least 1 or null"
    assert describe(Momentum) == "a number of at least 0 and below 1"
    assert describe(Seed) == "a whole number of at least 0 and below 4294967296"
    assert describe(GreyLevels) == "three numbers from 0 to 255"
    assert describe(Devices).startswith("a number of devices")


def test_signatures_are_those_of_the_code() -> None:
    """What is read from the source is what Python sees: parameters, and which have no default."""
    import importlib
    import inspect

    files = [path for group in GROUPS for path in (ROOT / "conf" / group).glob("*.yaml")]
    targets = {name for path in files for name in re.findall(r"_target_: (src\.\S+)", path.read_text())}
    assert len(targets) > 30
    for target in targets:
        module, name = target.rsplit(".", 1)
        made = getattr(importlib.import_module(module), name)
        found = signature(target)
        own = inspect.signature(made).parameters.values()
        named = {p.name for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        assert defines(target)
        assert found.hints.keys() >= {n for n in named if n not in NO_SETTINGS}, target
        needed = {p.name for p in own if p.default is p.empty and p.name in named}
        assert needed - NO_SETTINGS <= found.required, target


def test_a_name_that_is_only_imported_is_not_defined() -> None:
    assert defines("src.methods.nce.NCE")
    for target in (
        "src.methods.nce.MemoryBank",
        "src.backbones.inception.download",
        "src.nowhere.X",
        "os.system",
        "src",
    ):
        assert not defines(target)


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = "import sys, src.settings, src.hints; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_names_of_files_may_have_odd_spaces() -> None:
    """As some systems write them; a line break would make two lines of a message."""
    plain: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "search.yaml"))
    asked = {key: value for key, value in plain.items() if key not in ("defaults", "hydra", "cache_dir")}
    asked |= {"index": "index", "cache_dir": "cache"}
    check(asked | {"query": "Screenshot 3.15.12\u202fPM \U0001f469\u200d\U0001f4bb.png"}, SEARCH)
    for query in ("a\u2028b", "a\x00b"):
        with pytest.raises(ValueError, match="must be a text of one line"):
            check(asked | {"query": query}, SEARCH)
