"""Entry points' manners: a user's mistake ends in one message, everything else in a traceback."""

import os
import sys
from collections.abc import Callable

from hydra.errors import HydraException, InstantiationException
from omegaconf.errors import OmegaConfBaseException

FULL = "HYDRA_FULL_ERROR"
MISTAKES = (HydraException, OmegaConfBaseException, ValueError, OSError, FloatingPointError, ImportError)


def run(main: Callable[[], object]) -> None:
    """Call a Hydra entry point; on a mistake print what is wrong and exit with status 1.

    With HYDRA_FULL_ERROR=1 every error shows its traceback.
    """
    if os.environ.get(FULL, "0") == "1":
        main()
        return
    os.environ[FULL] = "1"  # Hydra hands errors on instead of printing its own shortened traceback
    try:
        main()
    except MISTAKES as error:
        sys.exit(f"error: {explain(error)}")
    finally:
        del os.environ[FULL]


def explain(error: BaseException) -> str:
    """The message a user can act on: Hydra wraps the error of an object it could not make."""
    if isinstance(error, InstantiationException):
        key = str(error).rsplit("full_key: ", 1)
        where = f"{key[1].strip()}: " if len(key) == 2 else ""
        return f"{where}{error.__cause__ or error}"
    if isinstance(error, (HydraException, OmegaConfBaseException)) and error.__cause__:
        return f"{error}\n{error.__cause__}"
    return str(error) or type(error).__name__
