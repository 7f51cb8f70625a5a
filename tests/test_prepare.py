"""What `python -m src.prepare` says of a folder of images and of a store that it finds."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import Run


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def test_copies_are_counted_and_a_bare_store_is_described(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name, seeds in {"Train/a": [0, 1, 1, 1], "Train/b": [2, 3], "Test/c": [4, 2, 5], "Test/d": [6, 0, 4]}.items():
        for number, seed in enumerate(seeds):
            save(root / name / f"{number}.png", seed)
    options = ["dataset=folder", f"dataset.root={root}", "dataset.size=8", f"cache_dir={tmp_path / 'cache'}"]
    prepared = run("src.prepare", *options)
    assert prepared.returncode == 0, prepared.stderr
    assert "train         6 images of 8x8, 2 classes of 2 to 4 images, 2 of them copies of others" in prepared.stdout
    assert "test          6 images of 8x8, 2 classes of 3 to 3 images, 1 of them copies of others" in prepared.stdout
    assert "2 test images are also in the training set, first test row 1, training row 4" in prepared.stdout

    (described,) = (tmp_path / "cache").rglob("meta.json")
    meta = json.loads(described.read_text())
    del meta["source"], meta["created"]
    described.write_text(json.dumps(meta | {"left_out": {"a": 1}}))
    again = run("src.prepare", *options)
    assert again.returncode == 0, again.stderr
    assert "from an unknown source" in again.stdout
