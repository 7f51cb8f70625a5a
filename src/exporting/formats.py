"""What an export may be asked for, and the folder that it ends in: whole, or not there at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript")}


def check(format: str, space: str, int8: bool, push: str | None) -> None:
    """Hold what is asked for against each other and against what is installed.

    Raises:
        ValueError: two settings do not go together; the message names both.
        ImportError: a package is missing.
    """
    if int8 and format != "onnx":
        raise ValueError(f"int8=true quantises the onnx file: set format=onnx, not {format}")
    if push and format != "safetensors":
        raise ValueError(f"push={push} uploads a folder with weights and a card: set format=safetensors, not {format}")
    if space == "pooled" and format == "safetensors":
        raise ValueError(
            "space=pooled: format=safetensors keeps the head and the network before it; choose a space when it is "
            "loaded, src.embedder.load(FOLDER, space='pooled')"
        )
    missing = [name for name in NEEDS.get(format, ()) if find_spec(name) is None]
    if missing:
        raise ImportError(f"format={format} needs {', '.join(missing)}: pip install '.[export]'")
    if push and find_spec("huggingface_hub") is None:
        raise ImportError("push needs the package huggingface_hub: pip install '.[hub]'")


def check_free(out: Path) -> None:
    """Raise a FileExistsError where `out` holds something, which nothing overwrites."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"out={out} is there already and not empty: choose another out, or delete it")


@contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A new folder to write into, that becomes `out` when the context ends well, and is gone when it does not.

    Raises:
        FileExistsError: `out` holds something.
    """
    check_free(out)
    # Beside the first of its parents that is there, so that a failure leaves no empty ones either.
    near = next(parent for parent in out.absolute().parents if parent.exists())
    partial = near / f".{out.name}.{os.getpid()}.partial"
    partial.mkdir()
    try:
        yield partial
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(partial, out.resolve())
    finally:
        shutil.rmtree(partial, ignore_errors=True)
