"""Real weights and images that are not part of the project: tests that need them skip, with a reason, where absent."""

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDER = Path(os.environ.get("ISIF_SHARED", ROOT.parent / "shared"))


def shared(name: str) -> Path:
    """The file or folder `name` in $ISIF_SHARED, or in `shared` beside the checkout."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is absent: set ISIF_SHARED to the folder that has {name}")
    return path
