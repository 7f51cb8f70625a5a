"""What settings may be: the types that constructors name for theirs. `describe` puts one into words.

Checked are not the constructors' calls but the config that they are made from: see `src.settings`.
"""

import collections.abc
import re
import types
import typing
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Interval, Len, Predicate

MOST = 2**31 - 1  # of a number of anything

Plain = Annotated[bool | int | float | str | None, "a finite number, a text, true, false or null"]
Whole = Annotated[int, Interval(ge=0, le=MOST)]
Count = Annotated[int, Interval(ge=1, le=MOST)]
Counts = Annotated[Sequence[Count], Len(1), "a list of one or more whole numbers, each of at least 1"]
Pixels = Annotated[int, Interval(ge=1, le=1024)]
Stride = Annotated[int, Interval(ge=1, le=4)]
Width = Annotated[int, Interval(ge=1, le=512)]
Dimension = Annotated[int, Interval(ge=1, le=65536)]
Restarts = Annotated[int, Interval(ge=1, le=1000)]
Samples = Annotated[int, Interval(ge=1, le=2**20)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Probability = Annotated[float, Interval(ge=0, le=1)]
Fraction = Annotated[float, Interval(gt=0, le=1)]
Share = Annotated[float, Interval(gt=0, lt=1)]
Momentum = Annotated[float, Interval(ge=0, lt=1)]
Betas = Annotated[Sequence[Momentum], Len(2, 2), "two numbers from 0, below 1"]
GreyLevels = Annotated[Sequence[Annotated[float, Interval(ge=0, le=255)]], Len(3, 3), "three numbers from 0 to 255"]
GreyDeviations = Annotated[Sequence[Positive], Len(3, 3), "three numbers above 0"]
Fractions = Annotated[Sequence[Fraction], Len(2, 2), "two numbers, above 0 and at most 1"]
Positives = Annotated[Sequence[Positive], Len(2, 2), "two numbers above 0"]
# What would break a line, or is no character; but not the odd spaces that some systems put into the names of files.
UNSAID = ("Cc", "Cs", "Zl", "Zp")
Text = Annotated[
    str,
    Predicate(lambda text: bool(text.strip()) and not any(unicodedata.category(one) in UNSAID for one in text)),
    "a text of one line, not empty",
]
NAME = r"\w[\w.+-]*"
Name = Annotated[str, Predicate(lambda text: bool(re.fullmatch(NAME, text))), "a name without a slash"]
Repository = Annotated[
    str,
    Predicate(lambda text: bool(re.fullmatch(f"{NAME}/{NAME}", text))),
    "USER/NAME, a model on the Hugging Face hub",
]
Checksum = Annotated[
    str, Predicate(lambda text: bool(re.fullmatch("(md5|sha1|sha256):[0-9a-f]+", text))), "md5:…, sha1:… or sha256:…"
]
Resample = Literal["bilinear", "bicubic", "lanczos"]
Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Devices = Annotated[
    Annotated[int, Interval(ge=1, le=1024)] | Literal[-1, "-1", "auto"] | Annotated[Sequence[Whole], Len(1)],
    "a number of devices, a list of their numbers like [0,2], or auto for all",
]


def describe(hint: Any) -> str:
    """What a hint allows: `a number above 0`, `all, hard or easy`, `true or false`."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        metadata = [part for some in arguments[1:] for part in (some if isinstance(some, GroupedMetadata) else [some])]
        said = [part for part in metadata if isinstance(part, str)]
        return said[0] if said else " ".join([describe(arguments[0]), *_bounds(metadata)])
    if kind is Literal:
        return _or([str(value) for value in arguments])
    if kind in (typing.Union, types.UnionType):
        return _or([describe(part) for part in arguments])
    if kind is collections.abc.Sequence:
        return f"a list, each of it {describe(arguments[0])}"
    if kind is collections.abc.Mapping and arguments[1] is not Any:
        return f"a group, each of it {describe(arguments[1])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return words.get(kind, "a group of settings")


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    words = {"gt": "above {}", "ge": "of at least {}", "lt": "below {}", "le": "of at most {}"}
    bounds = [
        text.format(bound)
        for part in metadata
        for name, text in words.items()
        if (bound := getattr(part, name, None)) not in (None, MOST)
    ]
    if bounds:
        yield " and ".join(bounds)


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1])] * (len(words) > 1) + [words[-1]])
