"""Which jobs a sweep has: Hydra's sweepers; `hydra/sweeper=grid` takes every combination of the values given."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig

from src import settings
from src.reporting.results import find_results
from src.reporting.tables import table
from src.running.cli import settled
from src.running.runs import command_in
from src.sweeping.jobs import LOG, Job, Standing, make_jobs, plan
from src.sweeping.launchers import JobLauncher
from src.sweeping.named import expand


class Grid(Sweeper):
    """Every combination of the values given, a job each, and those of the sweeps that are named."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        self.config: Any = config
        self.loader = hydra_context.config_loader
        launcher: Any = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        if not isinstance(launcher, JobLauncher):
            raise ValueError(f"hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}: choose one of conf/")
        self.launcher: Any = launcher
        settings.check_options("hydra.sweeper", settled(config.hydra.sweeper))

    def sweep(self, arguments: list[str]) -> None:
        jobs = make_jobs(self.config, self.loader, expand(self.config, self.loader, arguments))
        sweep = jobs[0].sweep
        plan(sweep, jobs)
        with saying_how_to_go_on(sweep):
            ended = self.launcher.run(iter(jobs), len(jobs))
        conclude(sweep, ended)


@contextmanager
def saying_how_to_go_on(sweep: Path) -> Iterator[None]:
    """Where the sweep breaks off, by an error or a signal, print the command that goes on with it."""
    try:
        yield
    except BaseException:
        command = command_in("sweep_dir", sweep, sys.argv[1:])
        print(f"Not finished; this goes on with what is left: {command}", flush=True)
        raise


def conclude(sweep: Path, ended: Mapping[Job, Standing]) -> None:
    """Print the table of all that is finished, and what failed; with that, the status is 1."""
    failed = {job: now for job, now in ended.items() if now.kind != "finished"}
    if len(failed) < len(ended):
        results, _ = find_results([sweep])
        print(table(results))
    print(sweep, flush=True)
    if failed:
        lines = [f"  {job.label}: {now.text or now.kind} ({job.folder / LOG})" for job, now in failed.items()]
        sys.exit("\n".join([f"error: {len(failed)} of {len(ended)} runs failed:", *lines]))
