"""Thousands of wrong settings, run folders, stores, image folders and weight files through the commands: `make fuzz`.

Each case is drawn from hypothesis's strategies and run as a user would, in a process forked from one that has imported
torch already. It must end with status 0 and a sane result, or with status 1 (2 for usage) and one line that starts with
`error: `: no traceback, nothing called, within the time allowed, and no result of a run that failed.
"""

import argparse
import gc
import json
import math
import os
import random
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st
from hypothesis.errors import NonInteractiveExampleWarning

from src import settings
from tests.test_settings import CHOICES, EDGES, leaves, plain

PATIENCE = 60  # seconds
MEMORY = 12 * 2**30  # bytes of addresses: what asks for more is refused or dies
SMALL = ["dataset.limit=60", "dataset.batch_size=16", "protocol.metrics.knn.k=5", "trainer.max_epochs=1", "logger=none"]
SMALL += ["callbacks.pictures.images=5", "callbacks.pictures.queries=1", "callbacks.pictures.epochs=[]"]
# Others need downloads: test_settings.py draws values for these too.
LIGHT = [choice for choice in CHOICES if not choice.startswith(("experiment=", "backbone=", "dataset="))]
TINY = "test_resnet"  # a network of timm's, 0.5 million parameters
Case = tuple[str, str, list[str]]  # what it is, the module, its arguments


def spelled(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{spelled(str(name))}:{spelled(member)}" for name, member in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(spelled(member) for member in value) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, str) and not value.isalnum():
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def settings_cases(place: Path) -> Iterator[Case]:
    """One or two settings of a choice, each with any value; and words that are no settings."""
    while True:
        choice = random.choice(LIGHT)
        config = plain(choice)
        keys = [key for key, _ in leaves(config)]
        arguments = [choice, *SMALL]
        for key in random.sample(keys, random.choice((1, 1, 2))):
            sign = random.choice(("", "", "", "++", "+", "~"))
            value = spelled(EDGES.example())
            arguments.append(f"{sign}{key}" if sign == "~" else f"{sign}{key}={value}")
        if random.random() < 0.1:
            arguments.append(st.text(max_size=8).example().replace("\0", ""))
        yield "setting", "src.train", [a.replace("\0", "") for a in arguments]


def run_cases(place: Path, run: Path) -> Iterator[Case]:
    """A finished run with one of its files damaged, or its config changed."""
    number = 0
    while True:
        number += 1
        folder = place / f"run{number}"
        shutil.copytree(run, folder)
        name = random.choice(("config.yaml", "config.yaml", "results.json", "checkpoints/last.ckpt"))
        if name == "config.yaml" and random.random() < 0.7:
            config = yaml.safe_load((folder / name).read_text())
            key = random.choice([key for key, _ in leaves(config)])
            *groups, last = key.split(".")
            node = config
            for group in groups:
                node = node[group]
            node[last] = EDGES.example()
            (folder / name).write_text(yaml.safe_dump(config))
        else:
            damage(folder / name)
        module = random.choice(("src.evaluate", "src.report", "src.train"))
        arguments = {"src.evaluate": [f"run={folder}"], "src.report": [str(folder)]}.get(module)
        yield "run folder", module, arguments or [*SMALL, f"run_dir={folder}", "trainer.max_epochs=2"]
        shutil.rmtree(folder, ignore_errors=True)


def store_cases(place: Path, cache: Path) -> Iterator[Case]:
    """A store with one of its files damaged."""
    number = 0
    while True:
        number += 1
        folder = place / f"cache{number}"
        shutil.copytree(cache / "digits", folder / "digits")
        damage(random.choice(sorted((folder / "digits").iterdir())))
        module = random.choice(("src.prepare", "src.train"))
        yield "store", module, [f"cache_dir={folder}"] + SMALL * (module == "src.train")
        shutil.rmtree(folder, ignore_errors=True)


def image_cases(place: Path) -> Iterator[Case]:
    """A folder of images of all kinds, some damaged, in layouts of all kinds."""
    from PIL import Image

    number = 0
    rng = np.random.default_rng(0)
    names = ("train", "Test", "test", "a", "b", ".hidden", "c c", "ö", "val")
    kinds = ("png", "jpg", "tiff", "gif", "bmp", "webp", "txt")
    while True:
        number += 1
        folder = place / f"images{number}"
        folder.mkdir()
        for name in random.sample(names, random.randint(0, 4)):
            for inner in random.sample(("", "x", "y"), random.randint(1, 2)):
                (folder / name / inner).mkdir(parents=True, exist_ok=True)
                for image in range(random.randint(0, 3)):
                    path = folder / name / inner / f"{image}.{random.choice(kinds)}"
                    mode = random.choice(("RGB", "L", "1", "RGBA", "P", "I", "F", "CMYK", "I;16", "LA"))
                    try:
                        Image.fromarray(rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)).convert(mode).save(path)
                    except (OSError, ValueError, KeyError):
                        path.write_bytes(rng.bytes(50))
                    if random.random() < 0.15:
                        damage(path)
        options = [f"dataset.root={spelled(str(folder))}", f"cache_dir={place / f'images-cache{number}'}"]
        options += [f"dataset.split={random.choice(('auto', 'classes', 'random'))}", "dataset.size=8"]
        options += [f"dataset.skip_broken={random.choice(('true', 'false'))}"]
        yield "images", "src.prepare", ["dataset=folder", *options]
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(place / f"images-cache{number}", ignore_errors=True)


