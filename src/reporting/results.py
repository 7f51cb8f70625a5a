"""Results of finished runs: found, held to their form, and grouped by protocol and by setting."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.running import runs
from src.scores import NAME, SPACES, VALIDATION

Result = Mapping[str, Any]
# Settings that two runs may differ in and be one run made twice; and those without being two experiments.
COPIED = (*runs.ASIDE, "callbacks.pictures", "callbacks.progress")
ASIDE = (*COPIED, "seed", "dataset.seed")
# Which images a dataset consists of; its other settings say how they are read.
IMAGES = ("split", "test_fraction", "resample", "skip_broken", "limit", "validation")


@dataclass(frozen=True)
class Protocol:
    """Runs that are measured alike, so that their numbers may stand in one column.

    Args:
        facts: what is measured how, in words.
        settings: the runs of each setting, which differ in nothing but the seed.
    """

    facts: Mapping[str, str]
    settings: Mapping[str, Sequence[Result]]

    @property
    def results(self) -> list[Result]:
        return [result for group in self.settings.values() for result in group]

    @property
    def space(self) -> str:
        """The one that decides what is best: `embedding` or `pooled`."""
        return self.facts["deciding space"]

    @property
    def other(self) -> str:
        """The space that decides nothing."""
        return SPACES[SPACES.index(self.space) - 1]

    @property
    def headline(self) -> str:
        """The monitored score, of the test images."""
        return self.facts["best epoch by"].removeprefix(VALIDATION)


def find_results(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Every finished run in `folders` and below, by path, each with its `folder`; and what was left out, a line each.

    Left out are files that no run wrote, and all but the first of runs with one config and seed, which are copies.
    """
    paths = sorted({path for folder in folders for path in folder.rglob("results.json")})
    found: dict[str, dict[str, Any]] = {}
    left_out = []
    for path in paths:
        try:
            results = runs.read_results(path.parent)
            check_results(results)
            runs.bring_up_to_date(results["config"])
            settings = list(runs.telling(results["config"], COPIED).items())
        except (OSError, ValueError, RecursionError) as error:
            left_out.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        first = found.setdefault(json.dumps(settings, default=str), results | {"folder": str(path.parent)})
        if first["folder"] != str(path.parent):
            left_out.append(f"{path.parent} has the config and the seed of {first['folder']}")
    return list(found.values()), left_out


def check_results(results: Mapping[str, Any]) -> None:
    """Raise a ValueError where something is not as `src.reporting.record.collect` writes it: the first such thing."""
    from pydantic import ValidationError

    from src.reporting.form import Record

    try:
        Record.model_validate(results)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}, as no run writes it") from None


def chosen_on(protocol: Mapping[str, Any]) -> str:
    """What the best epoch of a run is chosen on; runs from before `dataset.validation` do not say."""
    return "held-out training images" if protocol.get("validation") else "the test images"


def settings_of(result: Result) -> dict[str, Any]:
    """A run's config by full keys, without what makes no other experiment."""
    return runs.telling(result["config"], ASIDE)


def group_by_protocol(results: Sequence[Result]) -> list[Protocol]:
    """Runs that are measured alike together, in the order of the first of each."""
    groups: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(facts_of(result).items()), []).append(result)
    return [Protocol(dict(facts), group_by_setting(members)) for facts, members in groups.items()]


def facts_of(result: Result) -> dict[str, str]:
    """What must be the same for two numbers to be compared: the data, the measures and the budget, in words."""
    protocol, dataset = result["protocol"], result["config"]["dataset"]
    root = f" {dataset.get('root')}" if dataset["name"] == "folder" else ""
    data = {f"dataset.{key}": str(dataset[key]) for key in IMAGES if dataset.get(key) and key != "limit"}
    measures = runs.flat({**protocol["metrics"], **(protocol.get("final") or {})})
    return {
        "dataset": f"{dataset['name']}{root}",
        "training images": f"{dataset['limit']:,}" if dataset.get("limit") else "all",
        **data,
        "test images": protocol["query"],
        "gallery": protocol.get("gallery") or "the test images themselves",
        # Of one that was stopped, those that it had.
        "epochs": str(int(result["last"]["epoch"]) or result["config"]["trainer"]["max_epochs"]),
        "preset": protocol.get("preset") or "none",
        "deciding space": protocol["space"],
        "best epoch by": result["monitor"],
        "best epoch chosen on": chosen_on(protocol),
        **{key.removesuffix("._target_"): _short(key, value) for key, value in measures.items()},
    }


def _short(key: str, value: Any) -> str:
    """A setting in words; of what is made its name alone."""
    return str(value).rpartition(".")[2] if key.endswith("_target_") else str(value)


def differing(protocols: Sequence[Protocol]) -> list[str]:
    """The facts in which `protocols` are not all alike."""
    names = dict.fromkeys(name for protocol in protocols for name in protocol.facts)
    return [name for name in names if len({protocol.facts.get(name) for protocol in protocols}) > 1]


def group_by_setting(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs that differ in nothing but the seed together, under the settings in which the groups differ."""
    keys = [
        [(group, choice) for group, choice in result["choices"].items() if not group.startswith(ASIDE)]
        for result in results
    ]
    varied = {name for name, _ in set().union(*keys)} - {name for name, _ in set(keys[0]).intersection(*keys)}
    alike: dict[str, list[Result]] = {}
    for result in results:
        name = ", ".join(f"{group}={result['choices'].get(group)}" for group in result["choices"] if group in varied)
        alike.setdefault(name, []).append(result)
    groups: dict[str, list[Result]] = {}
    for name, members in alike.items():
        settings = [settings_of(result) for result in members]
        differ = sorted(key for key in set().union(*settings) if len({str(s.get(key)) for s in settings}) > 1)
        for result, setting in zip(members, settings, strict=True):
            parts = [name] * bool(name) + [f"{key}={setting.get(key)}" for key in differ]
            groups.setdefault(", ".join(parts) or result["choices"]["method"], []).append(result)
    return groups


def curves_of(results: Sequence[Result], name: str) -> dict[int, list[float]]:
    """The values of `name` at each epoch that all runs have it of, a value a run."""
    curves = [{int(row["epoch"]): row[name] for row in result["history"] if name in row} for result in results]
    epochs = sorted(set(curves[0]).intersection(*curves))
    return {epoch: [curve[epoch] for curve in curves] for epoch in epochs}


def scores_of(protocol: Protocol) -> list[str]:
    """The scores of the deciding space, the headline first; those of held-out images begin with `validation/`."""
    names = dict.fromkeys(name for result in protocol.results for name in (*result["untrained"], *result["last"]))
    kept = [name for name in names if not _is_aside(name) or name == "train/alignment"]
    return sorted(kept, key=lambda name: name != protocol.headline)


def _is_aside(name: str) -> bool:
    match = NAME.fullmatch(name)
    return name == "epoch" or name.startswith("train/") or match is None or match[2] is not None
