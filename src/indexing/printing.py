"""What is found, on standard output: a table for people, CSV or JSON lines for programs."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any


def printer(format: str, names: Sequence[str]) -> Callable[[Sequence[Any], str], None]:
    """A call that prints a record, of CSV the names of its columns first.

    It takes the record's values, as many as `names`, and the line that a `table` has instead.
    """
    lines = csv.writer(sys.stdout, lineterminator="\n")
    if format == "csv":
        lines.writerow(names)

    def write(values: Sequence[Any], line: str) -> None:
        if format == "table":
            print(line)
        elif format == "csv":
            lines.writerow(values)
        else:
            print(json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False))

    return write
