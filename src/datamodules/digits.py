"""scikit-learn's bundled handwritten digits: real images without a download."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from src.datamodules.base import StoreDataModule
from src.datamodules.store import write_split


class Digits(StoreDataModule):
    """1,797 digits of 8x8 pixels (UCI Optical Recognition of Handwritten Digits), enlarged to 32x32 RGB.

    A stratified fifth, 360 images, is the test set.
    """

    side = 32

    def build(self, folder: Path) -> dict[str, Any]:
        digits = load_digits()
        grey = (digits.images * (255 / 16)).round().astype(np.uint8)  # 17 ink levels to 256 grey ones
        images = np.stack([np.asarray(Image.fromarray(g).resize((32, 32), Image.Resampling.BILINEAR)) for g in grey])
        images = np.repeat(images[..., None], 3, axis=3)
        train, test = train_test_split(np.arange(len(images)), test_size=0.2, stratify=digits.target, random_state=0)
        for split, rows in (("train", np.sort(train)), ("test", np.sort(test))):
            write_split(folder, split, zip(images[rows], digits.target[rows], strict=True))
        return {"classes": [str(name) for name in digits.target_names], "source": "sklearn.datasets.load_digits"}
