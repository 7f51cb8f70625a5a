"""CUB-200-2011 (Wah et al., 2011): 11,788 photographs of 200 bird species."""

from pathlib import Path

from src.datamodules.published import Entry, PublishedDataModule


class CUB200(PublishedDataModule):
    """The first 100 species, 5,864 images, train; the last 100, 5,924, test."""

    layout = "a folder CUB_200_2011 with images/, images.txt, image_class_labels.txt and classes.txt"

    def read(self) -> tuple[list[str], list[Entry]] | None:
        for root in (self.root, self.root / "CUB_200_2011"):
            if (root / "images.txt").is_file():
                names = _table(root / "images.txt")
                labels = _table(root / "image_class_labels.txt")
                classes = _table(root / "classes.txt")
                entries = [(root / "images" / name, int(labels[key]) - 1) for key, name in names.items()]
                return [classes[key] for key in sorted(classes, key=int)], entries
        return None


def _table(path: Path) -> dict[str, str]:
    """Lines of a number and a value."""
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
