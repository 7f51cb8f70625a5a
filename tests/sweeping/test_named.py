"""A sweep by name is a list of runs, each of which composes; what is typed comes before what it says."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import open_dict

from src.reporting.paper import PAPER, quote
from src.running.cli import settled
from src.sweeping import plugins
from src.sweeping.jobs import make_jobs
from src.sweeping.named import expand
from tests.conftest import ROOT, Run
from tests.test_train import QUIET, results

NAMES = sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml"))


@pytest.fixture(scope="module")
def hydra() -> tuple[Any, Any]:
    """Hydra's multirun config of src.train, and what composes it."""
    setup_globals()
    plugins.register()
    loader = ConfigLoaderImpl(create_config_search_path(str(ROOT / "conf")))
    return loader.load_configuration("train", ["hydra.job.config_name=train"], RunMode.MULTIRUN), loader


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_a_sweep_composes(hydra: tuple[Any, Any], name: str) -> None:
    jobs = make_jobs(*hydra, expand(*hydra, [f"sweep={name}", "seed=1,2"]))
    head = (ROOT / "conf" / "sweep" / f"{name}.yaml").read_text().split("common:")[0]
    words = ["Four", "Five", "Six", "Nine"]
    said = {"Four": 4, "Five": 5, "Six": 6, "Nine": 9}[next(word for word in words if f"# {word} runs" in head)]
    assert len(jobs) == 2 * said
    assert {job.overrides[-1] for job in jobs} == {"seed=1", "seed=2"}


@pytest.mark.parametrize("table", range(1, 9))
def test_the_sweep_of_a_table_has_each_row_that_the_paper_ran(hydra: tuple[Any, Any], table: int) -> None:
    config, loader = hydra
    with PAPER.open(newline="") as file:
        rows = {
            (row["system"], row["metric"]) for row in csv.DictReader(file) if row["table"] == str(table) and row["run"]
        }
    runs = {}
    for overrides in expand(config, loader, [f"sweep=table{table}"]):
        composed = loader.load_sweep_config(config, list(overrides))
        choices = {name: choice for name, choice in composed.hydra.runtime.choices.items() if "hydra" not in name}
        with open_dict(composed):
            del composed["hydra"]
        runs[" ".join(overrides)] = {"config": settled(composed), "choices": choices}
    found = {(quoted.system, score) for scores in quote(runs).values() for score, quoted in scores.items()}
    assert found == rows


def test_what_is_typed_comes_before_what_a_sweep_says(hydra: tuple[Any, Any]) -> None:
    def runs(*arguments: str) -> list[tuple[str, ...]]:
        return expand(*hydra, list(arguments))

    base = "experiment=cifar10_paper"
    assert runs("sweep=table8") == [
        (base,),
        (base, "augmentation=none"),
        (base, "method.negatives=hard"),
        (base, "method.negatives=easy"),
    ]
    assert runs("sweep=table8", "experiment=cifar10_official", "logger=csv")[1] == (
        "augmentation=none",
        "experiment=cifar10_official",
        "logger=csv",
    )
    # A method that is chosen anew takes its options along, and rows that are then alike are one run.
    assert runs("sweep=table8", "method=nce") == [(base, "method=nce"), (base, "augmentation=none", "method=nce")]
    assert runs("sweep=table8", "method.temperature=0.2")[2] == (
        base,
        "method.negatives=hard",
        "method.temperature=0.2",
    )
    assert runs("seed=1,2", "method=nce") == [("seed=1", "method=nce"), ("seed=2", "method=nce")]
    # Several at once share what is the same.
    together = runs("sweep=table7,table8", "seed=1,2")
    assert len(together) == len(set(together)) == 2 * (5 + 3)


def test_what_is_no_sweep_is_named(hydra: tuple[Any, Any]) -> None:
    with pytest.raises(HydraException, match="Could not find 'sweep/table9'"):
        expand(*hydra, ["sweep=table9"])


def test_a_sweep_runs_and_goes_on(run: Run, tmp_path: Path) -> None:
    mine = ["dataset=digits", "method=untrained", *QUIET, f"sweep_dir={tmp_path}/sweep"]
    done = run("src.train", "-m", "sweep=table8", *mine)
    assert done.returncode == 0, done.stderr
    augmentations = [results(path.parent)["choices"]["augmentation"] for path in tmp_path.rglob("results.json")]
    assert sorted(augmentations) == ["full", "none"]
    again = run("src.train", "-m", "sweep=table8,figure3", *mine)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished before") == 2
    assert "started" not in again.stdout
    alone = run("src.train", "sweep=table8", *QUIET)
    assert alone.returncode == 1
    assert alone.stderr == "error: sweep=table8 is a list of runs: add -m\n"
    searched = run("src.train", "-m", "hydra/sweeper=optuna", "sweep=table8", *QUIET)
    assert "hydra/sweeper=optuna searches ranges" in searched.stderr
