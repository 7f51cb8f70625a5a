import hashlib
import os
from pathlib import Path

import pytest

from src.running.download import download
from tests.conftest import Server

CONTENT = os.urandom(3_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


def test_whole_file(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    path = download(f"{server.url}/data.bin", tmp_path / "new" / "data.bin", MD5)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in path.parent.iterdir()] == ["data.bin"]
    download(f"{server.url}/data.bin", path, MD5)
    assert len(server.asked) == 1, "a file that is there is not fetched again"


def test_other_checksums(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    sha1 = f"sha1:{hashlib.sha1(CONTENT).hexdigest()}"
    assert download(f"{server.url}/data.bin", tmp_path / "data.bin", sha1).read_bytes() == CONTENT


def test_a_broken_transfer_is_kept_and_resumed(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"], server.cut["data.bin"] = CONTENT, 1_000_000
    with pytest.raises(OSError, match=r"1,000,000 bytes are kept in .*run again to resume"):
        download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5)
    assert not (tmp_path / "data.bin").exists()
    download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000000-"]


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT[:-1]
    with pytest.raises(OSError, match=f"not {MD5}"):
        download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5)
    assert list(tmp_path.iterdir()) == []


def test_a_complete_part_is_taken_as_it_is(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5).read_bytes() == CONTENT


def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.files["data.bin"] = CONTENT
    (tmp_path / "data.bin.part").write_bytes(b"x" * 1000)
    with pytest.raises(OSError, match="checksum"):
        download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5)
    assert download(f"{server.url}/data.bin", tmp_path / "data.bin", MD5).read_bytes() == CONTENT


def test_missing_and_unreachable(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="could not be downloaded: Not Found"):
        download(f"{server.url}/none.bin", tmp_path / "data.bin", MD5)
    with pytest.raises(OSError, match=r"could not be downloaded: .*refused"):
        download("http://127.0.0.1:9/data.bin", tmp_path / "data.bin", MD5)
    assert list(tmp_path.iterdir()) == []
