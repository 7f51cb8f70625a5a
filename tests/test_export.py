"""`python -m src.export` as a user runs it, and what it wrote as somebody uses it who has no torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra.utils import instantiate
from PIL import Image

from src.embedder import load
from src.running import runs
from tests.conftest import Run

# What somebody writes by preprocessing.json, with onnxruntime, numpy and Pillow.
ELSEWHERE = """
import json, sys
sys.modules["torch"] = None
import numpy as np, onnxruntime
from PIL import Image, ImageOps

model, preprocessing, arrays, out, k, temperature, *files = sys.argv[1:]
said = json.load(open(preprocessing))
steps = {step["do"]: step for step in said["steps"]}
resize, crop = steps["resize"], steps["crop"]
rows = slice(crop["top"], crop["top"] + crop["height"]), slice(crop["left"], crop["left"] + crop["width"])
session = onnxruntime.InferenceSession(model)

def embed(images):
    return session.run([said["output"]["name"]], {said["input"]["name"]: images})[0]

def read(path):
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    resized = image.resize((resize["width"], resize["height"]), Image.Resampling[resize["filter"].upper()])
    return np.asarray(resized)[rows]

given = np.load(arrays)
query, gallery = (embed(np.ascontiguousarray(given[name][:, *rows])) for name in ("query", "gallery"))
similarity = query @ gallery.T
nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :int(k)]
weights = np.exp(np.take_along_axis(similarity, nearest, 1).astype(np.float64) / float(temperature))
labels = given["gallery_labels"][nearest]
votes = np.stack([(weights * (labels == label)).sum(1) for label in range(10)], 1)
top1 = 100 * (votes.argmax(1) == given["query_labels"]).mean()
np.savez(out, top1=top1, files=np.concatenate([embed(read(file)[None]) for file in files]))
"""


@pytest.fixture(autouse=True)
def _needs_the_extra() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra export is not installed")


def test_onnx_scores_as_the_run_did_without_torch(run: Run, tmp_path: Path, cache: Path, trained: Path) -> None:
    out = tmp_path / "out"
    done = run("src.export", f"run={trained}", "int8=true", f"out={out}")
    assert done.returncode == 0, done.stderr
    first, full, small, last = done.stdout.splitlines()
    assert sorted(path.name for path in out.iterdir()) == ["model.int8.onnx", "model.onnx", "preprocessing.json"]
    assert last == str(out)
    assert " from the run's vectors, of 360 images" in first
    written = json.loads((trained / "results.json").read_text())
    top1 = written["last"]["knn/top1"]
    assert full.split()[:5] == ["model.onnx", *first.split()[1:2], "MiB", "knn/top1", f"{top1:.2f}"]
    name, size, _, _, score, speed, _ = small.split()
    assert name == "model.int8.onnx"
    assert float(size) < float(first.split()[1]) / 2
    assert float(score) == pytest.approx(top1, abs=5)
    assert float(speed) > 0

    config = runs.load_config(trained)
    datamodule = instantiate(config.dataset, _partial_=True, cache_dir=str(cache))(augmentation=None)
    datamodule.setup()
    train, test = (datamodule.store.splits[split] for split in ("train", "test"))
    chosen = datamodule.gallery_rows
    np.savez(
        tmp_path / "digits.npz",
        query=test.images,
        query_labels=test.labels,
        gallery=train.images[chosen],
        gallery_labels=train.labels[chosen],
    )
    files = [tmp_path / "turned.jpg", tmp_path / "glass.png"]
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(pixels[..., :3]).save(files[0], exif=exif)
    Image.fromarray(pixels).save(files[1])
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    command = [sys.executable, tmp_path / "elsewhere.py", out / "model.onnx", out / "preprocessing.json"]
    command += [tmp_path / "digits.npz", tmp_path / "found.npz", "20", "0.1", *files]
    subprocess.run([str(part) for part in command], check=True)
    found = np.load(tmp_path / "found.npz")
    assert float(found["top1"]) == pytest.approx(top1, abs=0.1)
    assert top1 != pytest.approx(written["untrained"]["knn/top1"], abs=0.2), "another network scores otherwise"
    expected = load(trained, accelerator="cpu", precision="32-true")(files)
    np.testing.assert_allclose(found["files"], expected, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_torch_of_the_pooled_features_into_the_run(run: Run, tmp_path: Path, trained: Path) -> None:
    """By default it goes into the run's folder; from a folder without the dataset it is checked on random pixels."""
    import torch

    copy = shutil.copytree(trained, tmp_path / "copy")
    done = run("src.export", f"run={copy}", "format=torch", "space=pooled", ISIF_CACHE=str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    assert f"checked on random pixels: the images of dataset=digits are not at hand (no store {tmp_path}" in done.stdout
    assert done.stdout.splitlines()[-1] == str(copy / "exported" / "torch")
    program = torch.export.load(copy / "exported" / "torch" / "model.pt2").module()
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    expected = load(copy, space="pooled", accelerator="cpu", precision="32-true").encode(images.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(program(images).numpy(), expected, atol=1e-6)
    described = json.loads((copy / "exported" / "torch" / "preprocessing.json").read_text())
    assert described["output"]["space"] == "pooled"
    assert described["output"]["shape"] == ["N", expected.shape[1]]

    again = run("src.export", f"run={copy}", "format=torch")
    assert again.returncode == 1
    assert f"error: out={copy / 'exported' / 'torch'} is there already and not empty" in again.stderr


def test_an_exported_run_is_a_run(run: Run, tmp_path: Path, trained: Path) -> None:
    done = run("src.export", f"run={trained / 'checkpoints' / 'best.ckpt'}", "format=safetensors", f"out={tmp_path}/a")
    assert done.returncode == 0, done.stderr
    assert "best checkpoint, epoch 1" in (tmp_path / "a" / "README.md").read_text()
    done = run("src.export", f"run={tmp_path}/a", f"out={tmp_path}/b")
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "b" / "preprocessing.json").read_text())
    assert said["fingerprint"] == load(trained, "best").fingerprint


def test_mistakes_are_told_in_one_line(run: Run, tmp_path: Path, trained: Path) -> None:
    far = shutil.copytree(trained, tmp_path / "far")
    config = yaml.safe_load((far / "config.yaml").read_text())
    config["dataset"]["name"] = "elsewhere"
    (far / "config.yaml").write_text(yaml.safe_dump(config))
    for options, message in (
        (["run=nowhere"], "run=nowhere: no run is there"),
        ([], "run is missing"),
        ([f"run={trained}", "format=tflite"], "format=tflite: must be onnx, safetensors or torch"),
        ([f"run={trained}", "push=me"], "push=me: must be USER/NAME, a model on the Hugging Face hub or null"),
        ([f"run={trained}", "push=a/b"], "push=a/b uploads"),
        ([f"run={trained}", f"out={trained}"], f"out={trained} is there already and not empty"),
        ([f"run={far}", "int8=true"], "int8=true is measured on the test set, but the images of dataset=elsewhere are"),
    ):
        done = run("src.export", *options)
        assert done.returncode == 1
        assert f"error: {message}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (far / "exported").exists()
