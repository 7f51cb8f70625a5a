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


def test_of_many_classes_ten_are_named(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("x: {one: [wombat], two: [a]}")
    names = [chr(ord("a") + number) for number in range(11)]
    for classes, said in ((names[:10], "a, b, c, d, e, f, g, h, i, j"), (names, "a, b, c, d, e, f, g, h, i, j, …")):
        with pytest.raises(ValueError, match=f"it has {said}$"):
            read_groupings(str(path), classes)


def test_a_file_may_be_as_long_as_it_says_and_no_longer(tmp_path: Path) -> None:
    path, groups = tmp_path / "own.yaml", "x: {one: [a], two: [b]}\n#"
    path.write_text(groups.ljust(2**16, "#"))
    assert list(read_groupings(str(path), CLASSES)) == ["x"]
    path.write_text(groups.ljust(2**16 + 1, "#"))
    with pytest.raises(ValueError, match="more than 65,536 bytes"):
        read_groupings(str(path), CLASSES)


def test_where_there_is_no_file_the_shipped_ones_are_named() -> None:
    with pytest.raises(ValueError, match=r"in nowhere: there is no such file; give the path of one, or cifar10$"):
        read_groupings("nowhere", CLASSES)


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
