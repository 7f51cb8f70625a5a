"""A sweep of twelve runs killed at random moments, which must end as one left alone: a part of `make chaos`.

The sweep's own process is killed with SIGKILL or asked to end by SIGTERM or SIGINT, or one of its runs is killed, and
the same command is called again until all has ended. One run is made to fail as long as the kills last, by a file where
its checkpoints should be. In the end there are twelve rows, each run the same to the bit as in the sweep left alone,
no epoch that was kept was trained twice, and no finished run was touched again.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from src.reporting.results import find_results
from src.running import runs
from tests.chaos import differences, outcome, start

JOBS = ["method=triplet,simclr", "seed=0,1,2", "dataset.batch_size=32,64"]
COUNT = 12
SMALL = ["dataset.limit=200", "protocol.metrics.knn.k=20", "trainer.max_epochs=3", "logger=csv"]
SMALL += ["callbacks.pictures.images=20"]
WAYS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None)  # None: one of its runs


def finished(sweep: Path) -> dict[Path, int]:
    """When the results of each finished run were written."""
    return {path: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")}


def end_one_run(sweep: Path) -> bool:
    """Kill one of the runs; False where none is running."""
    running = [folder for folder in sweep.iterdir() if folder.is_dir() and runs.holder(folder)]
    if running:
        os.kill(int(runs.holder(random.choice(running)).split()[1]), signal.SIGKILL)
    return bool(running)


def torture(launcher: list[str], kills: int, place: Path) -> list[str]:
    """Kill a sweep `kills` times; returns what was wrong in the end."""
    settings = ["-m", *JOBS, *SMALL, *launcher, "trainer.accelerator=cpu", f"cache_dir={place / 'cache'}"]
    log, whole, sweep = place / "log.txt", place / "whole", place / "killed"
    began = time.monotonic()
    _, status = os.waitpid(start([*settings, f"sweep_dir={whole}"], log), 0)
    longest = time.monotonic() - began
    if status:
        sys.exit(f"the sweep fails without a kill:\n{log.read_text()[-3000:]}")
    print(f"left alone: {COUNT} runs in {longest:.0f} s", flush=True)

    bad = sweep / sorted(path.parent.name for path in finished(whole))[0]
    bad.mkdir(parents=True)
    (bad / "checkpoints").touch()
    seen: dict[Path, int] = {}
    for number in range(kills):
        child = start([*settings, f"sweep_dir={sweep}"], log)
        while len(finished(sweep)) < number * (COUNT - 1) // (kills + 1):
            time.sleep(0.05)
        time.sleep(random.uniform(0, 2 * longest / COUNT))
        how = random.choice(WAYS)
        if how is None:
            said = "one of its runs" if end_one_run(sweep) else "nothing"
            time.sleep(random.uniform(0, 5))
            how = signal.SIGKILL
        else:
            said = "nothing else"
        os.kill(child, how)
        os.waitpid(child, 0)
        seen = finished(sweep) | seen
        print(f"kill {number + 1}: {how.name}, and {said}; {len(seen)} finished", flush=True)
    _, status = os.waitpid(start([*settings, f"sweep_dir={sweep}"], log), 0)
    wrong = [f"it ended with {os.waitstatus_to_exitcode(status)}, not 1, with a run that can't be written"] * (
        os.waitstatus_to_exitcode(status) != 1
    )
    if len(finished(sweep)) != COUNT - 1:
        wrong.append(f"{len(finished(sweep))} finished beside one that fails: {log.read_text()[-2000:]}")
    (bad / "checkpoints").unlink()
    _, status = os.waitpid(start([*settings, f"sweep_dir={sweep}"], log), 0)
    wrong += [f"it ended with {os.waitstatus_to_exitcode(status)}: {log.read_text()[-2000:]}"] * bool(status)
    wrong += [f"{path} was written again" for path, when in seen.items() if path.stat().st_mtime_ns != when]
    found, left_out = find_results([sweep])
    wrong += left_out + [f"{len(found)} rows"] * (len(found) != COUNT)
    for results in found:
        folder = Path(results["config"]["run_dir"])
        epochs = sum(leg["epochs"] for leg in results["legs"])
        wrong += [f"{folder.name}: {epochs} epochs in all legs"] * (epochs != results["last"]["epoch"])
        wrong += [f"{folder.name}{line}" for line in differences(outcome(whole / folder.name), outcome(folder))]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.chaos_sweep", description=__doc__)
    parser.add_argument("launcher", nargs="*", default=["hydra.launcher.jobs=2"], help="settings of it")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where this was started in the background
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as place:
        wrong = torture(options.launcher, options.kills, Path(place))
    print("\n".join(wrong) if wrong else "the sweep ended as the one left alone, to the bit", flush=True)
    os._exit(bool(wrong))


if __name__ == "__main__":
    main()
