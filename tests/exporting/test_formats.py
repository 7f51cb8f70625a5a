"""What goes together, and a folder that is whole or not there."""

from pathlib import Path
from typing import Any

import pytest

from src.exporting.formats import check, check_free, written_whole


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"format": "torch", "int8": True}, "int8=true quantises the onnx file: set format=onnx, not torch"),
        ({"format": "onnx", "push": "a/b"}, "push=a/b uploads a folder .* set format=safetensors, not onnx"),
        ({"format": "safetensors", "space": "pooled"}, "space=pooled: format=safetensors keeps the head"),
    ],
)
def test_what_does_not_go_together_is_said(asked: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {"space": "embedding", "int8": False, "push": None}
    with pytest.raises(ValueError, match=message):
        check(**options | asked)


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    with pytest.raises(FileNotFoundError), written_whole(out) as partial:
        (partial / "file").write_text((partial / "other").read_text())
    assert not list(tmp_path.iterdir())
    with written_whole(out) as partial:
        assert not out.exists()
        (partial / "file").write_text("whole")
    assert (out / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "b", "file"]


def test_nothing_is_overwritten_but_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with written_whole(tmp_path / "empty") as partial:
        (partial / "file").touch()
    assert (tmp_path / "empty" / "file").exists()
    for name in ("empty", "empty/file"):
        with pytest.raises(FileExistsError, match=f"out={tmp_path / name} is there already"):
            check_free(tmp_path / name)
        with pytest.raises(FileExistsError), written_whole(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.rglob("*")] == ["empty", "file"]
