"""A folder to hand on: the same network, no private path, and a card whose numbers are the run's."""

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from src.embedder import load
from src.exporting.hub import public, read_scores, write
from src.running import runs
from tests.conftest import Run


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folder")
    write(load(trained), runs.load_config(trained), read_scores(trained, "last"), out)
    return out


def test_it_opens_to_the_same_network(trained: Path, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "config.json", "config.yaml", "model.safetensors")
    ]
    ours, theirs = (load(place, accelerator="cpu") for place in (trained, folder))
    state = ours.encoder.state_dict()
    for name, weight in theirs.encoder.state_dict().items():
        assert torch.equal(weight, state[name]), name
    assert ours.fingerprint == theirs.fingerprint
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(ours.encode(images), theirs.encode(images))
    pooled = [load(place, space="pooled", accelerator="cpu").encode(images) for place in (trained, folder)]
    np.testing.assert_array_equal(pooled[0], pooled[1])


def test_no_place_of_the_machine_is_told(trained: Path, folder: Path) -> None:
    for path in folder.iterdir():
        assert str(trained.parent).encode() not in path.read_bytes(), path.name
    config = OmegaConf.to_container(runs.load_config(folder))
    before = OmegaConf.to_container(runs.load_config(trained))
    assert isinstance(config, dict)
    assert isinstance(before, dict)
    assert config["dataset"]["cache_dir"] == config["run_dir"] == "PATH"
    for name in ("backbone", "input", "protocol", "embedding_dim", "method", "seed"):
        assert config[name] == before[name]


def test_what_is_private() -> None:
    home = str(Path.home())
    private = ["/", "/data/x", home, f"local-dir:{home}/net", "~alice/x", "C:\\Users\\x", "\\\\server\\share"]
    known = ["a/b", "~/.cache/isif", "https://ai.stanford.edu/~acoates/x.tar", "src.backbones.resnet.resnet18", "1/2"]
    assert public({"a": [private, {"b": known}]}) == {"a": [["PATH"] * len(private), {"b": known}]}


def test_the_hub_reads_the_card(trained: Path, folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    data = hub.ModelCard.load(folder / "README.md").data
    assert {"unsupervised", "invariant_spreading", "resnet18_slim", "digits"} <= {*data.tags}
    assert data.metrics == ["knn/top1"]
    last = json.loads((trained / "results.json").read_text())["last"]
    told = {result.metric_type: result.metric_value for result in data.eval_results}
    assert {"knn/top1", "pooled/knn/top1", "linear/svm"} <= told.keys()
    assert all(last[name] == value for name, value in told.items())


def test_every_number_of_the_card_is_the_runs(trained: Path, folder: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    text = (folder / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    scores = {name: cells for name, *cells in rows if name in results["last"]}
    assert {"knn/top1", "pooled/knn/top5", "similarity/AUC", "pooled/geometry/rank"} <= scores.keys()
    for name, (*values, interval) in scores.items():
        digits = 3 if "geometry" in name else 2
        for cell, row in zip(values, ("untrained", "best", "last"), strict=True):
            assert cell == (f"{results[row][name]:.{digits}f}" if name in results[row] else "")
        assert re.findall(r"-?[\d.]+", interval) == [f"{end:.2f}" for end in results["intervals"].get(name, [])]
    facts = {name: cells[0] for name, *cells in rows if len(cells) == 1}
    assert (facts["knn.k"], facts["knn.temperature"], facts["deciding space"]) == ("20", "0.1", "embedding")
    assert f"Seed {results['seed']};" in text
    assert f"torch {results['versions']['torch']}" in text
    assert results["hardware"]["cpu"] in text
    best = results["best"]["epoch"]
    assert f"Best epoch: epoch {best}, chosen on the test images. Last epoch: {results['last']['epoch']}." in text


def test_a_card_is_what_a_strangers_run_says_and_no_more(trained: Path, tmp_path: Path) -> None:
    """Names in it can't end a cell or begin a tag or a second head."""
    results = read_scores(trained, "last")
    results["hardware"] = results["hardware"] | {"gpu": "a | b\n---\n<script>"}
    results["choices"] = results["choices"] | {"method": "m\n---\n# x: ["}
    write(load(trained), runs.load_config(trained), results, tmp_path)
    text = (tmp_path / "README.md").read_text()
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(head)["tags"][3] == "m\n---\n# x: ["
    assert "a \\| b --- &lt;script>" in body
    assert "<script" not in body
    assert "\n# x" not in body


def test_a_run_that_is_not_finished_has_no_card(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(ValueError, match="no scores of its checkpoint previous"):
        read_scores(tmp_path / "run", "previous")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"results.json is missing.*let the run finish"):
        read_scores(tmp_path / "run", "last")


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, str | None, bytes]]]]:
    """A hub as huggingface.co answers where all files are small: its address, and what it was told."""
    told: list[tuple[str, str | None, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            login = self.headers.get("Authorization")
            told.append((self.path, login, body))
            answer: dict[str, Any] = {"name": "somebody", "type": "user", "errors": [], "warnings": []}
            if self.path == "/api/repos/create":
                answer = {"url": f"http://127.0.0.1:{http.server_port}/somebody/net"}
            elif "/preupload/" in self.path:
                files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
                answer = {"files": files}
            elif "/commit/" in self.path:
                answer = {"commitUrl": "http://127.0.0.1/somebody/net/commit/1", "commitOid": "1" * 40}
            content = json.dumps(answer).encode()
            self.send_response(401 if login == "Bearer hf_old" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", told
        http.shutdown()


def test_it_is_uploaded_as_it_was_written(run: Run, tmp_path: Path, trained: Path, hub: Any) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    address, told = hub
    options = [f"run={trained}", "format=safetensors", f"out={tmp_path / 'out'}", "push=somebody/net"]
    done = run("src.export", *options, HF_ENDPOINT=address, HF_TOKEN="hf_new")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{address}/somebody/net", str(tmp_path / "out")]
    asked = {path: (login, body) for path, login, body in told}
    assert json.loads(asked["/api/repos/create"][1])["visibility"] == "private"
    login, commit = asked["/api/models/somebody/net/commit/main"]
    assert login == "Bearer hf_new"
    parts = [json.loads(line) for line in commit.splitlines()]
    files = {part["value"]["path"]: part["value"]["content"] for part in parts if part["key"] == "file"}
    assert {name: base64.b64decode(content) for name, content in files.items()} == {
        path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()
    }


def test_without_a_login_nothing_is_begun(run: Run, tmp_path: Path, trained: Path, hub: Any) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    options = [f"run={trained}", "format=safetensors", f"out={tmp_path / 'out'}", "push=somebody/net"]
    for environment, message in (
        ({"HF_ENDPOINT": hub[0]}, "nobody is logged in at the hub: run `hf auth login`, or set HF_TOKEN"),
        ({"HF_ENDPOINT": hub[0], "HF_TOKEN": "hf_old"}, "the hub refuses the login ("),
        ({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_new"}, "the hub can't be reached ("),
    ):
        done = run("src.export", *options, **environment)
        assert done.returncode == 1
        assert f"error: push=somebody/net: {message}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()
