"""A search for the settings that score best on held-out images: `hydra/sweeper=optuna`."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from src.hints import Count, Seed
from src.running import runs
from src.sweeping.jobs import Job, Standing, is_aside, make_jobs, plan
from src.sweeping.sweepers import Grid, conclude, saying_how_to_go_on

STUDY = "study.log"


class Search(Grid):
    """Tries values of the ranges given, each trial a job, chosen by Optuna (TPE) by how those before scored.

    Ranges in Hydra's grammar: `interval(0.05,0.5)`, `tag(log,interval(0.001,0.1))`, `int(interval(1,9))`,
    `range(1,10,2)`, `choice(a,b)`. What decides is the last epoch's score of the held-out images, never of the test
    images. A trial that failed or was cut off stays open, and the same command goes on with it.

    Args:
        trials: in all.
        prune: end a trial after an epoch that scores below the median of the others' at that epoch.
        seed: of the sampler.
    """

    def __init__(self, trials: Count, prune: bool, seed: Seed) -> None:
        self.trials, self.prune, self.seed = trials, prune, seed

    def sweep(self, arguments: list[str]) -> None:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import Trial, TrialState

        overrides = OverridesParser.create(config_loader=self.loader).parse_overrides(arguments)
        ranges = [override for override in overrides if override.is_sweep_override()]
        space = {override.get_key_element(): distribution(override) for override in ranges}
        others = [override for override in overrides if override not in ranges]
        fixed = [f"{override.get_key_element()}={override.get_value_element_as_str()}" for override in others]
        if any(override.key_or_group == "sweep" for override in overrides):
            raise ValueError(
                "hydra/sweeper=optuna searches ranges, and sweep=… is a list of runs: leave out one of the two"
            )
        if not space:
            raise ValueError("hydra/sweeper=optuna: give a range to search, as optimizer.lr=interval(0.01,0.1)")
        if self.config.dataset.validation is None:
            raise ValueError("hydra/sweeper=optuna chooses by held-out images: hold some out, dataset.validation=0.1")
        if self.launcher.most == float("inf"):
            raise ValueError(
                "hydra.launcher.jobs=null: a search learns from what ended; say how many trials run at once"
            )

        def job_of(values: Mapping[str, Any]) -> Job:
            drawn = [spelled(key, values[key], one) for key, one in space.items()]
            (job,) = make_jobs(self.config, self.loader, [[*fixed, *drawn]])
            return replace(job, common=frozenset(fixed))

        ends = {key: one.choices if hasattr(one, "choices") else (one.low, one.high) for key, one in space.items()}
        first = {key: values[0] for key, values in ends.items()}
        # A value that may not be must be told now, not when it is drawn.
        (sweep,) = {job_of(first | {key: value}).sweep for key, values in ends.items() for value in values}
        telling = [str(o.input_line) for o in overrides if not is_aside(str(o.input_line))]
        study = open_study(sweep, telling, self.seed, self.prune)
        open_trials: dict[Job, list[Trial]] = {}

        def draw() -> Iterator[Job]:
            known = study.get_trials(deepcopy=False)
            left_open = deque(trial._trial_id for trial in known if trial.state == TrialState.RUNNING)
            while left_open or len(study.get_trials(deepcopy=False)) < self.trials:
                trial = Trial(study, left_open.popleft()) if left_open else study.ask()
                # Of one left open what it has; where its process died in between, the rest is drawn.
                job = job_of({key: trial._suggest(key, one) for key, one in space.items()})
                open_trials.setdefault(job, []).append(trial)
                if len(open_trials[job]) == 1:  # the others have the same settings, so the same score
                    plan(sweep, [job])
                    yield job

        def ended(job: Job, now: Standing) -> None:
            for trial in open_trials.pop(job) if now.kind == "finished" else ():
                pruned = (job.folder / runs.STOP).exists()  # its score is the last that was reported
                state = TrialState.PRUNED if pruned else TrialState.COMPLETE
                # The same search, started twice, may have told it before.
                study.tell(trial, None if pruned else now.score, state, skip_if_finished=True)

        def look(job: Job, now: Standing) -> None:
            for trial in open_trials[job]:
                known = study.trials[trial.number].intermediate_values
                for epoch, score in now.progress.get("scores", ()):
                    if epoch > 0 and epoch not in known:
                        with suppress(UpdateFinishedTrialError):  # told elsewhere
                            trial.report(score, int(epoch))
                unfinished = now.progress and now.progress["epoch"] < now.progress["epochs"]
                if self.prune and unfinished and trial.should_prune():
                    (job.folder / runs.STOP).touch()

        with saying_how_to_go_on(sweep):
            done = self.launcher.run(draw(), self.trials, ended=ended, look=look)
        conclude(sweep, done)
        if any(trial.state == TrialState.COMPLETE for trial in study.trials):
            best = study.best_trial
            job = job_of(best.params)
            print(f"best of {len(study.trials)} trials, {best.value:.2f}: {job.label}\n{job.folder}")


def open_study(sweep: Path, telling: Sequence[str], seed: int, prune: bool) -> Any:
    """The search whose folder is `sweep`, new or to go on with.

    Args:
        telling: the settings and ranges that make it this search.

    Raises:
        ValueError: it was begun with other settings.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(sweep / STUDY))),
        study_name="search",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
    )
    # One that goes on must not draw again what it began with.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials), constant_liar=True)
    before = study.user_attrs.get("settings", sorted(telling))
    if before != sorted(telling):
        changed = sorted(set(before) ^ set(telling))
        raise ValueError(f"{sweep} holds a search of other settings ({', '.join(changed)}): choose another sweep_dir")
    study.set_user_attr("settings", sorted(telling))
    return study


def distribution(override: Override) -> Any:
    """What Optuna draws from for a range in Hydra's grammar; of choices their spelling in it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if isinstance(value, IntervalSweep):
        kind: Any = IntDistribution if isinstance(value.start, int) else FloatDistribution
        return kind(value.start, value.end, log="log" in value.tags)
    choices = list(override.sweep_string_iterator())
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.step, int):
        return IntDistribution(int(choices[0]), int(choices[-1]), step=value.step)
    return CategoricalDistribution(choices)


def spelled(key: str, value: Any, within: Any) -> str:
    """The override that a trial's run is made with: four digits of a number are enough, unless they leave its range."""
    rounded = f"{value:.4g}" if isinstance(value, float) else str(value)
    outside = isinstance(value, float) and not within.low <= float(rounded) <= within.high
    return f"{key}={value if outside else rounded}"
