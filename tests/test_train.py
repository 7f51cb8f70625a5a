"""The entry points as a user runs them, on real digits."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from src.embedder import load
from src.running import checkpoints
from src.running.hardware import select_precision
from tests.chaos import TIMES, differences, outcome
from tests.conftest import ROOT, Begin, Run

QUICK = (
    "dataset.limit=300",
    "backbone=resnet18_slim",
    "protocol.metrics.knn.k=20",
    "input.size=16",
    "callbacks.pictures=null",
    "trainer.max_epochs=1",
)
QUIET = (*QUICK, "logger=none")


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def learned(folder: Path) -> list[dict[str, float]]:
    """The history without what depends on the machine's mood."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in results(folder)["history"]]


def test_training_beats_the_untrained_network_and_is_scored_again_the_same(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few = ("input.size=24", "callbacks.pictures.images=200", "trainer.max_epochs=8")
    done = run("src.train", *few, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder)
    assert "W&B is offline; to upload this run: wandb sync" in done.stdout
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))

    found = results(folder)
    untrained, last, best = (found[name]["knn/top1"] for name in ("untrained", "last", "best"))
    assert last >= untrained + 7, "eight epochs are worth seven points of kNN and more"
    assert best >= last
    assert found["last"]["epoch"] == 8
    assert found["best"] == max(found["history"][1:], key=lambda row: row["knn/top1"])
    assert [row["epoch"] for row in found["history"]] == list(range(9))
    losses = [row["train/loss"] for row in found["history"][1:]]
    assert losses[-1] < 0.8 * losses[0]
    for row in found["history"][1:]:
        assert row["train/loss"] == pytest.approx(row["train/positive"] + row["train/negative"], rel=1e-5)
    assert found["protocol"]["metrics"]["knn"]["k"] == 200
    assert found["protocol"]["method"]["stop_gradient"] is True
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["config"]["seed"] == found["seed"] == 0
    assert found["images_per_s"] > 0
    seconds = [row["train/seconds"] for row in found["history"][1:]]
    assert seconds == sorted(seconds)
    assert found["wall_time_s"] > seconds[-1] > 8 * 1280 / found["images_per_s"] / 2
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    drawn = {(picture["kind"], picture["epoch"]) for picture in found["pictures"]}
    assert {("gallery", 0), ("gallery", 1), ("gallery", 8), ("failures", 8), ("map", 0), ("map", 8)} <= drawn
    assert ("similarity", 8) in drawn
    for picture in found["pictures"]:
        assert (folder / picture["png"]).read_bytes().startswith(b"\x89PNG")
        assert (folder / picture["svg"]).read_text().startswith("<?xml")
    finals = {"linear/svm", "linear/logistic", "similarity/AUC", "pooled/linear/svm", "pooled/similarity/overlap"}
    assert ["linear/svm" in row for row in found["history"]] == [True, *[False] * 7, True]
    assert finals <= found["last"].keys() & found["untrained"].keys() & found["intervals"].keys()
    assert found["last"]["probe/top1"] > 60, "what the embedding knows of the ten classes is linear, mostly"
    for name, (low, high) in found["intervals"].items():
        assert low <= found["last"][name] <= high
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]

    for checkpoint in ("last", "best"):
        again = run("src.evaluate", f"run={folder}", f"checkpoint={checkpoint}")
        assert again.returncode == 0, again.stderr
        for name in ("knn/top1", "knn/top5"):
            score = f"{found[checkpoint][name]:.4f}"
            assert re.search(rf"^{name} +{score}  .* to .*  results.json: {score}$", again.stdout, re.MULTILINE)

    before = (folder / "results.json").read_bytes()
    refused = run("src.train", *QUIET, f"run_dir={folder}")
    assert refused.returncode == 1
    assert "holds a finished run (results.json) of 8 epochs: choose another run_dir" in refused.stderr
    assert (folder / "results.json").read_bytes() == before


