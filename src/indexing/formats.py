"""An index for other programs: its vectors as safetensors, or with the names of the images as a Parquet table."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from src.indexing.index import Index, from_column

ROWS = 65_536  # of a table written at once


def check(format: str) -> None:
    """Raise an ImportError where `format` needs a package that is missing."""
    if format == "parquet" and find_spec("pyarrow") is None:
        raise ImportError("format=parquet needs the package pyarrow: pip install '.[parquet]'")


def write(index: Index, format: str) -> Path:
    """Write `embeddings.<format>` into the index, whole or not at all, and return its path.

    Both have the rows in the order of `embeddings.npy`; the table has the columns `name`, `size`, `hash`, `embedding`.
    """
    path = index.folder / f"embeddings.{format}"
    partial = path.with_name(f".{path.name}.partial")
    try:
        (_write_safetensors if format == "safetensors" else _write_parquet)(index, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write_safetensors(index: Index, path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"embeddings": np.asarray(index.vectors)}, path)


def _write_parquet(index: Index, path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    dim = index.vectors.shape[1]
    vector = pyarrow.list_(pyarrow.float32(), dim)
    schema = pyarrow.schema(
        [("name", pyarrow.string()), ("size", pyarrow.int64()), ("hash", pyarrow.string()), ("embedding", vector)]
    )
    with ParquetWriter(path, schema) as table:
        for start in range(0, len(index), ROWS):
            found = index.names.execute(
                "select name, size, hash from images where row >= ? order by row limit ?", (start, ROWS)
            ).fetchall()
            names = [from_column(name).encode(errors="replace").decode() for name, _, _ in found]
            flat = pyarrow.array(index.vectors[start : start + ROWS].ravel())
            vectors = pyarrow.FixedSizeListArray.from_arrays(flat, dim)
            columns = [names, [size for _, size, _ in found], [digest for _, _, digest in found], vectors]
            table.write_table(pyarrow.table(columns, schema=schema))
