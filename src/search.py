"""Find the images of an index most similar to others: `python -m src.search index=INDEX query=IMAGE`."""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig

from src.running import cli

if TYPE_CHECKING:
    from src.indexing.gallery import Picture
    from src.indexing.index import Index
    from src.indexing.searching import Queries, Result


@hydra.main(version_base="1.3", config_path="../conf", config_name="search")
@cli.telling_mistakes
def main(config: DictConfig) -> None:
    """Search, print what is found as it is found, and draw it."""
    from src import settings

    plain = cli.settled(config)
    settings.check(plain, settings.SEARCH)

    from src.indexing.gallery import write
    from src.indexing.searching import find, open_indices

    indices = open_indices(plain["index"])
    queries = _queries(config, indices)
    if config.approximate:
        from src.indexing.approximate import find as find_approximately

        found = find_approximately(indices, queries, config.k, Path(config.cache_dir).expanduser())
    else:
        found = find(indices, queries, config.k)
    numbers = count()
    printed = (result for result, _ in zip(_print(found, config.format), numbers, strict=False))
    if config.html:
        title = f"The {config.k} most similar of {sum(map(len, indices)):,} images"
        remarks = [f"{len(index):,} images of {index.meta['images']}" for index in indices]
        shown = write(Path(config.html).expanduser(), title, remarks, map(_drawn, printed))
    for _ in printed:  # of a full page, what is left is still printed
        pass
    if config.html:
        asked = next(numbers)
        more = f": the first {shown:,} of {asked:,} queries" if shown < asked else ""
        print(f"{config.html}{more}", file=sys.stderr)


def _queries(config: DictConfig, indices: "Sequence[Index]") -> "Iterator[Queries]":
    from src.indexing.index import Index
    from src.indexing.searching import check_same_network, from_images, from_index, from_vectors, is_index

    path = Path(config.query).expanduser()
    if is_index(path):
        asked = Index(path)
        check_same_network(asked, indices[0])
        itself = len(indices) == 1 and asked.folder.resolve() == indices[0].folder.resolve()
        return from_index(asked, config.rows, itself)
    if config.rows is not None:
        raise ValueError(f"rows={list(config.rows)}: only a query that is an index has rows")
    if path.suffix == ".npy":
        return from_vectors(path, indices[0].meta["dim"])

    from src.indexing.searching import load_network

    return from_images(config.query, load_network(indices[0], config.run, config.accelerator))


def _print(found: "Iterable[Result]", format: str) -> "Iterator[Result]":
    """Print what passes through, a line a hit."""
    from src.datamodules.images import printable
    from src.indexing.printing import printer

    write = printer(format, ("query", "rank", "similarity", "path", "index", "row"))
    for result in found:
        query = printable(result.query)
        if format == "table":
            print(cli.on_one_line(query))
        for rank, hit in enumerate(result.hits, 1):
            path, index = printable(hit.index.path(hit.row)), printable(hit.index.folder)
            values = (query, rank, round(hit.similarity, 6), path, index, hit.row)
            write(values, f"{rank:6}  {hit.similarity:7.4f}  {cli.on_one_line(path)}")
        yield result


def _drawn(result: "Result") -> "tuple[str, list[Picture]]":
    from src.indexing.gallery import Picture

    query = [Picture(result.open, "query", result.query)] if result.open else []
    hits = [Picture(hit.open, f"{hit.similarity:.3f}", hit.index.path(hit.row)) for hit in result.hits]
    return result.query, query + hits


if __name__ == "__main__":
    cli.run(main)
