"""Makes our launchers and sweepers known to Hydra, which takes them only from a package called `hydra_plugins`."""

import sys
from types import ModuleType

from hydra.core.plugins import Plugins

from src.sweeping.launchers import Local
from src.sweeping.sweepers import Grid

NAME = "hydra_plugins.src"


def register() -> None:
    """Let configs name `hydra_plugins.src.Local` and the like."""
    known = Plugins.instance()
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))  # there already where others' are installed
    ours = sys.modules[NAME] = ModuleType(NAME)
    for plugin in (Local, Grid):
        plugin.__module__ = NAME
        setattr(ours, plugin.__name__, plugin)
        known.register(plugin)
