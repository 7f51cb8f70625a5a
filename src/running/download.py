"""Files from the network: resumed where they broke off, verified, and in place only when complete."""

import hashlib
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte


def download(url: str, path: Path, checksum: str) -> Path:
    """Fetch `url` to `path`, with a progress bar; `checksum` is `md5:…` or `sha1:…`.

    The bytes gather in `<path>.part`: a broken transfer leaves them there and the next call goes on from them. A file
    with the wrong checksum is deleted, so that a retry starts afresh.

    Returns:
        `path`; at once where it already has the right checksum.

    Raises:
        OSError: unreachable, broken off, disk full, or wrong checksum; the message names the url and the reason.
    """
    if path.exists() and _digest(path, checksum) == checksum:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(url, part)
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        have = part.stat().st_size if part.exists() else 0
        kept = f"; {have:,} bytes are kept in {part}, run again to resume" if have else ""
        raise OSError(f"{url} could not be downloaded: {getattr(error, 'reason', error)}{kept}") from error
    found = _digest(part, checksum)
    if found != checksum:
        part.unlink()
        raise OSError(
            f"{url} has the checksum {found}, not {checksum}: it was deleted; run again, or fetch it from elsewhere"
        )
    os.replace(part, path)
    return path


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what we have: complete, the checksum decides
            return
        raise
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        start = file.tell()
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as progress:
            task = progress.add_task(url.rsplit("/", 1)[-1], total=total, completed=start)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
        if total is not None and file.tell() != total:
            raise ConnectionError(f"broke off after {file.tell():,} of {total:,} bytes")


def _digest(path: Path, checksum: str) -> str:
    algorithm = checksum.split(":", 1)[0]
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
