"""Loggers of a run that goes on."""

import csv
from pathlib import Path

import pytest
import wandb

from src.running.loggers import csv_logger, finishing, wandb_logger


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_rows_from_before_a_kill_stay(tmp_path: Path) -> None:
    csv_logger(tmp_path).log_metrics({"loss": 3.0, "epoch": 0}, step=9)  # never finalised
    assert [row["loss"] for row in rows(tmp_path)] == ["3.0"]
    again = csv_logger(tmp_path)
    assert [row["loss"] for row in rows(tmp_path)] == ["3.0"], "also if it is killed before it has logged anything"
    again.log_metrics({"loss": 2.0, "epoch": 1, "knn": 50.0}, step=19)
    again.finalize("success")
    found = [(row["step"], row["loss"], row["knn"]) for row in rows(tmp_path)]
    assert found == [("9", "3.0", ""), ("19", "2.0", "50.0")]


def test_a_run_killed_while_its_rows_are_put_aside(tmp_path: Path) -> None:
    csv_logger(tmp_path).log_metrics({"loss": 3.0}, step=9)
    (tmp_path / "metrics.csv").rename(tmp_path / ".metrics.csv")
    csv_logger(tmp_path)
    assert [row["loss"] for row in rows(tmp_path)] == ["3.0"]


def test_a_run_goes_on_in_its_own_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        with finishing(wandb_logger(tmp_path / folder, "project", None, None, None, ())) as logger:
            assert logger is not None
            ids.append(wandb.run.id if wandb.run else None)
    assert ids[0] == ids[1] != ids[2]
    assert (tmp_path / "a" / "wandb_id").read_text() == ids[0]
    assert len(list((tmp_path / "a" / "wandb").glob("offline-run-*"))) == 2, "two parts that one sync brings together"


def test_a_sweep_is_a_group_of_runs_named_after_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "sweep" / "method=nce,seed=1"
    folder.mkdir(parents=True)
    with finishing(wandb_logger(folder, "project", None, str(folder.parent), None, ())):
        assert wandb.run is not None
        assert (wandb.run.group, wandb.run.name) == ("sweep", "method=nce,seed=1")
