"""The one check that holds every setting to its type and range, and every name to what a config may make.

Nothing heavy is imported: a mistake is told at once.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Interval, Len

from src.hints import (
    Accelerator,
    Betas,
    Count,
    Devices,
    Dimension,
    GreyDeviations,
    GreyLevels,
    Momentum,
    NonNegative,
    Pixels,
    Plain,
    Positive,
    Repository,
    Seed,
    Text,
    Whole,
    describe,
)
from src.signatures import ROOT, Signature, defines, signature

Group = Mapping[str, Any]

# By key; a group of settings is a dict, an empty one says itself by `_target_` what it makes, as its members may.
TRAIN: Group = {
    "seed": Seed,
    "embedding_dim": Dimension,
    "compile": bool,
    "graph": bool,
    "cache_dir": Text,
    "run_dir": Text,
    "sweep_dir": Text | None,
    "input": {"size": Pixels, "mean": GreyLevels, "std": GreyDeviations},
    "recipe": {
        "pool": Literal["average", "average_max", "pyramid"],
        "positives": Literal["self", "nearest"],
        "stop_gradient": bool,
        "lr": Positive,
        "milestones": Sequence[Count],
        "factors": Sequence[Positive],
    },
    "head": {"hidden": Sequence[Dimension], "orthogonal": bool},
    "decay": Literal["all", "weights"],
    "ema": Momentum | None,
    "microbatch": Count | None,
    "whitening": Dimension | None,
    "mirror": bool,
    "protocol": {
        "gallery": bool,
        "disjoint": bool,
        "space": Literal["embedding", "pooled"],
        "monitor": Text,
        "metrics": {},
        "final": {},
    },
    **{name: {} for name in ("optimizer", "schedule", "trainer", "logger", "callbacks")},
    **{name: {} for name in ("augmentation", "backbone", "dataset", "method")},
}
EVALUATE: Group = {
    "run": Text,
    "checkpoint": Literal["last", "best"],
    "accelerator": Accelerator,
    "cache_dir": Text,
    "protocol": Mapping[str, Any],  # checked as part of the run's
}
EMBED: Group = {
    "run": Text,
    "images": Text,
    "out": Text,
    "checkpoint": Literal["last", "best"],
    "space": Literal["embedding", "pooled"],
    "accelerator": Accelerator,
    "precision": Literal["auto", "32-true", "bf16-mixed"] | None,
    "format": Literal["npy", "safetensors", "parquet"],
}
DUPLICATES: Group = {
    "index": Text,
    "against": Text | None,
    "threshold": Annotated[float, Interval(ge=-1, le=1)] | Literal["auto"],
    "run": Text | None,
    "accelerator": Accelerator,
    "format": Literal["table", "csv", "jsonl"],
    "html": Text | None,
}
SERVE: Group = {
    "index": Text,
    "port": Annotated[int, Interval(ge=0, le=65535)],
    "k": Annotated[int, Interval(ge=1, le=100)],
    "run": Text | None,
    "accelerator": Accelerator,
}
EXPORT: Group = {
    "run": Text,
    "format": Literal["onnx", "safetensors", "torch"],
    "out": Text | None,
    "checkpoint": Literal["last", "best"],
    "space": Literal["embedding", "pooled"],
    "int8": bool,
    "push": Repository | None,
    "cache_dir": Text,
}
Indices = Annotated[Text | Annotated[Sequence[Text], Len(1)], "an index, or a list of them like [A,B]"]
SEARCH: Group = {
    "index": Indices,
    "query": Text,
    "k": Count,
    "rows": Annotated[Sequence[Whole], Len(1)] | None,
    "run": Text | None,
    "accelerator": Accelerator,
    "format": Literal["table", "csv", "jsonl"],
    "html": Text | None,
    "approximate": bool,
    "cache_dir": Text,
}
PLUGINS = {  # of Hydra: it takes them only by a name of its package of plugins
    "hydra_plugins.src.Grid": "src.sweeping.sweepers.Grid",
    "hydra_plugins.src.Search": "src.sweeping.search.Search",
    "hydra_plugins.src.Local": "src.sweeping.launchers.Local",
    "hydra_plugins.src.Slurm": "src.sweeping.slurm.Slurm",
    "hydra_plugins.src.Ray": "src.sweeping.cluster.Ray",
}
FETCHED = ("url", "urls", "archive", "checksum")  # of a dataset: what comes from where
# What others' constructors take of ours: their own hints say little of what is sane.
OTHERS: Mapping[str, Group] = {
    "pytorch_lightning.Trainer": {
        "max_epochs": Whole,
        "accelerator": Accelerator,
        "devices": Devices,
        "num_nodes": Count,
        "precision": Literal["auto", "32-true", "bf16-mixed", "16-mixed"],
        "check_val_every_n_epoch": Count,
        "log_every_n_steps": Count,
        "deterministic": bool | Literal["warn"],
        "sync_batchnorm": bool | Literal["auto"],
        "enable_progress_bar": bool,
    },
    "pytorch_lightning.strategies.DDPStrategy": {"broadcast_buffers": bool},
    "pytorch_lightning.loggers.TensorBoardLogger": {"name": str, "version": str},
    "torch.optim": {
        "lr": Positive,
        "momentum": Momentum,
        "betas": Betas,
        "weight_decay": NonNegative,
        "nesterov": bool,
    },
}
# What may be made, by group, beside what conf/ names there. To make an object is to call something, so a config, which
# may be a stranger's, can name nothing else.
FAMILIES = {
    "optimizer": r"torch\.optim\.[A-Z]\w*",
    "callbacks": r"pytorch_lightning\.callbacks\.[A-Z]\w*",
    "logger": r"pytorch_lightning\.loggers\.[A-Z]\w*",
}


class WrongSetting(ValueError):
    """A setting is not what it may be; the message has its key, its value and what is allowed."""


def check(config: Group, hints: Group = TRAIN) -> None:
    """Hold a resolved config, in plain dicts, to `hints`.

    Raises:
        WrongSetting: names the first setting that is wrong, and the others' keys.
    """
    wrong = list(_check_group("", config, hints))
    if wrong:
        keys = list(dict.fromkeys(re.split("=| is missing", line)[0] for line in wrong))
        raise WrongSetting(wrong[0] + f" (wrong too: {', '.join(keys[1:6])})" * (len(keys) > 1))


def check_foreign(config: Group) -> None:
    """Hold the config of somebody's run to all that `check` does, and to fetching nothing that conf/ does not fetch.

    Raises:
        WrongSetting: names the first setting that is wrong.
    """
    check(config)
    ours = [yaml.safe_load(path.read_text())["dataset"] for path in (ROOT / "conf" / "dataset").glob("*.yaml")]
    fetched = {name: config["dataset"][name] for name in FETCHED if name in config["dataset"]}
    if fetched and not any(fetched == {name: own[name] for name in FETCHED if name in own} for own in ours):
        raise WrongSetting(f"dataset fetches {_shown(fetched)}, which conf/dataset does not know")


def check_options(key: str, options: Group) -> None:
    """Hold the options of one of our plugins of Hydra, which say by `_target_` what they make, to what it takes.

    Raises:
        WrongSetting: names the first that is wrong.
    """
    hints = signature(PLUGINS[options["_target_"]]).hints
    for line in (line for name in hints for line in _check_value(f"{key}.{name}", options[name], hints[name])):
        raise WrongSetting(line)


def _check_group(prefix: str, group: Any, hints: Group) -> Iterator[str]:
    if not isinstance(group, Mapping):
        yield f"{prefix.removesuffix('.')}={_shown(group)}: must be a group of settings"
        return
    yield from (f"{prefix}{name} is missing" for name in hints if name not in group)
    for name, value in group.items():
        key, hint = f"{prefix}{name}", hints.get(name, {})
        if not isinstance(hint, Mapping):
            yield from _check_value(key, value, hint)
        elif hint:
            yield from _check_group(f"{key}.", value, hint)
        elif name in hints and not isinstance(value, Mapping):
            yield f"{key}={_shown(value)}: must be a group of settings"
        elif name not in hints:
            yield f"{key}={_shown(value)}: is no setting"
        else:
            yield from _check_any(key, value, plain=False)


def _check_any(key: str, value: Any, plain: bool) -> Iterator[str]:
    """A group that says by `_target_` what it makes, a list or group of such, null, or where allowed a plain value."""
    if isinstance(value, Mapping) and "_target_" in value:
        yield from _check_object(key, value)
    elif isinstance(value, Mapping):
        for name, member in value.items():
            yield from _refuse(key, name, member) or _check_any(f"{key}.{name}", member, plain)
    elif isinstance(value, list):
        for number, member in enumerate(value):
            yield from _check_any(f"{key}[{number}]", member, plain)
    elif plain:
        yield from _check_value(key, value, Plain)
    elif value is not None:
        yield f"{key}={_shown(value)}: must be null or a group of settings"


def _check_object(key: str, group: Group) -> Iterator[str]:
    room, target = key.split(".")[0], str(group["_target_"])
    if target not in _named(room) and not re.fullmatch(FAMILIES.get(room, "$"), target):
        yield f"{key}._target_={_shown(target)}: is not what {room} may be made of; conf/{room} says what is"
        return
    takes = _takes(target)
    yield from (f"{key}.{name} is missing" for name in sorted(takes.required - group.keys()))
    for name, value in group.items():
        setting = f"{key}.{name}"
        if name == "_target_" or (name == "_partial_" and value is True and room == "optimizer"):
            continue
        if refused := _refuse(key, name, value):
            yield from refused
        elif name in takes.hints and not (isinstance(value, Mapping) and "_target_" in value):
            yield from _check_value(setting, value, takes.hints[name])
            if isinstance(value, Mapping | list):  # what is inside must not make anything either
                yield from _check_any(setting, value, plain=True)
        elif name in takes.hints or takes.takes_others:
            yield from _check_any(setting, value, plain=not defines(target))
        else:
            yield f"{setting}={_shown(value)}: {target} takes only {', '.join(takes.hints)}"


def _refuse(key: str, name: Any, value: Any) -> list[str]:
    """Hydra's own words (`_args_`, `_partial_`, …) are not a config's to say."""
    return [f"{key}.{name}={_shown(value)}: is not a setting"] if str(name).startswith("_") else []


def _check_value(key: str, value: Any, hint: Any) -> Iterator[str]:
    try:
        _adapter(hint).validate_python(value)
    except ValueError:
        yield f"{key}={_shown(value)}: must be {describe(hint)}"


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


@cache
def _takes(target: str) -> Signature:
    if defines(target):
        return signature(target)
    return Signature(OTHERS.get("torch.optim" if target.startswith("torch.optim.") else target, {}), takes_others=True)


@cache
def _named(room: str) -> set[str]:
    """The targets that the project's own configs name."""
    files = [*(ROOT / "conf" / room).glob("*.yaml"), ROOT / "conf" / "train.yaml"]
    return {target for file in files for target in re.findall(r"_target_: (\S+)", file.read_text())}


def _shown(value: Any) -> str:
    names = {"None": "null", "True": "true", "False": "false"}
    text = str(value) if isinstance(value, str) else names.get(str(value), str(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
