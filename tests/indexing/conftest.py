"""Indices of digits, and vectors without a network."""

from pathlib import Path

import numpy as np
import pytest

from src.embedder import Embedder, load
from src.indexing.building import build
from src.indexing.index import Index
from src.indexing.sources import find_source
from tests.conftest import write_digits


@pytest.fixture(scope="session")
def embedder(trained: Path) -> Embedder:
    return load(trained, accelerator="cpu", precision="32-true")


@pytest.fixture
def pictures(trained: Path, cache: Path, tmp_path: Path) -> Path:
    """Forty digits in two folders."""
    for path in write_digits(cache / "digits", tmp_path / "pictures", 40):
        if int(path.stem) >= 25:
            (path.parent / "more").mkdir(exist_ok=True)
            path.rename(path.parent / "more" / path.name)
    return tmp_path / "pictures"


@pytest.fixture
def index(embedder: Embedder, pictures: Path, tmp_path: Path) -> Index:
    build(embedder, find_source(str(pictures)), tmp_path / "index")
    return Index(tmp_path / "index")


def points(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Unit-norm vectors `(count, dim)`."""
    found = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    normalised: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return normalised
