import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.metrics.groupings import read_groupings

CLASSES = ["a", "b", "c"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(CLASSES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
)


def test_groups_are_numbered_by_class(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("x: {one: [c], two: [a, b]}\ny: {one: [b], two: [c]}\n")
    found = read_groupings(str(path), CLASSES)
    assert {name: groups.tolist() for name, groups in found.items()} == {"x": [1, 1, 0], "y": [-1, 0, 1]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x: {one: [a], two: [wombat]}", r"x: 'wombat' is no class of the dataset: it has a, b, c"),
        (b"x: {one: [a], two: [a]}", "x: a is named twice"),
        (b"x: {one: [a]}", "x must have two groups of classes or more"),
        (b"x: [a, b]", "x must have two groups"),
        (b"x: {one: a, two: [b]}", "x: one must be a list of class names"),
        (b"x: {one: [], two: [b]}", "x: one must be a list of class names"),
        (b"x: {one: [1], two: [b]}", "x: one must be a list of class names"),
        (b"classes: {one: [a], two: [b]}", "'classes' cannot name a grouping"),
        (b"no: {one: [a], two: [b]}", "'False' cannot name a grouping"),
        (b"a/b: {one: [a], two: [b]}", "'a/b' cannot name a grouping"),
        (b"[a, b]", "must be name: {group"),
        (b"", "must be name: {group"),
        (b"{x: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"!!python/object/apply:os.system [true]", "is not YAML"),
        (b"[" * 60_000, "is not YAML"),
        (b"#" * 2**20, "more than 65,536 bytes"),
    ],
)
def test_what_is_no_grouping_is_named_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"groupings of classes in {path}: .*{message}") as raised:
        read_groupings(str(path), CLASSES)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("source", ["nowhere", "/dev/zero", "..", "conf", "a\0b"])
def test_what_is_no_file_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="groupings of classes in"):
        read_groupings(source, CLASSES)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=VALUES.map(lambda value: yaml.safe_dump(value).encode()) | st.binary(max_size=60))
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert all(len(groups) == 3 for groups in read_groupings(str(path), CLASSES).values())