def test_held_out_images_decide_what_is_best(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    noisy = ["dataset.validation=0.02", "dataset.batch_size=16", "trainer.max_epochs=4"]  # the test images like epoch 1
    done = run("src.train", *QUICK, *noisy, "logger=csv", f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "digits: 300 training, 29 held-out and 360 test images" in done.stdout
    assert "of validation/knn/top1 (embedding), chosen on held-out training images" in done.stdout
    found = results(folder)
    assert found["monitor"] == "validation/knn/top1"
    assert found["protocol"]["validation"] == "29 of the training images"
    assert found["protocol"]["gallery"] == "300 training images"
    names = {f"{prefix}knn/top1" for prefix in ("", "pooled/", "validation/", "validation/pooled/")}
    assert all(names <= row.keys() for row in found["history"])
    assert names <= set((folder / "metrics.csv").read_text().splitlines()[0].split(","))
    assert found["best"] == max(found["history"][1:], key=lambda row: row["validation/knn/top1"])
    assert torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] + 1 == found["best"]["epoch"]
    again = run("src.evaluate", f"run={folder}", "checkpoint=best")
    assert again.returncode == 0, again.stderr
    for name in names:
        score = f"{found['best'][name]:.4f}"
        assert re.search(rf"^{name} +{score}  .* to .*  results.json: {score}$", again.stdout, re.MULTILINE), name


@pytest.mark.parametrize("whitening", [None, 20])
def test_what_is_scored_in_the_networks_place_is_scored_again_and_embedded_with(
    run: Run, tmp_path: Path, whitening: int | None
) -> None:
    """The average of the weights, and in the head's place a whitening, of images and their mirror images."""
    folder = tmp_path / "run"
    chosen = ["ema=0.9", "head=mlp", "head.hidden=[32]", f"whitening={whitening or 'null'}"]
    if whitening:  # and scored when its checkpoint is written already
        chosen += ["mirror=true", "trainer.check_val_every_n_epoch=2"]
    done = run("src.train", *QUIET, *chosen, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    said = int(re.search(r" ([\d,]+) parameters", done.stdout)[1].replace(",", ""))  # type: ignore[index]
    again = run("src.evaluate", f"run={folder}")
    score = f"{results(folder)['last']['knn/top1']:.4f}"
    assert re.search(rf"^knn/top1 +{score}  .* results.json: {score}$", again.stdout, re.MULTILINE), again.stdout
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    embedder = load(folder, accelerator="cpu")
    assert embedder.dim == (whitening or 128)
    encoder = embedder.encoder.state_dict()
    scored = {name.removeprefix("average."): value for name, value in state.items() if name.startswith("average.")}
    assert not torch.equal(scored["head.linear.weight"], state["head.linear.weight"])
    learned = [v for k, v in scored.items() if not re.search(r"running|num_batches", k)]
    assert said == sum(map(torch.numel, learned)), "the average is not counted besides"
    if whitening:
        scored = {name: value for name, value in scored.items() if not name.startswith("head.")}
        scored |= {f"head.{name}": state[f"whitening.{name}"] for name in ("weight", "bias")}
    assert encoder.keys() == scored.keys()
    assert all(torch.equal(value, scored[name]) for name, value in encoder.items())


@pytest.mark.parametrize("chosen", ["trainer.max_epochs=0", "method=untrained"])
def test_a_network_that_was_only_scored_can_be_used(run: Run, tmp_path: Path, chosen: str) -> None:
    folder = tmp_path / "run"
    arguments = [*QUIET, "whitening=20", chosen, f"run_dir={folder}"]
    done = run("src.train", *arguments)
    assert done.returncode == 0, done.stderr
    assert (folder / "curves.png").exists()
    again = run("src.evaluate", f"run={folder}")
    assert "last checkpoint of epoch 0, untrained; scores" in again.stdout, again.stderr
    score = f"{results(folder)['untrained']['knn/top1']:.4f}"
    assert re.search(rf"^knn/top1 +{score}  .* results.json: {score}$", again.stdout, re.MULTILINE), again.stdout
    assert load(folder, accelerator="cpu").dim == 20
    refused = run("src.train", *arguments, "trainer.max_epochs=2")
    assert refused.stderr.rstrip().endswith("holds a finished run (results.json) of 0 epochs: choose another run_dir")
    (folder / "results.json").unlink()  # as if killed just before
    assert run("src.train", *arguments).returncode == 0
    assert f"{results(folder)['last']['knn/top1']:.4f}" == score


def test_the_last_epoch_is_scored_whatever_the_interval(run: Run, tmp_path: Path) -> None:
    arguments = [*QUICK, "logger=none", "trainer.check_val_every_n_epoch=2", f"run_dir={tmp_path / 'run'}"]
    done = run("src.train", *arguments, "trainer.max_epochs=3")
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "run")
    assert ["knn/top1" in row for row in found["history"]] == [True, False, True, True]
    assert (found["last"]["epoch"], found["best"]["epoch"]) == (3, 2)


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = run("src.train", *QUIET, f"seed={seed}", f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert learned(tmp_path / "a") == learned(tmp_path / "b")
    assert learned(tmp_path / "a")[1]["train/loss"] != learned(tmp_path / "c")[1]["train/loss"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(run: Run, begin: Begin, tmp_path: Path, cache: Path) -> None:
    arguments = [*QUIET, "trainer.max_epochs=4"]
    assert run("src.train", *arguments, f"run_dir={tmp_path / 'whole'}").returncode == 0

    folder = tmp_path / "killed"
    started = begin("src.train", *arguments, f"run_dir={folder}", ISIF_CACHE=str(cache))
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    assert started.ended().returncode == -signal.SIGKILL
    assert not (folder / "results.json").exists()

    before = [(folder / name).read_bytes() for name in ("config.yaml", "overrides.json")]
    fewer = run("src.train", *arguments, "trainer.max_epochs=0", f"run_dir={folder}")
    assert f"trainer.max_epochs=0: the run in {folder} has come to epoch" in fewer.stderr
    assert "goes on from the last checkpoint" not in fewer.stdout
    assert [(folder / name).read_bytes() for name in ("config.yaml", "overrides.json")] == before
    other = run("src.train", *arguments, "optimizer.lr=0.1", f"run_dir={folder}")
    assert other.returncode == 1
    assert "unfinished run of another config (optimizer.lr: 0.03 became 0.1)" in other.stderr

    done = run("src.train", *arguments, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert f"going on from {folder}/checkpoints/last.ckpt" in done.stdout
    assert sum(leg["epochs"] for leg in results(folder)["legs"]) == 4
    assert len(results(folder)["legs"]) == 2
    assert results(folder)["wall_time_s"] == pytest.approx(sum(leg["seconds"] for leg in results(folder)["legs"]))
    assert learned(folder) == learned(tmp_path / "whole")


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    ("number", "status", "ranks"),
    [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1), (signal.SIGUSR1, 138, 1), (signal.SIGINT, 130, 2)],
)
def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, cache: Path, begin: Begin, number: signal.Signals, status: int, ranks: int
) -> None:
    settings = [*QUIET, "trainer.max_epochs=50", f"run_dir={tmp_path / 'run'}"]
    if ranks > 1:
        settings += ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "dataset.batch_size=64"]
    started = begin("src.train", *settings, ISIF_CACHE=str(cache))
    while not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists() and started.poll() is None:
        time.sleep(0.05)
    children = children_of(started.process.pid)
    started.send_signal(number)
    done = started.ended(60)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("Not finished"))
    going_on = line.split("goes on from the last checkpoint: ")[1]
    assert going_on.startswith("python -m src.train dataset.limit=300")
    assert going_on.endswith(f"run_dir={tmp_path / 'run'}")
    assert len(children) >= ranks - 1
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline, "a rank is left alive"
        time.sleep(0.05)


