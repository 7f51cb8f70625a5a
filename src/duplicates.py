"""Find near-duplicates in an index, or across two: `python -m src.duplicates index=INDEX`."""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from src.running import cli

if TYPE_CHECKING:
    from src.indexing.duplicates import Group, Threshold
    from src.indexing.gallery import Picture
    from src.indexing.index import Index


@hydra.main(version_base="1.3", config_path="../conf", config_name="duplicates")
@cli.telling_mistakes
def main(config: DictConfig) -> None:
    """Choose the threshold, find the pairs, print the groups and draw them."""
    from src import settings

    plain = cli.settled(config)
    settings.check(plain, settings.DUPLICATES)

    from src.indexing.duplicates import choose_threshold, group, similar_pairs
    from src.indexing.gallery import write
    from src.indexing.progress import showing
    from src.indexing.searching import load_network, open_indices

    indices = open_indices([path for path in (plain["index"], plain["against"]) if path])
    one, other = indices[0], indices[1] if len(indices) > 1 else None
    remarks = []
    if plain["threshold"] == "auto":
        chosen = choose_threshold(other or one, load_network(one, plain["run"], plain["accelerator"]))
        threshold, remarks = chosen.value, [_said(chosen)]
        print(remarks[0], file=sys.stderr)
    else:
        threshold = float(plain["threshold"])
    with showing("images compared", len(one)) as report:
        copies = [index.copies() for index in indices]
        pairs = similar_pairs(one.vectors, other.vectors if other else None, threshold, report, copies)
    groups = group(one, other, pairs)
    images = {member for found in groups for member in found.members}
    if other:
        mine = sum(which == 0 for which, _ in images)
        summary = f"{mine:,} of the {len(one):,} images of {one.folder} have a copy in {other.folder}"
    else:
        summary = f"{len(groups):,} groups of {len(images):,} near-duplicates among {len(one):,} images"
    printed = _print(groups, indices, plain["format"])
    if plain["html"]:
        title = f"{summary}, from a similarity of {threshold:.4f} on"
        count = write(Path(plain["html"]).expanduser(), title, remarks, (_drawn(row, indices) for row in printed))
    for _ in printed:  # of a full page, what is left is still printed
        pass
    print(f"{summary}, from a similarity of {threshold:.4f} on", file=sys.stderr)
    if plain["html"]:
        more = f": the first {count:,} of {len(groups):,} groups" if count < len(groups) else ""
        print(f"{plain['html']}{more}", file=sys.stderr)


def _said(chosen: "Threshold") -> str:
    copies = ", ".join(f"{100 * share:.1f}% {name}" for name, share in chosen.copies.items())
    return (
        f"threshold={chosen.value:.4f}, chosen from the data: of copies made of the images as many are as similar to "
        f"their original: {copies}; and {100 * chosen.others:.2f}% of the images are as similar to another one as it is"
    )


def _print(groups: "Sequence[Group]", indices: "Sequence[Index]", format: str) -> "Iterator[tuple[int, Group]]":
    """Print what passes through, a line an image."""
    from src.datamodules.images import printable
    from src.indexing.printing import printer

    write = printer(format, ("group", "similarity", "identical", "path", "index", "row"))
    for number, found in enumerate(groups, 1):
        if format == "table":
            print(f"group {number}")
        for (which, row), similarity, identical in zip(*found, strict=True):
            path = printable(indices[which].path(row))
            values = (number, round(similarity, 6), identical, path, printable(indices[which].folder), row)
            write(values, f"  {similarity:7.4f}  {'identical  ' * identical}{cli.on_one_line(path)}")
        yield number, found


def _drawn(row: "tuple[int, Group]", indices: "Sequence[Index]") -> "tuple[str, list[Picture]]":
    from src.indexing.gallery import Picture

    number, found = row
    pictures = [
        Picture(
            partial(indices[which].open, at), f"{similarity:.4f}" + ", identical" * identical, indices[which].path(at)
        )
        for (which, at), similarity, identical in zip(*found, strict=True)
    ]
    return f"Group {number}", pictures


if __name__ == "__main__":
    cli.run(main)
