"""Real runs cut off at random moments, which must end as if nothing had happened: `make chaos`.

For each method, on one rank and on two, a run is left alone; others are cut off, once or twice each, and then called
again until they end: killed with SIGKILL, at a random moment or as a checkpoint, the config or the results are being
written; or asked to end, by SIGTERM or SIGUSR1 at a random moment, some with the whole group of their processes, which
they must do with the signal's status.
History, weights and optimiser must equal those of the run left alone bit for bit, and `best.ckpt` its row. TMPDIR is on
another file system where there is one. Each run is forked from a process that has imported torch already.
"""

import argparse
import csv
import gc
import json
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from src.running.checkpoints import describe, load

METHODS = {
    "invariant_spreading": ["method=invariant_spreading"],
    "nearest": ["method=invariant_spreading", "method.positives=nearest"],
    "nce": ["method=nce", "method.noise=64"],
    "deepcluster": ["method=deepcluster", "method.clusters=10", "method.pca=16"],
    "pieces": [
        *("schedule=one_cycle", "optimizer=adamw", "decay=weights", "head=mlp", "head.hidden=[32]", "ema=0.9"),
        *("microbatch=10", "dataset.view_milestones=[1]", "dataset.view_sizes=[12]"),
    ],
}
SMALL = [
    "dataset.limit=200",
    "dataset.batch_size=16",
    "protocol.metrics.knn.k=20",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=3",  # where several ranks agree to end
    "callbacks.pictures.images=20",
    "callbacks.pictures.queries=2",
    "logger=csv",
]
RANKS = {1: [], 2: ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "dataset.batch_size=8"]}
WRITES = ("checkpoints/.last.ckpt.partial", "checkpoints/.best.ckpt.partial", ".config.yaml.*", ".results.json.*")
ASKED = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}
WAYS = ("any time", "any time", *WRITES, *ASKED, *ASKED, *ASKED)
TIMES = ("train/images_per_s", "train/refresh_s", "train/seconds")  # of no matter


def start(arguments: list[str], log: Path) -> int:
    """Fork a process that trains, in a session of its own."""
    child = os.fork()
    if child:
        os.setpgid(child, child)  # by both, since either may come first
        return child
    os.setpgid(0, 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.argv = ["src.train", *arguments]
    code: Any = 0
    try:
        runpy.run_module("src.train", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        print(code := error.code, flush=True)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code if isinstance(code, int) else 1)


def alive(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG) == (0, 0)


def kill(folder: Path, arguments: list[str], log: Path, longest: float, how: str) -> str | None:
    """Start a run and cut it off as `how` says; says what was being done, or None where it had ended before.

    Raises:
        ValueError: it did not end as a signal asked it to.
    """
    timed = how not in WRITES
    child = start(arguments, log)
    earliest = longest / 4 if how in ASKED else 0  # before that nothing is trained
    until = time.monotonic() + (random.uniform(earliest, longest) if timed else 20 * longest)
    pass_by, writing = random.randrange(4), False
    while time.monotonic() < until:
        before, writing = writing, not timed and any(folder.glob(how))
        if writing and not before:
            pass_by -= 1
            if pass_by < 0 or "checkpoints" not in how:  # the others are written once
                break
        if not alive(child):
            return None
        time.sleep(0.0002)
    if number := ASKED.get(how):
        random.choice((os.kill, os.killpg))(child, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return None
        if code not in (128 + number, -number):  # the latter before it listened
            raise ValueError(f"{how} ended it with {code}:\n{log.read_text()[-2000:]}")
    else:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    last = folder / "checkpoints" / "last.ckpt"
    return f"{how}, {describe(load(last)) if last.exists() else 'no checkpoint'}"


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on kills."""
    results = json.loads((folder / "results.json").read_text())
    last, best = (torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("last", "best"))
    assert best["epoch"] + 1 == results["best"]["epoch"], "best.ckpt is another epoch's"
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in results["history"]]
    with (folder / "metrics.csv").open() as file:
        logged = {row["epoch"] for row in csv.DictReader(file)}
    assert {str(epoch) for epoch in range(int(results["last"]["epoch"]))} <= logged, "metrics.csv lost an epoch"
    return {
        "rows": rows,
        "weights": last["state_dict"],
        "optimizer": last["optimizer_states"],
        "schedule": last["lr_schedulers"],
        "best": best["state_dict"],
        "step": last["global_step"],
    }


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two outcomes are not the same to the bit."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) or (first.isnan().all() and second.isnan().all()) else [where]
    if isinstance(first, dict):
        keys = first.keys() | second.keys()
        return [d for key in keys for d in differences(first.get(key), second.get(key), f"{where}.{key}")]
    if isinstance(first, list):
        pairs = zip(first, second, strict=False)
        found = [d for number, (a, b) in enumerate(pairs) for d in differences(a, b, f"{where}[{number}]")]
        return found + [f"{where}: {len(first)} and {len(second)}"] * (len(first) != len(second))
    return [] if first == second else [f"{where}: {first} and {second}"]


def torture(name: str, ranks: int, kills: int, place: Path) -> int:
    """Kill runs `kills` times in all; returns how many ended otherwise than the one left alone."""
    settings = [*METHODS[name], *SMALL, *RANKS[ranks], f"cache_dir={place / 'cache'}"]
    log = place / "log.txt"
    whole = place / f"{name}-{ranks}"
    began = time.monotonic()
    _, status = os.waitpid(start([*settings, f"run_dir={whole}"], log), 0)
    longest = time.monotonic() - began
    if status:
        sys.exit(f"{name} on {ranks} rank(s) fails without a kill:\n{log.read_text()[-2000:]}")
    expected, failed, done, number = outcome(whole), 0, 0, 0
    while done < kills:
        number += 1
        folder = place / f"{name}-{ranks}-{number}"
        arguments = [*settings, f"run_dir={folder}"]
        killed = []
        for _ in range(random.choice((1, 1, 2))):
            killed.append(kill(folder, arguments, log, longest, random.choice(WAYS)))
        done += sum(how is not None for how in killed)
        status = 0
        if not (folder / "results.json").exists():
            _, status = os.waitpid(start(arguments, log), 0)
        try:
            wrong = [log.read_text()[-500:]] if status else differences(expected, outcome(folder))
        except (AssertionError, OSError, ValueError) as error:
            wrong = [str(error)]
        failed += bool(wrong)
        what = "; ".join(how or "ended before" for how in killed)
        print(f"{name}, {ranks} rank(s): {what}: {'the same to the bit' if not wrong else wrong[:5]}", flush=True)
        if not wrong:
            shutil.rmtree(folder)
    return failed


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("method", nargs="*", default=list(METHODS), help=f"of {', '.join(METHODS)}; all by default")
    parser.add_argument("--kills", type=int, default=20, help="of each method on each number of ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    os.environ["OMP_NUM_THREADS"] = "1"  # a forked process must not find threads begun
    torch.set_num_threads(1)
    import src.assemble
    import src.callbacks.history
    import src.callbacks.refresh
    import src.datamodules.digits
    import src.reporting.record
    import src.running.loggers  # noqa: F401

    gc.freeze()
    memory = Path("/dev/shm")  # another file system than that of the runs
    apart = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory(dir=apart) as tmp:
        os.environ["TMPDIR"] = tmp
        failed = sum(
            torture(name, ranks, options.kills, Path(place)) for name in options.method for ranks in options.ranks
        )
    print(f"{failed} runs ended otherwise than the run that was left alone" if failed else "all runs ended the same")
    sys.stdout.flush()
    os._exit(failed > 0)


if __name__ == "__main__":
    main()
