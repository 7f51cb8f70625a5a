"""A run folder: one process at a time, nothing overwritten, more epochs on top, and of a stranger's nothing called."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from src.running import checkpoints, runs
from tests.conftest import ROOT
from tests.test_settings import plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run that trained two epochs of five."""
    runs.begin(tmp_path, OmegaConf.create(plain("trainer=default", "trainer.max_epochs=5")))
    checkpoints.save({"epoch": 1, "global_step": 9, "state_dict": {}}, checkpoints.path_of(tmp_path, "last"))
    return tmp_path


def again(folder: Path, *overrides: str) -> None:
    runs.begin(folder, OmegaConf.create(plain("trainer=default", "trainer.max_epochs=5", *overrides)))


def finish(folder: Path, epochs: int) -> None:
    runs.write_results(folder, {"last": {"epoch": epochs}})


def test_an_unfinished_run_goes_on_with_its_config_alone(folder: Path) -> None:
    again(folder)
    free = ("cache_dir=elsewhere", "logger=csv", "trainer.max_epochs=9", "graph=true")
    again(folder, *free)  # none changes what an epoch learns
    with pytest.raises(ValueError, match=r"unfinished run of another config \(optimizer.lr: 0.03 became 0.1\)"):
        again(folder, "optimizer.lr=0.1")


def test_an_earlier_versions_config_says_what_that_did() -> None:
    mom: dict[str, Any] = {"method": {"_target_": "src.methods.mom.MiningOnManifolds", "k": 49}}
    runs.bring_up_to_date(mom)
    assert mom["method"] == {"_target_": "src.methods.mom.MiningOnManifolds", "k": 49, "pool": None}
    assert (mom["graph"], mom["mirror"], mom["decay"]) == (False, False, "all")
    now: dict[str, Any] = {"method": {"_target_": "src.methods.mom.MiningOnManifolds", "pool": 50}, "graph": True}
    runs.bring_up_to_date(now)
    assert (now["method"]["pool"], now["graph"]) == (50, True)
    other: dict[str, Any] = {"method": {"_target_": "src.methods.simclr.SimCLR"}}
    runs.bring_up_to_date(other)
    assert other["method"] == {"_target_": "src.methods.simclr.SimCLR"}


def test_what_was_typed_is_kept(folder: Path) -> None:
    assert runs.read_overrides(folder) == []
    runs.begin(folder, runs.load_config(folder), ["seed=0", 'name="ö"'])
    assert runs.read_overrides(folder) == ["seed=0", 'name="ö"']
    for text in ("{}", "[1]", '"seed=0"', "", "[" * 10**5):
        (folder / runs.OVERRIDES).write_text(text)
        assert runs.read_overrides(folder) is None


def test_progress_that_no_run_writes_is_none(tmp_path: Path) -> None:
    sound = {"epoch": 3, "epochs": 9, "monitor": "knn/top1", "scores": [[3, 40.5]], "seconds_left": 4.0}
    runs.write_progress(tmp_path, sound)
    assert runs.read_progress(tmp_path) == sound
    for name, value in (
        ("epoch", "3"),
        ("scores", 3),
        ("scores", [[1]]),
        ("scores", [[1, "high"]]),
        ("seconds_left", None),
        ("seconds_left", float("nan")),
        ("monitor", 1),
    ):
        runs.write_progress(tmp_path, sound | {name: value})
        assert runs.read_progress(tmp_path) == {}, (name, value)


def test_a_finished_run_takes_more_epochs_and_nothing_else(folder: Path) -> None:
    finish(folder, 5)
    before = (folder / "results.json").read_text()
    with pytest.raises(FileExistsError, match=r"finished run \(results.json\) of 5 epochs"):
        again(folder)
    with pytest.raises(ValueError, match="finished run of another config"):
        again(folder, "trainer.max_epochs=6", "seed=1")
    (folder / "stop").touch()  # which has ended it, and would end it again
    assert (folder / "results.json").read_text() == before
    again(folder, "trainer.max_epochs=6")
    assert not (folder / "results.json").exists()
    assert (folder / "results-5.json").read_text() == before
    assert not (folder / "stop").exists()


def test_a_finished_run_without_training_is_not_extended(folder: Path) -> None:
    finish(folder, 0)
    checkpoints.path_of(folder, "last").unlink()
    with pytest.raises(FileExistsError, match=r"of 0 epochs: choose another run_dir$"):
        again(folder, "trainer.max_epochs=6")


def test_more_epochs_are_not_offered_where_rates_end_with_them(folder: Path) -> None:
    again(folder, "schedule=steps")
    finish(folder, 5)
    for schedule, offered in (("steps", True), ("cosine", False)):
        with pytest.raises(FileExistsError) as refused:
            again(folder, f"schedule={schedule}")
        assert ("or more trainer.max_epochs" in str(refused.value)) == offered


@pytest.mark.parametrize("dataset", ["stl10", "cub200", "cars196"])
def test_another_cache_makes_no_other_run(dataset: str) -> None:
    """Where it keeps the original of a published set neither; another folder of one's own images does."""
    one, other = (runs.telling(plain(f"dataset={dataset}", f"cache_dir=/{name}"), runs.FREE) for name in "ab")
    assert one == other
    mine = [runs.telling(plain("dataset=folder", f"dataset.root=/{name}"), runs.FREE) for name in "ab"]
    assert mine[0] != mine[1]


