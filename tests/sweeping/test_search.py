"""The search: what it draws from, goes on with, and what decides; its trials are short scripts, and once runs."""

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src.sweeping import search
from src.sweeping.jobs import Job
from src.sweeping.launchers import Local
from src.sweeping.search import STUDY, Search, distribution, open_study, spelled
from tests.conftest import Run
from tests.sweeping.test_launchers import Script

optuna = pytest.importorskip("optuna", reason="pip install '.[search]'")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

# As a run: an epoch at a time, with `progress.json` while it is held, until it is told to stop. Scores `score`.
EPOCHS = """
import os, pathlib, sys, time
from src.running import runs
folder, score = pathlib.Path(sys.argv[1]), float(sys.argv[2])
with (folder / "times").open("a") as times:
    times.write("x")
if os.environ["FAILS"]:
    sys.exit("error: no luck")
with runs.claimed(folder):
    scores = []
    for epoch in range(1, 21):
        scores.append([epoch, score])
        progress = {"epoch": epoch, "epochs": 20, "monitor": "validation/x", "scores": scores, "seconds_left": 1.0}
        runs.write_progress(folder, progress)
        if (folder / "stop").exists():
            break
        time.sleep(float(os.environ["PAUSE"]))
    runs.write_results(folder, {"last": {"epoch": epoch, "validation/x": score}, "monitor": "validation/x"})
"""


