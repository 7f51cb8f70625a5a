"""From a run and a folder of images to what is found, as a user goes that way."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.embedder import load
from tests.conftest import Run, write_digits


@pytest.fixture
def pictures(trained: Path, cache: Path, tmp_path: Path) -> Path:
    """Thirty digits, one of them twice, and a file that is no image."""
    paths = write_digits(cache / "digits", tmp_path / "pictures", 30)
    (tmp_path / "pictures" / "copy.png").write_bytes(paths[7].read_bytes())
    (tmp_path / "pictures" / "broken.png").write_bytes(b"no image")
    return tmp_path / "pictures"


def test_embed_search_and_find_duplicates(run: Run, trained: Path, pictures: Path, tmp_path: Path) -> None:
    index = tmp_path / "an index"
    embed = [f"run={trained}", f"images={pictures}", f"out={index}", "accelerator=cpu"]
    done = run("src.embed", *embed, "format=safetensors")
    assert done.returncode == 0, done.stderr
    assert re.search(r"left out: .*broken\.png can't be decoded: it is no image", done.stdout)
    assert "31 images of the folder" in done.stdout
    assert "31 embedded now" in done.stdout
    vectors = np.load(index / "embeddings.npy")
    expected = load(trained, accelerator="cpu")(sorted(p for p in pictures.glob("*.png") if p.stem != "broken"))
    assert np.array_equal(vectors, expected)
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(index / "embeddings.safetensors")["embeddings"], vectors)
    assert "0 embedded now (0 images/s), 31 known before, 1 left out" in run("src.embed", *embed).stdout

    page = tmp_path / "page.html"
    found = run("src.search", f"index={index}", f"query={pictures / '0007.png'}", "k=3", "format=csv", f"html={page}")
    assert found.returncode == 0, found.stderr
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    same = {str(pictures / name) for name in ("0007.png", "copy.png")}
    assert {row["path"] for row in rows[:2]} == same, "which of the two is first, rounding decides"
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-5)
    assert page.read_text().count("<img") == 4
    found = run("src.search", f"index=[{index}]", f"query={index}", "rows=[7]", "k=1", "format=jsonl")
    assert json.loads(found.stdout)["path"] == str(pictures / "copy.png"), found.stderr

    found = run("src.duplicates", f"index={index}", "threshold=0.999999", "format=csv", f"html={page}")
    assert found.returncode == 0, found.stderr
    rows = [row for row in csv.DictReader(io.StringIO(found.stdout)) if row["identical"] == "True"]
    assert [row["path"] for row in rows] == [str(pictures / name) for name in ("0007.png", "copy.png")]
    assert "near-duplicates among 31 images" in page.read_text()
    chosen = run("src.duplicates", f"index={index}")
    assert re.search(r"threshold=0\.\d+, chosen from the data: .*% re-encoded", chosen.stderr)
    assert str(pictures / "copy.png") in chosen.stdout


def test_across_two_indices_what_lies_in_both_is_found(run: Run, trained: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    Image.open(pictures / "0009.png").save(tmp_path / "test" / "leaked.png", compress_level=1)
    for images, out in ((pictures, "train"), (tmp_path / "test", "tested")):
        assert run("src.embed", f"run={trained}", f"images={images}", f"out={tmp_path / out}").returncode == 0
    found = run(
        "src.duplicates",
        f"index={tmp_path / 'tested'}",
        f"against={tmp_path / 'train'}",
        "threshold=0.99999",
        "format=csv",
    )
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    assert [Path(row["path"]).name for row in rows] == ["leaked.png", "0009.png"]
    assert "1 of the 1 images of" in found.stderr


def test_a_table_for_other_programs(run: Run, trained: Path, pictures: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    done = run("src.embed", f"run={trained}", f"images={pictures}", f"out={tmp_path / 'out'}", "format=parquet")
    assert done.returncode == 0, done.stderr
    table = parquet.read_table(tmp_path / "out" / "embeddings.parquet")
    assert table.column_names == ["name", "size", "hash", "embedding"]
    assert table["name"][0].as_py() == "0000.png"
    assert table["size"][0].as_py() == (pictures / "0000.png").stat().st_size
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    assert np.array_equal(vectors, np.load(tmp_path / "out" / "embeddings.npy"))


@pytest.mark.parametrize(
    ("module", "settings", "words"),
    [
        ("src.embed", ["run=nowhere", "images=.", "out=out"], "no run is there"),
        ("src.embed", ["images=.", "out=out"], "run is missing"),
        ("src.embed", ["run=.", "images=nowhere", "out=out"], "images=nowhere"),
        ("src.embed", ["run=.", "images=.", "out=out", "space=both"], "space=both: must be embedding or pooled"),
        ("src.search", ["index=nowhere", "query=x"], "nowhere is no index"),
        ("src.search", ["index=nowhere", "query=x", "k=0"], "k=0: must be a whole number of at least 1"),
        ("src.duplicates", ["index=nowhere"], "nowhere is no index"),
        ("src.duplicates", ["index=nowhere", "threshold=2"], "threshold=2: must be"),
    ],
)
def test_a_mistake_gets_one_line(run: Run, module: str, settings: list[str], words: str) -> None:
    done = run(module, *settings)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
