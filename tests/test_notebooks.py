"""Every notebook runs from its first cell to its last, and draws."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from tests.conftest import ROOT, Run


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, cache: Path, command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(told: list[str], check: bool) -> None:
        python, _, module, *arguments = told
        done = command(module, *arguments)
        assert (python, check, done.returncode) == (sys.executable, True, 0), done.stderr

    monkeypatch.setattr(subprocess, "run", called)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ISIF_CACHE", str(cache))
    for name in ("RUN", "SWEEP"):
        monkeypatch.setenv(name, str(tmp_path / "made"))
    matplotlib.use("Agg")
    plt.close("all")
    # One epoch is enough to see that every cell runs.
    short = path.read_text().replace(
        'max_epochs=8\\"', 'max_epochs=1\\", \\"input.size=16\\", \\"callbacks.pictures=null\\"'
    )
    notebook = json.loads(short)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "a notebook is committed without its outputs"
            exec("".join(line for line in cell["source"] if not line.startswith("%")), names)  # IPython's own
    figures = [value for value in names.values() if isinstance(value, Figure)]
    figures += [plt.figure(number) for number in plt.get_fignums()]
    assert len({id(figure) for figure in figures}) == {"explore_embedding": 4, "paper_tables": 2}[path.stem]
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png")
        assert all(axes.has_data() for axes in figure.axes)
    if path.stem == "explore_embedding":
        written = json.loads((tmp_path / "made" / "results.json").read_text())["last"]
        assert names["scores"] == pytest.approx({name: written[name] for name in names["scores"]}, abs=1e-3)
    else:
        assert len(names["results"]) == 4
