"""Export a finished run for use elsewhere: `python -m src.export run=PATH format=onnx`."""

from src.running import signals

if __name__ == "__main__":
    signals.listen()  # also while the rest is imported

import json
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from src.running import cli


@hydra.main(version_base="1.3", config_path="../conf", config_name="export")
@cli.telling_mistakes
def main(config: DictConfig) -> None:
    """Write the network of the checkpoint chosen, checked against the run's own vectors, or with its card."""
    from src import settings
    from src.exporting import formats
    from src.running import runs

    settings.check(cli.settled(config), settings.EXPORT)
    formats.check(config.format, config.space, config.int8, config.push)
    folder, which = runs.locate(Path(config.run).expanduser(), config.checkpoint)
    saved = runs.load_config(folder)
    out = Path(config.out).expanduser() if config.out else folder / "exported" / config.format
    formats.check_free(out)

    from src.exporting import hub
    from src.running import hardware

    hardware.settle()
    if config.format == "safetensors":
        hub.export(folder, which, saved, out, config.push)
    else:
        export_graph(config, saved, folder, which, out)
    print(out)


def export_graph(config: DictConfig, saved: DictConfig, folder: Path, which: Any, out: Path) -> None:
    """ONNX or a program of torch, with what has to be done to images beside it; and quantised where asked for."""
    from src.embedder import load
    from src.exporting import formats, graphs, images, quantising
    from src.running.runs import write_atomically

    datamodule = None
    try:
        datamodule = images.open_store(saved, config.cache_dir)
    except FileNotFoundError as error:
        if config.int8:
            raise FileNotFoundError(f"int8=true is measured on the test set, but {error}; or set int8=false") from error
        print(f"checked on random pixels: {error}")
    embedder = load(folder, which, config.space, "cpu", "32-true")
    samples = images.draw(datamodule, embedder.batch_size, embedder.encoder.size)
    with formats.written_whole(out) as partial:
        path = partial / graphs.FILES[config.format]
        graphs.write(embedder.encoder, path)
        encode = graphs.open_graph(path)
        difference = graphs.check(encode, embedder, samples)
        away = f"at most {difference:.1e} from the run's vectors, of {len(samples)} images"
        print(f"{path.name}: {_mebibytes(path)}, {away}")
        write_atomically(partial / "preprocessing.json", json.dumps(graphs.describe(embedder), indent=1))
        if config.int8 and datamodule:
            small = partial / "model.int8.onnx"
            quantising.quantise(path, small, embedder.encoder)
            encoders = {path.name: encode, small.name: graphs.open_graph(small)}
            score = quantising.score_of(saved, config.space)
            for name, found in quantising.measure(encoders, saved, datamodule, embedder.batch_size).items():
                size = _mebibytes(partial / name)
                print(f"{name:16} {size:>10} {score} {found.score:6.2f} {found.speed:8.0f} images/s")


def _mebibytes(path: Path) -> str:
    return f"{path.stat().st_size / 2**20:.2f} MiB"


if __name__ == "__main__":
    cli.run(main)