def test_two_ranks_go_on_within_an_epoch_to_the_bit(run: Run, begin: Begin, tmp_path: Path, cache: Path) -> None:
    """A signal to each of the processes, as Slurm sends it: the ranks agree on the step, and rank 0 writes."""
    ranks = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "dataset.batch_size=8", "dataset.limit=640")
    arguments = [*QUICK, *ranks, "method.positives=nearest", "trainer.log_every_n_steps=1"]
    arguments += ["trainer.max_epochs=2", "logger=csv"]
    assert run("src.train", *arguments, f"run_dir={tmp_path / 'whole'}").returncode == 0

    folder = tmp_path / "ended"
    started = begin("src.train", *arguments, f"run_dir={folder}", ISIF_CACHE=str(cache))
    metrics = folder / "metrics.csv"
    while not metrics.exists() or "41" not in [row["step"] for row in csv.DictReader(metrics.open())]:
        assert started.poll() is None
        time.sleep(0.01)
    for pid in (started.process.pid, *children_of(started.process.pid)):
        os.kill(pid, signal.SIGTERM)
    ended = started.ended(120)
    assert ended.returncode == 143
    assert "Not finished" in ended.stdout
    checkpoint = checkpoints.load(checkpoints.path_of(folder, "last"))
    assert checkpoints.describe(checkpoint).startswith("epoch 2, which is not whole yet"), "40 steps an epoch"
    scored = run("src.evaluate", f"run={folder}")
    assert "last checkpoint of epoch 2, which is not whole yet, after" in scored.stdout, scored.stderr

    done = run("src.train", *arguments, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    expected, found = outcome(tmp_path / "whole"), outcome(folder)
    assert differences(expected, found) == []


def test_a_finished_run_that_was_moved_takes_more_epochs(run: Run, tmp_path: Path) -> None:
    """It ends as one that had them from the start; its first results stay."""
    arguments = [*QUICK, "whitening=20", "logger=csv", "trainer.max_epochs=3"]
    assert run("src.train", *arguments, f"run_dir={tmp_path / 'whole'}").returncode == 0
    assert run("src.train", *arguments, "trainer.max_epochs=1", f"run_dir={tmp_path / 'first'}").returncode == 0
    before = (tmp_path / "first" / "results.json").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "first").rename(tmp_path / "elsewhere" / "moved")
    config = (moved / "config.yaml").read_text()
    assert "  validation: null\n" in config
    (moved / "config.yaml").write_text(config.replace("  validation: null\n", ""))  # as runs were before there was such
    before_that = run("src.evaluate", f"run={moved}")
    assert f"results.json: {results(moved)['last']['knn/top1']:.4f}" in before_that.stdout, before_that.stderr
    fewer = run("src.train", *arguments, "trainer.max_epochs=1", f"run_dir={moved}")
    assert "finished run (results.json) of 1 epochs" in fewer.stderr
    done = run("src.train", *arguments, f"run_dir={moved}", f"cache_dir={tmp_path / 'cache'}")
    assert done.returncode == 0, done.stderr
    expected, found = learned(tmp_path / "whole"), learned(moved)
    final = found[0].keys() - expected[1].keys()  # of the first and the last epoch, which the first was once
    assert final <= found[1].keys()
    found[1] = {name: value for name, value in found[1].items() if name not in final}
    assert found == expected
    for name in ("last", "best"):
        weights = [
            torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
            for folder in (moved, tmp_path / "whole")
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1]), name
    assert (moved / "results-1.json").read_bytes() == before
    assert [leg["epochs"] for leg in results(moved)["legs"]] == [1, 2]
    assert len({row["epoch"] for row in csv.DictReader((moved / "metrics.csv").open())}) == 3
    assert not (tmp_path / "first").exists()
    again = run("src.evaluate", f"run={moved}/checkpoints/best.ckpt")
    assert f"results.json: {results(moved)['best']['knn/top1']:.4f}" in again.stdout, again.stderr


