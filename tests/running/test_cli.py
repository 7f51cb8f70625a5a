"""A mistake is told in one line, everything else in a traceback, and a reader that goes away is no error."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from src.running import cli
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("seed=-1: must be\n more"), "error: seed=-1: must be; more"),
        (OSError(28, "No space left on device"), "error: [Errno 28] No space left on device"),
        (MemoryError(), "error: out of memory; lower dataset.batch_size or dataset.eval_batch_size (MemoryError)"),
        (RuntimeError("CUDA out of memory. Tried"), "error: out of memory; lower dataset.batch_size or "),
    ],
)
def test_a_mistake_is_told_in_one_line(error: Exception, line: str) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.telling_mistakes(fail)()
    assert str(caught.value.code).startswith(line)
    assert len(str(caught.value.code).splitlines()) == 1


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.telling_mistakes(fail)()


@pytest.mark.parametrize("argument", ["images=2020", "dataset.root=2020_01", "run=1.5"])
def test_a_place_may_be_a_number(argument: str) -> None:
    key, _, value = argument.partition("=")
    assert cli._readable(argument) == f'{key}="{value}"'
    assert cli._readable(f"{key}s={value}") == f"{key}s={value}", "another setting's is one"


def test_what_hydra_wraps_is_unwrapped() -> None:
    error = InstantiationException("Error in call to target 'x':\nValueError('k')\nfull_key: method")
    error.__cause__ = ValueError("k must be positive")
    assert cli.explain(error) == "method: k must be positive"
    try:
        _ = OmegaConf.create({"dataset": {"root": "???"}}).dataset.root
    except Exception as missing:
        said = cli.explain(missing)
    assert said == "dataset.root is missing: set dataset.root=…"


def test_a_reader_that_goes_away() -> None:
    command = f"{sys.executable} -m src.train --help | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Train an embedding")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process has loaded")
@pytest.mark.parametrize("library", ["libtorch_cpu", "libtorch_python", "_C.cpython"])
def test_ctrl_c_while_torch_is_imported(tmp_path: Path, library: str) -> None:
    command = [sys.executable, "-m", "src.train", "logger=none", f"run_dir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"ISIF_CACHE": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    loaded = Path(f"/proc/{process.pid}/maps")
    while library not in loaded.read_text():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
