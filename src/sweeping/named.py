"""Sweeps by name: `sweep=table7` stands for the runs that conf/sweep/table7.yaml lists."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from src import settings
from src.running.cli import settled

# Overrides as one would type them: of all its runs, and in each row of some, which may have several values a setting.
CONTENT: settings.Group = {"sweep": {"common": str, "rows": Sequence[str]}}


def expand(config: Any, loader: Any, arguments: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of each run: every combination of the values given, for each row of the sweeps that are named.

    What is typed comes last, and a row's settings give way to it: those of the same key, and of a group that is chosen
    anew all that it said of the group. Rows that come to the same are one run.

    Args:
        config: Hydra's composed multirun config.
        loader: Hydra's, which composes.
        arguments: typed, `sweep=NAME` among them for a sweep by name; several values name several.

    Raises:
        ValueError: a sweep is not what one may be.
        HydraException: there is no such sweep, or an override can't be read.
    """
    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides(list(arguments))
    naming = [override for override in overrides if override.key_or_group == "sweep"]
    typed = [override for override in overrides if override not in naming]
    rows: list[list[Override]] = [[]] if not naming else []
    for (choice,) in _combinations(naming) if naming else ():
        content = _read(config, loader, choice)
        for row in content["rows"]:
            rows.append(parser.parse_overrides(shlex.split(f"{content['common']} {row}")))
    runs: list[tuple[str, ...]] = []
    for row in rows:
        runs += [tuple(run) for run in _combinations([*_giving_way(row, typed), *typed]) if tuple(run) not in runs]
    return runs


def _read(config: Any, loader: Any, choice: str) -> Any:
    content = {"sweep": settled(loader.load_sweep_config(config, [choice]).sweep)}
    settings.check(content, CONTENT)
    return content["sweep"]


def _giving_way(row: Iterable[Override], typed: Sequence[Override]) -> Iterator[Override]:
    keys = {override.key_or_group for override in typed}
    for own in row:
        if not any(own.key_or_group == key or own.key_or_group.startswith(f"{key}.") for key in keys):
            yield own


def _combinations(overrides: list[Override]) -> list[list[str]]:
    (batch,) = BasicSweeper.split_arguments(overrides, None)
    return batch
