"""Figures as files."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from src.running.runs import write_atomically


def save(figure: Figure, path: Path, kinds: Sequence[str] = ("png", "svg")) -> None:
    """Write `<path>.<kind>` for each of `kinds`, whole or not at all, and the same bytes for the same picture.

    Raises:
        OSError: they can't be written.
    """
    path.parent.mkdir(exist_ok=True)
    for kind in kinds:
        content = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": path.name}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a class name's: the picture has a box for it
            figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
        write_atomically(path.with_name(f"{path.name}.{kind}"), content.getvalue())