def test_a_run_goes_on_in_the_precision_that_it_began_with(run: Run, tmp_path: Path) -> None:
    """Another machine would choose another by itself."""
    other = {"32-true": "bf16-mixed", "bf16-mixed": "32-true"}[select_precision("auto", "cpu")]
    arguments = [*QUIET, "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"]
    done = run("src.train", *arguments, f"trainer.precision={other}")
    assert done.returncode == 0, done.stderr
    done = run("src.train", *arguments, "trainer.max_epochs=2")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["config"]["trainer"]["precision"] == other
    refused = run("src.train", *arguments, "trainer.max_epochs=3", "trainer.precision=16-mixed")
    assert "trainer.precision=16-mixed needs a GPU" in refused.stderr


def test_no_epoch_was_scored_in_training(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run("src.train", *QUIET, "trainer.check_val_every_n_epoch=2", f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert results(folder)["best"] is None
    assert "best: none, no epoch was scored in training" in done.stdout
    assert not (folder / "checkpoints" / "best.ckpt").exists()
    table = run("src.report", str(folder))
    assert "best epoch, chosen on the test images" in table.stdout, table.stderr
    other = run("src.evaluate", f"run={folder}", "+protocol.metrics.knn.k=3")
    assert other.returncode == 0, other.stderr
    wrong = run("src.evaluate", f"run={folder}", "+protocol.metrics.knn.k=few")
    assert wrong.stderr == "error: protocol.metrics.knn.k=few: must be a whole number of at least 1\n"


def test_the_bar_can_be_switched_off(run: Run, tmp_path: Path) -> None:
    done = run("src.train", *QUIET, "trainer.enable_progress_bar=false", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "━" not in done.stdout
    assert results(tmp_path / "run")["last"]["epoch"] == 1


def test_a_run_that_is_told_to_stop_ends_after_its_epoch_as_a_finished_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stop").touch()
    bare = ("protocol.final.linear=null", "protocol.final.similarity=null")  # all scores are those of every epoch
    done = run("src.train", *QUIET, *bare, "trainer.max_epochs=50", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "run")["last"]["epoch"] == 1
    again = run("src.evaluate", f"run={tmp_path / 'run'}")
    ends = "{:.2f} to {:.2f}".format(*results(tmp_path / "run")["intervals"]["knn/top1"])
    assert re.search(rf"^knn/top1 .* {ends} ", again.stdout, re.MULTILINE), "of the epoch that was the last"
    assert not (tmp_path / "run" / "progress.json").exists()


def test_a_path_needs_no_quotes_of_its_own(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "ä=1,b (c)"
    done = run("src.train", *QUIET, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    assert run("src.evaluate", f"run={folder}").returncode == 0


def test_a_multirun_leaves_complete_runs_of_their_own(run: Run, tmp_path: Path) -> None:
    done = run(
        "src.train",
        "-m",
        *QUICK,
        "augmentation=full,none",
        "method.negatives=all,hard",
        f"sweep_dir={tmp_path}/sweep",
        "hydra.launcher.jobs=2",
    )
    assert done.returncode == 0, done.stderr
    folders = [path.parent for path in (tmp_path / "sweep").glob("*/results.json")]
    found = [results(folder) for folder in folders]
    assert sorted((r["choices"]["augmentation"], r["config"]["method"]["negatives"]) for r in found) == [
        ("full", "all"),
        ("full", "hard"),
        ("none", "all"),
        ("none", "hard"),
    ]
    assert all(f"augmentation={r['choices']['augmentation']}," in f.name for r, f in zip(found, folders, strict=True))
    assert "| augmentation=none, method.negatives=hard | knn/top1 | 1 |" in done.stdout
    runs = [next((folder / "wandb").glob("offline-run-*")).name for folder in folders]
    assert len(set(runs)) == 4
    assert len({json.dumps(r["history"][1]["train/loss"]) for r in found}) == 4


def test_one_bad_job_of_a_multirun_spares_the_others(run: Run, tmp_path: Path) -> None:
    done = run("src.train", *QUIET, "-m", "protocol.metrics.knn.k=400,20", f"sweep_dir={tmp_path}/sweep")
    assert done.returncode == 1
    assert "error: 1 of 2 runs failed" in done.stderr
    assert "protocol.metrics.knn.k=400, but the gallery has 300 images" in done.stderr
    (finished,) = (tmp_path / "sweep").glob("*/results.json")
    assert results(finished.parent)["config"]["protocol"]["metrics"]["knn"]["k"] == 20


def test_two_ranks(run: Run, tmp_path: Path) -> None:
    """In a multirun, whose command line must not be started again by every rank; odd sizes; scored again the same."""
    odd = (*QUIET, "dataset.limit=301", "dataset.validation=0.0995", "whitening=20")
    done = run(
        "src.train",
        "-m",
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        *odd,
        "dataset.batch_size=32",
        "dataset.eval_batch_size=64",
        "seed=0,1",
        f"sweep_dir={tmp_path}/sweep",
    )
    assert done.returncode == 0, done.stderr
    folder, other = sorted((tmp_path / "sweep").glob("*/"), key=lambda path: results(path)["seed"])
    assert [results(each)["seed"] for each in (folder, other)] == [0, 1]
    one = run("src.train", *odd, "trainer.max_epochs=0", f"run_dir={tmp_path / 'one'}")
    assert one.returncode == 0, one.stderr
    found = results(folder)
    assert found["untrained"] == results(tmp_path / "one")["untrained"], "the same network, scored by two or by one"
    assert found["protocol"]["validation"] == "143 of the training images"
    assert found["hardware"]["ranks"] == 2
    again = run("src.evaluate", f"run={folder}")
    assert again.stdout.count(f"{found['last']['knn/top1']:.4f}") == 2, again.stdout


def test_several_ranks_ask_for_ddp(run: Run, tmp_path: Path) -> None:
    done = run("src.train", *QUIET, "trainer.accelerator=cpu", "trainer.devices=2", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert done.stderr == "error: trainer.devices=2: several ranks share what they see by trainer=ddp\n"


def test_a_graph_asks_for_one_gpu(run: Run, tmp_path: Path) -> None:
    done = run("src.train", *QUIET, "graph=true", "trainer.accelerator=cpu", "microbatch=8", f"run_dir={tmp_path}/run")
    assert done.returncode == 1
    assert done.stderr == (
        "error: graph=true replays a whole step's network on one GPU: it does not go with trainer.accelerator=cpu, "
        "microbatch=8\n"
    )
    assert not (tmp_path / "run" / "config.yaml").exists(), "said before the run begins"


def test_a_mistake_on_two_ranks_ends_in_one_message(run: Run, tmp_path: Path) -> None:
    ranks = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "dataset.batch_size=200")
    done = run("src.train", *QUIET, *ranks, f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "dataset.batch_size=200 on 2 rank(s) is more than the 300 training images" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("logger", "file"), [("csv", "metrics.csv"), ("tensorboard", "tensorboard/events.*")])
def test_other_loggers(run: Run, tmp_path: Path, logger: str, file: str) -> None:
    done = run("src.train", *QUICK, f"logger={logger}", "trainer.log_every_n_steps=1", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    written = next((tmp_path / "run").glob(file))
    if logger == "csv":
        header = written.read_text().splitlines()[0].split(",")
        curves = {"train/loss_step", "train/positive_step", "train/negative_step", "train/lr", "train/images_per_s"}
        assert curves | {"knn/top1", "knn/top5"} <= set(header)
    assert not (tmp_path / "run" / "wandb").exists()


def test_an_unreachable_wandb_server_is_no_obstacle(run: Run, tmp_path: Path) -> None:
    credentials = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = run("src.train", *QUICK, f"run_dir={tmp_path / 'run'}", **credentials)
    assert done.returncode == 0, done.stderr
    assert "W&B is offline" in done.stdout
    assert "0" * 40 not in done.stdout + done.stderr
    assert results(tmp_path / "run")["last"]["epoch"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dataset=nope"], "Could not find 'dataset/nope'"),
        (["dataset.batchsize=3"], "Key 'batchsize' is not in struct"),
        (["method.temprature=3"], "Key 'temprature' is not in struct"),
        (["dataset.batch_size=2000"], "dataset.batch_size=2000"),
        (["dataset.limit=5000"], "dataset.limit=5000"),
        (["dataset.validation=0.0001"], "dataset.validation=0.0001: holds out 0 of 1437"),
        (["dataset.validation=0.1", "dataset.limit=1300"], "dataset.limit=1300: the training set has 1293 images"),
        (["dataset.validation=0.001"], "knn: the validation set (dataset.validation=0.001) has one class"),
        (["protocol.metrics.knn.k=5000"], "protocol.metrics.knn.k=5000, but the gallery has 1437 images"),
        (["method.temperature=0"], "method.temperature=0: must be a number above 0"),
        (["schedule.milestones=[5]"], "milestones [5]"),
        (["backbone=inception", "backbone.pretrained=false", "input.size=1"], "input.size=1 or one of dataset.view_s"),
        (["protocol.monitor=knn/top3"], "protocol.monitor=knn/top3: must be one of knn/top1, knn/top5, geometry/"),
        (["dataset=folder"], "dataset.root is missing: set dataset.root="),
        (["method.temperature=0.1;"], "method.temperature=0.1;: must be a number above 0"),
        (["run_dir"], "run_dir can't be read: settings are key=value"),
        (["input.size=64"], "input.size=64"),
        (["run_dir=/proc/none/run"], "/proc/none"),
        (["cache_dir=/proc/none"], "/proc/none"),
        (["optimizer.lr=1e30", *QUICK], "the loss became"),
        (["optimizer.lr=1e9", *QUICK], "not finite: lower optimizer.lr"),
    ],
)
def test_bad_input_ends_in_one_message(run: Run, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("src.train", "logger=none", f"run_dir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "results.json").exists()
    assert "epoch 1" not in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_asked_for_and_absent(run: Run, tmp_path: Path) -> None:
    done = run("src.train", "trainer.accelerator=gpu", f"run_dir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "error: trainer.accelerator=gpu, but none is visible here: use trainer.accelerator=cpu" in done.stderr


def test_the_full_traceback_on_request(run: Run, tmp_path: Path) -> None:
    done = run("src.train", "dataset.batch_size=1", f"run_dir={tmp_path / 'run'}", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_damaged_files_are_named(run: Run, tmp_path: Path) -> None:
    """A corrupt store and an unreadable checkpoint, met before any training."""
    folder, cache = tmp_path / "run", tmp_path / "cache"
    arguments = [*QUIET, f"run_dir={folder}", f"cache_dir={cache}"]
    assert run("src.train", *arguments).returncode == 0
    (folder / "results.json").unlink()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"half a checkpoint")
    for done in (run("src.train", *arguments), run("src.evaluate", f"run={folder}")):
        assert done.returncode == 1
        assert f"the checkpoint {folder}/checkpoints/last.ckpt cannot be read" in done.stderr
    (cache / "digits" / "train_labels.npy").write_bytes(b"")
    done = run("src.train", *QUIET, f"run_dir={tmp_path / 'other'}", f"cache_dir={cache}")
    assert done.returncode == 1
    assert f"the store {cache}/digits is damaged" in done.stderr


def test_evaluate_names_what_is_missing(run: Run, tmp_path: Path) -> None:
    for argument, message in (
        (f"run={tmp_path}", "no run is there"),
        ("checkpoint=best", "run is missing: set run="),
    ):
        done = run("src.evaluate", argument)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_help_and_config_need_no_torch(run: Run) -> None:
    script = "import sys, src.train, src.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
    for module in ("src.train", "src.evaluate"):
        page = run(module, "--help")
        assert page.returncode == 0, page.stderr
        assert f"python -m {module}" in page.stdout
    options = run("src.train", "--help").stdout
    for group in ("dataset", "augmentation", "experiment"):
        assert ", ".join(sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))) in options


def test_a_mistake_in_the_settings_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "src.train", "seed=-1", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: seed=-1: must be a whole number")
    imported = re.findall(r"^import time:.*\|\s+([\w.]+)$", done.stderr, re.MULTILINE)
    assert {"hydra", "src.settings"} <= {*imported}
    assert not {"torch", "pytorch_lightning", "wandb"} & {*imported}


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")))
def test_every_experiment_composes(run: Run, experiment: str) -> None:
    done = run("src.train", f"experiment={experiment}", "--cfg", "job")
    assert done.returncode == 0, done.stderr
