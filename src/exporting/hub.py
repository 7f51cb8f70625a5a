"""A run as a folder to hand on, for the Hugging Face hub and for `src.embedder.load`: weights, config and card."""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from src.embedder import Embedder, load
from src.exporting.formats import written_whole
from src.exporting.graphs import describe, quiet
from src.reporting.record import said
from src.reporting.results import check_results, chosen_on, facts_of
from src.reporting.tables import Number, Table, digits_of, escape, markdown
from src.running import checkpoints, runs
from src.running.runs import write_atomically

ELSEWHERE = "PATH"  # stands for what lay on the machine of the run


def public(node: Any) -> Any:
    """A config or results without the paths of the machine where they were made."""
    if isinstance(node, Mapping):
        return {name: public(value) for name, value in node.items()}
    if isinstance(node, list):
        return [public(value) for value in node]
    return ELSEWHERE if isinstance(node, str) and _is_private(node) else node


def _is_private(text: str) -> bool:
    home = str(Path.home())
    of_somebody = (text.startswith("~") and not text.startswith("~/")) or (len(home) > 1 and home in text)
    return of_somebody or text.startswith("/") or PureWindowsPath(text).is_absolute()


def read_scores(folder: Path, which: str) -> dict[str, Any]:
    """The results of the finished run in `folder`, without private paths.

    Raises:
        FileNotFoundError: it is not finished.
        ValueError: no run wrote them, or they have no scores of the checkpoint `which`.
    """
    if not (folder / "results.json").exists():
        raise FileNotFoundError(f"run={folder}: results.json is missing, which the card is made of: let the run finish")
    results: dict[str, Any] = public(runs.read_results(folder))
    check_results(results)
    if which not in ("last", "best") or not results[which]:
        raise ValueError(f"run={folder}: results.json has no scores of its checkpoint {which}: choose last or best")
    return results


def export(folder: Path, which: Any, config: DictConfig, out: Path, name: str | None) -> None:
    """Write a checkpoint of the finished run in `folder` to `out`, and upload it where it has a `name` at the hub.

    Raises:
        OSError, ValueError: the run is not finished or damaged, or the hub refuses; the message says what to do.
    """
    results = read_scores(folder, which)
    if name:
        check_login(name)
    embedder = load(folder, which, accelerator="cpu", precision="32-true")
    with written_whole(out) as partial:
        write(embedder, config, results, partial)
    if name:
        print(push(out, name))


def write(embedder: Embedder, config: DictConfig, results: Mapping[str, Any], folder: Path) -> None:
    """Write `model.safetensors`, `config.yaml`, `config.json` and `README.md` of a run into `folder`."""
    state = {name: weight.contiguous() for name, weight in embedder.encoder.state_dict().items()}
    save_file(state, folder / checkpoints.EXPORTED, metadata={"format": "pt"})
    shared = public(OmegaConf.to_container(config)) | {"logger": {}}  # which has accounts and names of projects
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(shared)))
    write_atomically(folder / "config.json", json.dumps(_hub_config(embedder, shared), indent=1))
    write_atomically(folder / "README.md", card(embedder, results))


def _hub_config(embedder: Embedder, config: Mapping[str, Any]) -> dict[str, Any]:
    """Names that other models on the hub have for the same; the rest is `preprocessing.json`'s."""
    return {
        "model_type": "invariant-spreading",
        "architectures": [config["backbone"]["_target_"].rpartition(".")[2]],
        "dtype": "float32",
        "image_size": embedder.encoder.size,
        "num_channels": 3,
        "hidden_size": int(embedder.encoder.backbone.num_features),  # type: ignore[arg-type]
        "projection_dim": embedder.dim,
        "preprocessing": describe(embedder),
    }


def card(embedder: Embedder, results: Mapping[str, Any]) -> str:
    """The model card: Markdown under a YAML head; every number of it is of `results.json`."""
    loader = PackageLoader("src.exporting", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"escape_markdown": escape}
    best, protocol = results["best"], results["protocol"]
    return environment.get_template("card.md").render(
        head=yaml.safe_dump(_head(embedder, results), sort_keys=False, allow_unicode=True),
        results=results,
        embedder=embedder,
        epoch=results[embedder.checkpoint]["epoch"],
        chosen=f"epoch {best['epoch']}, chosen on {chosen_on(protocol)}" if best else "none",
        scores=markdown(_scores(results)),
        facts=markdown(Table(["what", "how"], [[name, value] for name, value in facts_of(results).items()])),
        versions=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    )


def _head(embedder: Embedder, results: Mapping[str, Any]) -> dict[str, Any]:
    """The card's metadata as the hub reads it: huggingface.co/docs/hub/model-cards."""
    choices, dataset = results["choices"], results["config"]["dataset"]["name"]
    row = results[embedder.checkpoint]
    scores = {name: row[name] for name in _names(results) if math.isfinite(row.get(name, math.nan))}
    name = f"{choices['method']}, {choices['backbone']}, {dataset}"
    result = {
        "task": {"type": "image-feature-extraction"},
        "dataset": {"type": dataset, "name": dataset},
        "metrics": [{"type": score, "name": score, "value": value} for score, value in scores.items()],
    }
    return {
        "library_name": "invariant-spreading",
        "pipeline_tag": "image-feature-extraction",
        "tags": [
            *("image-retrieval", "embedding", "supervised" if results["protocol"]["labels_used"] else "unsupervised"),
            *(choices["method"], choices["backbone"], dataset),
        ],
        "metrics": [results["monitor"]],
        "model-index": [{"name": name, "results": [result]}],
    }


def _names(results: Mapping[str, Any]) -> list[str]:
    """Scores of the network, not of its training."""
    return [name for name in results["last"] if name != "epoch" and not name.startswith("train/")]


def _scores(results: Mapping[str, Any]) -> Table:
    rows: list[list[Any]] = []
    for name in _names(results):
        values = [(results[when] or {}).get(name) for when in ("untrained", "best", "last")]
        numbers = [None if value is None else Number(value, digits_of(name)) for value in values]
        rows.append([name, *numbers, said(results["intervals"].get(name))])
    return Table(["score", "untrained", "best epoch", "last epoch", "95% of resampled queries, last epoch"], rows)


def check_login(name: str) -> None:
    """Raise an OSError, before long work, where the hub does not know us or can't be reached."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if not get_token():
        raise OSError(f"push={name}: nobody is logged in at the hub: run `hf auth login`, or set HF_TOKEN")
    try:
        with quiet():
            HfApi().whoami()
    except HfHubHTTPError as error:
        raise OSError(f"push={name}: the hub refuses the login ({_first_line(error)}): run `hf auth login`") from error
    except Exception as error:  # its HTTP client's, which has changed from version to version
        raise OSError(f"push={name}: the hub can't be reached ({_first_line(error)}): try again") from error


def push(folder: Path, name: str) -> str:
    """Upload `folder` as the model `name`, `USER/NAME`, private where it is new, and return its address.

    Raises:
        OSError: it was not uploaded.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        with quiet():
            address = str(api.create_repo(name, private=True, exist_ok=True))
            api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # its HTTP client's, which has changed from version to version
        raise OSError(
            f"push={name}: {_first_line(error)}; {folder} is written, and `hf upload {name} {folder}` tries again"
        ) from error
    return address


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