class Trial(Script):
    """Scores what its override `x=` says."""

    @property
    def command(self) -> list[str]:
        (score,) = (override[2:] for override in self.overrides if override.startswith("x="))
        return [sys.executable, "-c", EPOCHS, str(self.folder), score]


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A search of scripts: `trials(count, ranges…)` returns the study and the jobs that were drawn."""

    def call(
        count: int, *ranges: str, most: int = 1, prune: bool = False, fails: bool = False, pause: float = 0
    ) -> tuple[Any, list[Job]]:
        drawn: list[Job] = []

        def make(config: Any, loader: Any, batch: Sequence[Sequence[str]]) -> list[Job]:
            (overrides,) = batch
            return [Trial(tmp_path, tuple(overrides), trainer={"devices": 1, "accelerator": "cpu"})]

        def draw(sweep: Path, jobs: Sequence[Job]) -> None:
            drawn.extend(jobs)

        monkeypatch.setattr(search, "make_jobs", make)
        monkeypatch.setattr(search, "plan", draw)
        monkeypatch.setattr(search, "conclude", lambda sweep, ended: None)  # a table of runs
        monkeypatch.setenv("FAILS", "x" * fails)
        monkeypatch.setenv("PAUSE", str(pause))
        searching = Search(count, prune, 0)
        searching.config = OmegaConf.create({"dataset": {"validation": 0.1}})
        searching.loader = None
        searching.launcher = Local(most)
        searching.launcher.gpus = []
        searching.launcher.look_every = 0.05
        searching.sweep(list(ranges))
        return optuna.load_study(study_name="search", storage=storage(tmp_path)), drawn

    return call


def storage(sweep: Path) -> Any:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(sweep / STUDY)))


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ("interval(0.05,0.5)", FloatDistribution(0.05, 0.5)),
        ("tag(log,interval(0.001,0.1))", FloatDistribution(0.001, 0.1, log=True)),
        ("interval(1,9)", FloatDistribution(1, 9)),
        ("int(interval(1,9))", IntDistribution(1, 9)),
        ("tag(log,int(interval(1,9)))", IntDistribution(1, 9, log=True)),
        ("range(1,10,2)", IntDistribution(1, 9, step=2)),
        ("range(1,4)", IntDistribution(1, 3)),
        ("range(0.5,2,0.5)", CategoricalDistribution(["0.5", "1.0", "1.5"])),
        ("choice(all,hard)", CategoricalDistribution(["all", "hard"])),
        ("all,'a b',null,3", CategoricalDistribution(["all", "'a b'", "null", "3"])),
    ],
)
def test_what_a_range_is_drawn_from(given: str, drawn: Any) -> None:
    assert distribution(OverridesParser.create().parse_override(f"key={given}")) == drawn


def test_a_study_goes_on_draws_anew_and_refuses_other_settings(tmp_path: Path) -> None:
    ranges = {"x": FloatDistribution(0, 1)}
    draws = []
    for _ in range(3):
        study = open_study(tmp_path, ["a=1", "x=interval(0,1)"], 0, False)
        draws += [study.ask(ranges).params["x"] for _ in range(2)]
    assert len(set(draws)) == 6
    assert [trial.params["x"] for trial in open_study(tmp_path, ["x=interval(0,1)", "a=1"], 0, False).trials] == draws
    with pytest.raises(ValueError, match=r"holds a search of other settings \(a=1, a=2\): choose another sweep_dir"):
        open_study(tmp_path, ["a=2", "x=interval(0,1)"], 0, False)
    assert open_study(tmp_path / "other", [], 0, False).ask(ranges).params["x"] == draws[0], "by the seed"
    assert open_study(tmp_path / "third", [], 1, False).ask(ranges).params["x"] != draws[0]


def test_a_search_goes_on_until_it_has_its_trials(tmp_path: Path, trials: Any, capsys: Any) -> None:
    study, drawn = trials(2, "x=interval(0,90)")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert [trial.value for trial in study.trials] == [float(f"{trial.params['x']:.4g}") for trial in study.trials]
    study, more = trials(3, "x=interval(0,90)", "logger=none")
    assert (len(study.trials), len(more)) == (3, 1)
    best = max(study.trials, key=lambda trial: trial.value)
    assert f"best of 3 trials, {best.value:.2f}: " in capsys.readouterr().out
    assert [(job.folder / "times").read_text() for job in drawn + more] == ["x"] * 3
    study, none = trials(3, "x=interval(0,90)")
    assert (len(study.trials), none) == (3, [])
    with pytest.raises(ValueError, match="other settings"):
        trials(4, "x=interval(0,80)")


def test_an_open_trial_is_gone_on_with(tmp_path: Path, trials: Any) -> None:
    left = open_study(tmp_path, ["x=interval(0,90)"], 0, False).ask({"x": FloatDistribution(0, 90)})
    study, drawn = trials(2, "x=interval(0,90)", fails=True)
    assert f"x={left.params['x']:.4g}" in drawn[0].overrides
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING] * 2
    study, again = trials(2, "x=interval(0,90)")
    assert again == drawn
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2


def test_a_trial_whose_process_died_before_all_was_drawn(tmp_path: Path, trials: Any) -> None:
    open_study(tmp_path, ["x=interval(0,90)"], 0, False).ask()
    study, drawn = trials(1, "x=interval(0,90)")
    assert len(study.trials) == len(drawn) == 1
    assert study.trials[0].value == pytest.approx(study.trials[0].params["x"], rel=1e-3)


def test_a_trial_that_the_same_search_ends_elsewhere(tmp_path: Path, trials: Any) -> None:
    """It was started twice; the score of the first to tell stands."""
    study = open_study(tmp_path, ["x=interval(0,90)"], 0, False)
    left = study.ask({"x": FloatDistribution(0, 90)})

    def tell() -> None:
        while not list(tmp_path.glob("*/times")):
            time.sleep(0.01)
        study.tell(left, 7.0)

    other = threading.Thread(target=tell)
    other.start()
    found, drawn = trials(1, "x=interval(0,90)", pause=0.05)
    other.join()
    assert [trial.value for trial in found.trials] == [7.0]
    assert len(drawn) == 1


def test_a_number_is_short_and_in_its_range() -> None:
    assert spelled("x", 0.123456, FloatDistribution(0, 1)) == "x=0.1235"
    assert spelled("ema", 0.99998, FloatDistribution(0.999, 0.99999)) == "ema=0.99998"
    assert spelled("x", 12345678, IntDistribution(1, 10**9)) == "x=12345678"
    assert spelled("method", "nce", CategoricalDistribution(["nce"])) == "method=nce"


def test_the_same_proposal_runs_once(tmp_path: Path, trials: Any) -> None:
    study, drawn = trials(6, "x=range(1,3)", most=3, pause=0.02)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 6
    assert all(trial.value == trial.params["x"] for trial in study.trials)
    assert len({job.folder for job in drawn}) == 2
    assert all((job.folder / "times").read_text() == "x" for job in drawn)


def test_a_trial_below_the_median_is_ended_early(tmp_path: Path, trials: Any) -> None:
    before = open_study(tmp_path, ["x=interval(0,90)"], 0, True)
    for _ in range(5):  # as many as the pruner wants to have seen
        trial = before.ask({"x": FloatDistribution(0, 90)})
        for epoch in range(1, 21):
            trial.report(100.0, epoch)
        before.tell(trial, 100.0)
    study, (job,) = trials(6, "x=interval(0,90)", prune=True, pause=0.2)
    last = study.trials[-1]
    assert last.state == TrialState.PRUNED
    assert last.value == pytest.approx(last.params["x"], rel=1e-3)
    assert json.loads((job.folder / "results.json").read_text())["last"]["epoch"] < 20


SEARCH = (
    "hydra/sweeper=optuna",
    "dataset.limit=200",
    "protocol.metrics.knn.k=20",
    "input.size=16",
    "callbacks.pictures=null",
    "trainer.max_epochs=1",
)


def test_held_out_images_decide(run: Run, tmp_path: Path) -> None:
    places = ("logger=none", f"sweep_dir={tmp_path}/sweep", "hydra.launcher.jobs=2")
    options = ("hydra.sweeper.trials=2", "dataset.validation=0.1", "optimizer.lr=tag(log,interval(0.001,0.1))")
    done = run("src.train", "-m", *SEARCH, *options, *places)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/results.json")]
    assert {results["monitor"] for results in found} == {"validation/knn/top1"}
    study = optuna.load_study(study_name="search", storage=storage(tmp_path / "sweep"))
    assert sorted(trial.value for trial in study.trials) == sorted(r["last"]["validation/knn/top1"] for r in found)
    assert (
        f"best of 2 trials, {study.best_value:.2f}: optimizer.lr={study.best_params['optimizer.lr']:.4g}\n"
        in done.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset.validation=0.1"], "hydra/sweeper=optuna: give a range to search"),
        (["optimizer.lr=0.1,0.2"], "hydra/sweeper=optuna chooses by held-out images"),
        (["hydra.sweeper.trials=x", "seed=0,1"], "hydra.sweeper.trials=x: must be a whole number of at least 1"),
        (["dataset.validation=0.1", "optimizer.lr=interval(-1,0.1)"], "optimizer.lr=-1: must be a number above 0"),
        (["dataset.validation=0.1", "optimizer.momentum=interval(0.5,1.2)"], "optimizer.momentum=1.2: must be a num"),
        (["dataset.validation=0.1", "augmentation=full,no_grey"], "In 'train': Could not find 'augmentation/no_grey'"),
        (["dataset.validation=0.1", "seed=0,1", "hydra/launcher=ray"], "hydra.launcher.jobs=null: a search learns"),
    ],
)
def test_a_search_that_cannot_be(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("src.train", "-m", *SEARCH, "trainer.accelerator=cpu", *arguments, f"sweep_dir={tmp_path}/sweep")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "sweep").exists()