def test_what_makes_a_run_go_on_can_be_typed() -> None:
    """Hydra takes a comma for another value."""
    said = runs.command_in("run_dir", Path("/data/a,b"), ["seed=1"])
    assert shlex.split(said)[-2:] == ["seed=1", 'run_dir="/data/a,b"']


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    script = f"from src.running import runs; from pathlib import Path\nwith runs.claimed(Path({str(tmp_path)!r})): pass"
    command = [sys.executable, "-c", script]
    with runs.claimed(tmp_path):
        other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert other.returncode == 1
        assert f"is being written by process {os.getpid()} on " in other.stderr
    assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_what_went_wrong_stays_and_how_to_go_on_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), runs.saying_how_to_go_on(folder, ["method=nce", "run_dir=x", "dataset.root=a b"]):
        raise KeyError
    command = f"python -m src.train method=nce 'dataset.root=a b' run_dir={folder}"
    assert capsys.readouterr().out == f"Not finished; this goes on from the last checkpoint: {command}\n"
    with pytest.raises(KeyError), runs.saying_how_to_go_on(folder / "new", []):
        raise KeyError
    assert capsys.readouterr().out == "", "there is nothing to go on from"


EVIL = "_target_: pathlib.Path.write_text\n  self: {_target_: pathlib.Path, _args_: [PATH]}\n  data: x"
NUMPY = "_target_: numpy.load\n  file: PATH\n  allow_pickle: true"
COPY = "_target_: shutil.copyfile\n  src: /etc/hostname\n  dst: PATH"


@pytest.mark.parametrize("key", ["method", "backbone", "dataset", "augmentation", "optimizer", "trainer"])
@pytest.mark.parametrize("evil", [EVIL, NUMPY, COPY])
def test_a_strangers_config_names_only_what_the_project_makes(tmp_path: Path, key: str, evil: str) -> None:
    config = plain()
    del config[key]
    text = yaml.safe_dump(config) + f"{key}:\n  {evil}\n".replace("PATH", str(tmp_path / "made"))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"config.yaml can't be used: {key}._target_="):
        runs.load_config(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "a: [",
        "a: !!python/object/apply:os.system [true]",
        "seed: ${oc.env:HOME}",
        "a: &a [1]\nb: *a",
        "a: " + "[" * 5000,
        "x" * (2**17 + 1),
        "\0",
        "method: 3",
    ],
)
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml can't be used: \S") as caught:
        runs.load_config(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"last": 3}', '{"last": {"epoch": null}}', "[" * 100_000, "\0"])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results.json holds no run's results"):
        runs.read_results(tmp_path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.write_results(tmp_path, {"last": {"epoch": 1}})

    def full(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        runs.write_results(tmp_path, {"last": {"epoch": 2}})
    assert json.loads((tmp_path / "results.json").read_text()) == {"last": {"epoch": 1}}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def content(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "global_step": 9, "state_dict": {"weight": torch.full((1000,), float(epoch))}}


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoints.find_last(tmp_path, 9) is None
    last, previous = (checkpoints.path_of(tmp_path, name) for name in ("last", "previous"))
    checkpoints.save(content(3), previous)
    assert checkpoints.find_last(tmp_path, 9) == previous, "killed between renaming the old one and writing the new"
    checkpoints.save(content(4), last)
    assert checkpoints.find_last(tmp_path, 9) == last
    whole = last.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"x" * 1000):
        last.write_bytes(damaged)
        assert checkpoints.find_last(tmp_path, 9) == previous
        assert f"the checkpoint {last} cannot be read" in capsys.readouterr().out
    previous.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be read .*: delete it, or give another"):
        checkpoints.find_last(tmp_path, 9)


def test_fewer_epochs_than_are_trained_already(tmp_path: Path) -> None:
    checkpoints.save(content(4), checkpoints.path_of(tmp_path, "last"))
    assert checkpoints.find_last(tmp_path, 5)
    with pytest.raises(ValueError, match=r"trainer.max_epochs=4: the run in .* has come to epoch 5 already"):
        checkpoints.find_last(tmp_path, 4)


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoints.path_of(tmp_path, "last")
    checkpoints.save(content(1), path)
    saved = torch.save

    def full(checkpoint: object, file: Any) -> None:
        saved({}, file)
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="could not be written"):
        checkpoints.save(content(2), path)
    assert checkpoints.load(path)["epoch"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'made'}",)

    path = checkpoints.path_of(tmp_path, "last")
    path.parent.mkdir()
    torch.save({"epoch": 1, "global_step": 9, "state_dict": {}, "callbacks": Evil()}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        checkpoints.load(path)
    assert not (tmp_path / "made").exists()


def test_another_networks_checkpoint_is_named() -> None:
    with pytest.raises(ValueError, match="of another network: "):
        checkpoints.fill(torch.nn.Linear(2, 2), content(1))


def test_an_earlier_runs_inception_averaged(tmp_path: Path) -> None:
    config = plain("backbone=inception")
    assert config["backbone"].pop("pool") == "average"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert runs.load_config(tmp_path).backbone.pool == "average"
    config["backbone"]["pool"] = "average_max"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert runs.load_config(tmp_path).backbone.pool == "average_max"
    others = plain("backbone=googlenet")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(others))
    assert "pool" not in runs.load_config(tmp_path).backbone
