"""Every notebook runs from its first cell to its last, and draws."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ISIF_CACHE", str(cache))
    monkeypatch.setenv("RUN", str(tmp_path / "run"))
    matplotlib.use("Agg")
    plt.close("all")
    notebook = json.loads(path.read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "a notebook is committed without its outputs"
            exec("".join(cell["source"]), names)
    figures = [plt.figure(number) for number in plt.get_fignums()]
    assert len(figures) == 2
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png")
    assert all(axes.images for figure in figures for axes in figure.axes)