def weight_cases(place: Path) -> Iterator[Case]:
    """A file of weights, whole or damaged, of another network or of none."""
    import timm
    import torch
    from safetensors.torch import save_file

    from tests.backbones.test_inception import caffemodel

    place = place / "weights"
    place.mkdir()
    layer = {"conv1/7x7_s2.weight": torch.rand(64, 3, 7, 7), "conv1/7x7_s2.bias": torch.rand(64)}
    np.savez(place / "caffe.npz", **{name: tensor.numpy() for name, tensor in layer.items()})  # type: ignore[arg-type]
    (place / "caffe.caffemodel").write_bytes(caffemodel(layer, legacy=False))
    state = timm.create_model(TINY, pretrained=False).state_dict()
    save_file(state, place / "timm.safetensors")
    torch.save(state, place / "timm.pth")
    originals = sorted(place.iterdir())
    number = 0
    while True:
        number += 1
        original = random.choice(originals)
        suffix = random.choice(originals).suffix if random.random() < 0.2 else original.suffix
        path = place / f"{number}{suffix}"
        shutil.copyfile(original, path)
        if random.random() < 0.9:
            damage(path)
        network = ["backbone=inception"] if original.stem == "caffe" else ["backbone=timm", f"backbone.name={TINY}"]
        yield "weights", "src.train", [*SMALL, *network, f"backbone.weights={path}"]
        path.unlink()


def damage(path: Path) -> None:
    """Cut a file short, flip some of its bits, or put something else in its place."""
    content = bytearray(path.read_bytes())
    kind = random.random()
    if kind < 0.3:
        content = content[: random.randint(0, len(content))]
    elif kind < 0.7 and content:
        for _ in range(random.choice((1, 5, 50))):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif kind < 0.85:
        content = bytearray(st.binary(max_size=200).example())
    else:
        content = bytearray(json.dumps(st.recursive(st.none() | st.floats() | st.text(), st.lists).example()).encode())
    path.write_bytes(bytes(content))


def run(module: str, arguments: list[str], said: tuple[Path, Path], folder: Path) -> tuple[int, float]:
    """What the command ends with, and its seconds; -9 where it did not end."""
    began = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        for stream, path in zip((0, 1, 2), (Path(os.devnull), *said), strict=True):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.argv = [module, *arguments]
        code: Any = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as error:
            code = error.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    ended = 0
    while not ended:
        time.sleep(0.002)
        if time.monotonic() - began > PATIENCE:
            os.killpg(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def judge(status: int, output: str, errors: str, results: Path) -> str:
    """What is wrong with how a command ended; empty where nothing is."""
    lines = [line for line in errors.splitlines() if line.startswith(("error: ", "usage: "))]
    if status == -signal.SIGKILL and "epoch 2, " in output:
        return ""  # it was told to train for long
    if "Traceback" in errors:
        return "a traceback: " + errors.strip().splitlines()[-1][:200]
    if status == 0:
        if not results.exists():
            return ""
        found = json.loads(results.read_text())
        numbers = [value for row in found["history"] for value in row.values()]
        return "" if all(math.isfinite(number) for number in numbers) else "a result that is not finite"
    if status not in (1, 2):
        return f"status {status}"
    if status == 2 and ": error: " in errors.strip().splitlines()[-1]:
        return ""  # argparse's usage
    if len(lines) != 1 or not errors.strip().splitlines()[-1].startswith(lines[0][:6]):
        return f"not one line: {errors[-300:]!r}"
    return "a result of a run that failed" if results.exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    warnings.filterwarnings("ignore", category=NonInteractiveExampleWarning)
    os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "COLUMNS": "200"}
    import torch

    torch.set_num_threads(1)
    import src.assemble
    import src.callbacks.history
    import src.datamodules.digits
    import src.datamodules.folder
    import src.reporting.record
    import src.running.loggers  # noqa: F401

    for choice in LIGHT:  # makes what checks the settings, once
        settings.check(plain(choice))
    gc.freeze()
    counts: Counter[tuple[str, str]] = Counter()
    slowest, wrong = 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.chdir(place)  # what names a place of its own, `run_dir=x`, writes there
        os.environ["ISIF_CACHE"] = str(cache := place / "cache")
        said = (place / "output", place / "errors")
        whole = place / "whole"
        status, _ = run("src.train", [*SMALL, f"run_dir={whole}"], said, whole)
        if status:
            sys.exit(f"a run without a fault fails: {said[1].read_text()}")
        kinds: list[Iterator[Case]] = [
            settings_cases(place), run_cases(place, whole), store_cases(place, cache), image_cases(place),
            weight_cases(place),
        ]  # fmt: skip
        began = time.monotonic()
        for case in range(options.cases):
            kind, module, arguments = next(random.choices(kinds, (66, 10, 6, 10, 8))[0])
            folder = place / "run"
            shutil.rmtree(folder, ignore_errors=True)
            if kind in ("setting", "weights"):
                arguments = [*arguments, f"run_dir={folder}"]
            status, seconds = run(module, arguments, said, folder)
            output, errors = (path.read_text(errors="replace") for path in said)
            problem = judge(status, output, errors, folder / "results.json")
            slowest = max(slowest, seconds)
            counts[kind, "wrong" if problem else f"status {status}"] += 1
            if problem:
                wrong += 1
                print(f"{kind}: python -m {module} {' '.join(map(repr, arguments))}\n    {problem}", flush=True)
            if case % 500 == 499:
                print(f"{case + 1:,} cases, {time.monotonic() - began:.0f} s, {wrong} wrong", flush=True)
    for (kind, ending), count in sorted(counts.items()):
        print(f"{kind:12} {ending:10} {count:6,}")
    print(f"{options.cases:,} cases: {wrong} ended otherwise than they should; the slowest took {slowest:.1f} s")
    sys.stdout.flush()
    os._exit(wrong > 0)


if __name__ == "__main__":
    main()
