"""How a score is called: `[validation/][<space>/]<metric>/<score>`, the space where it is not the one that decides."""

import re

SPACES = ("embedding", "pooled")  # the unit-norm output of the head, and of the backbone before it
VALIDATION = "validation/"  # begins the names of the held-out training images' scores
NAME = re.compile(rf"({VALIDATION})?(?:({'|'.join(SPACES)})/)?(.+)")


def is_aside(name: str) -> bool:
    """Whether a score is of the space that decides nothing."""
    return name.removeprefix(VALIDATION).startswith(tuple(f"{space}/" for space in SPACES))


def bare_of(score: str) -> str:
    """`<metric>/<score>` alone."""
    return NAME.fullmatch(score)[3]  # type: ignore[index]


def in_space(score: str, space: str) -> str:
    """The name of the deciding space's `score` in the other one, `space`."""
    held_out, _, bare = NAME.fullmatch(score).groups(default="")  # type: ignore[union-attr]
    return f"{held_out}{space}/{bare}"
