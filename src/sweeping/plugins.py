"""Makes our launchers and sweepers known to Hydra, which takes them only from a package called `hydra_plugins`."""

import sys
from importlib import import_module
from types import ModuleType

from hydra.core.plugins import Plugins

from src.settings import PLUGINS


def register() -> None:
    """Let configs name the `PLUGINS`."""
    known = Plugins.instance()
    sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))  # there already where others' are installed
    for name, target in PLUGINS.items():
        package, _, alias = name.rpartition(".")
        home, _, kind = target.rpartition(".")
        plugin = type(alias, (getattr(import_module(home), kind),), {"__module__": package})
        setattr(sys.modules.setdefault(package, ModuleType(package)), alias, plugin)
        known.register(plugin)
