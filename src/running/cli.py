"""Commands' manners: a user's mistake ends in one line, a signal in its own status, everything else in a traceback."""

import functools
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from src.running import signals

FULL = "HYDRA_FULL_ERROR"
MULTIRUN = ("-m", "--multirun")
PARENT = "ISIF_PARENT"  # the process that a job of a sweep ends with
PLACES = ("run", "images", "out", "index", "query", "html", "against", "dataset.root", "run_dir", "sweep_dir")
SHOWN = os.environ.get(FULL, "0") == "1"  # every error with its traceback
MISTAKES = (HydraException, OmegaConfBaseException, ValueError, OSError, FloatingPointError, ImportError, MemoryError)
P = ParamSpec("P")
R = TypeVar("R")


def run(main: Callable[[], object], overrides: bool = True) -> None:
    """Call a command; a mistake is told in one line with status 1, or as a traceback with HYDRA_FULL_ERROR=1.

    Its arguments are Hydra's `overrides`, or not.

    Ctrl-C, SIGTERM and SIGUSR1 end it with 130, 143 and 138, as soon as what is being done has closed its files, and a
    training when its step is done and kept (`src.callbacks.checkpoints`); a second one does not wait for that. A reader
    that goes away (`--help | head`) is no error.
    """
    signals.listen()
    if (parent := os.environ.pop(PARENT, None)) and not signals.end_with(int(parent), signal.SIGTERM):
        sys.exit(128 + signal.SIGTERM)
    if overrides:
        given = sorted(sys.argv[1:], key=lambda argument: argument not in MULTIRUN)  # settings all on one side of it
        sys.argv[1:] = map(_readable, given)
    os.environ[FULL] = "1"  # Hydra hands errors on instead of printing its own shortened traceback
    try:
        telling_mistakes(main)()
        sys.stdout.flush()
    except BrokenPipeError:
        _let_go()


def telling_mistakes(function: Callable[P, R]) -> Callable[P, R]:
    """Exit with one line where `function` meets a mistake; inside of Hydra, which adds lines of its own to errors."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except BrokenPipeError:
            _let_go()
            sys.exit()
        except Exception as error:
            if SHOWN or not (isinstance(error, MISTAKES) or _is_out_of_memory(error)):
                raise
            sys.exit(f"error: {explain(error)}")

    return call


def _let_go() -> None:
    """Of an output that nobody reads any more, or Python says so at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def settled(config: DictConfig) -> dict[str, Any]:
    """A composed config, resolved, in plain dicts.

    Raises:
        MissingMandatoryValue: a setting that must be given is not.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return dict(plain)


def explain(error: BaseException) -> str:
    """The one line that a user can act on, without a character that is none."""
    return on_one_line(_explain(error))


def on_one_line(text: str) -> str:
    """A text with its line breaks and the like written out."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _explain(error: BaseException) -> str:
    if isinstance(error, InstantiationException):  # around the error of an object that Hydra could not make
        key = str(error).rsplit("full_key: ", 1)
        where = f"{key[1].strip()}: " if len(key) == 2 else ""
        return f"{where}{_one_line(error.__cause__ or error)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: set {error.full_key}=…"
    if isinstance(error, OverrideParseException):
        return f"{error.override} can't be read: settings are key=value, or ~key to leave one out"
    if isinstance(error, HydraException | OmegaConfBaseException) and error.__cause__:
        return f"{_one_line(error)}; {_one_line(error.__cause__)}"
    if _is_out_of_memory(error):
        return f"out of memory; lower dataset.batch_size or dataset.eval_batch_size ({_one_line(error)})"
    return _one_line(error)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in (str(error) or type(error).__name__).splitlines()]
    noise = ("object_type=", "reference_type=", "Config search path:", "provider=")
    kept = [line for line in lines if line and not line.startswith(noise)]
    return "; ".join(kept).replace(":; ", ": ").replace(".; ", ". ")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _readable(argument: str) -> str:
    """An argument whose value Hydra's grammar can't read, as a text that it can: `run=a/b=c`, `run_dir=~/ö`."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-"):
        return argument
    if key in PLACES and re.fullmatch(r"[\d._]+", value):  # a folder called 2020
        return _quoted(key, value)
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return _quoted(key, os.path.expanduser(value))
    return argument


def as_text(key: str, value: str | os.PathLike[str]) -> str:
    """The override that sets `key` to this text, whatever Hydra's grammar would make of it: `a,b` is two values."""
    text = os.fspath(value)
    return f"{key}={text}" if re.fullmatch(r"[\w./~@%+:=-]*", text) else _quoted(key, text)


def _quoted(key: str, text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="{escaped}"'
