"""The callbacks on a trainer that extracts from two small loaders, against the metric computed apart."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from src.backbones.whitening import Whitening
from src.callbacks.evaluation import Evaluation
from src.callbacks.history import History
from src.callbacks.steps import Steps
from src.metrics.bootstrap import intervals
from src.metrics.knn import WeightedKNN
from src.metrics.retrieval import Retrieval
from src.metrics.similarity import Similarity


class Lookup(pl.LightningModule):
    """Embeds each image as a fixed point; its features are all but the point's first number."""

    def __init__(self, whitening: Whitening | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.whitening = whitening

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        loss = self.weight * 1.0
        return {"loss": loss, "terms": {"loss": loss.detach(), "half": loss.detach() / 2}}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        found = {"index": batch["index"], "label": batch["label"], "features": batch["point"][:, 1:].clone()}
        return found if self.whitening else found | {"embedding": normalize(batch["point"], dim=1)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def split(count: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 4, generator=generator)
    return [
        {"index": torch.arange(count)[rows], "label": (points[:, 0] > 0).long()[rows], "point": points[rows]}
        for rows in torch.arange(count).split(7)
    ]


def loader(batches: list[dict[str, Tensor]]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **options},
    )


def joined(batches: list[dict[str, Tensor]], first: int = 0) -> tuple[Tensor, Tensor]:
    points = torch.cat([batch["point"] for batch in batches])[:, first:]
    return normalize(points, dim=1), torch.cat([batch["label"] for batch in batches])


@pytest.mark.parametrize(("space", "other"), [("embedding", "pooled"), ("pooled", "embedding")])
def test_evaluation_scores_gallery_against_query_in_both_spaces(tmp_path: Path, space: str, other: str) -> None:
    gallery, query = split(50, 0), split(23, 1)
    expected = {}
    for name, first in (("embedding", 0), ("pooled", 1)):
        metric = WeightedKNN(k=5)
        metric.update(*joined(query, first), *joined(gallery, first))
        expected[name] = metric.compute()["top1"].item()
    assert expected["embedding"] != expected["pooled"]
    run = trainer(tmp_path, Evaluation({"knn": WeightedKNN(k=5), "wide": WeightedKNN(k=50)}, {}, space, "knn/top1"))
    for _ in range(2):  # nothing is left over from the first time
        run.validate(Lookup(), [loader(query), loader(gallery)], verbose=False)
        assert run.callback_metrics["knn/top1"] == pytest.approx(expected[space])
        assert run.callback_metrics[f"{other}/knn/top1"] == pytest.approx(expected[other])
        assert {"wide/top1", "wide/top5", f"{other}/wide/top1", f"{other}/wide/top5"} <= run.callback_metrics.keys()


@pytest.mark.parametrize(("space", "other"), [("embedding", "pooled"), ("pooled", "embedding")])
def test_held_out_images_are_scored_in_the_same_gallery(tmp_path: Path, space: str, other: str) -> None:
    gallery, queries = split(50, 0), {"": split(23, 1), "validation/": split(31, 2)}
    expected = {}
    for prefix, query in queries.items():
        for name, first in (("embedding", 0), ("pooled", 1)):
            metric = WeightedKNN(k=5)
            metric.update(*joined(query, first), *joined(gallery, first))
            between = "" if name == space else f"{other}/"
            expected[f"{prefix}{between}knn/top1"] = metric.compute()["top1"].item()
    assert len(set(expected.values())) == 4
    evaluation = Evaluation({"knn": WeightedKNN(k=5)}, {}, space, "knn/top1", validation=True)
    assert evaluation.monitor == "validation/knn/top1"
    run = trainer(tmp_path, evaluation)
    run.validate(Lookup(), [*map(loader, queries.values()), loader(gallery)], verbose=False)
    found = {name: value.item() for name, value in run.callback_metrics.items() if name.endswith("top1")}
    assert found == pytest.approx(expected)


def test_held_out_images_are_scored_among_themselves(tmp_path: Path) -> None:
    queries = {"": split(23, 1), "validation/": split(31, 2)}
    run = trainer(
        tmp_path, Evaluation({"retrieval": Retrieval((1,))}, {}, "embedding", "retrieval/R@1", validation=True)
    )
    run.validate(Lookup(), [loader(query) for query in queries.values()], verbose=False)
    for prefix, query in queries.items():
        metric = Retrieval((1,))
        metric.update(*joined(query))
        assert run.callback_metrics[f"{prefix}retrieval/mAP@R"] == pytest.approx(metric.compute()["mAP@R"].item())
    assert run.callback_metrics["retrieval/mAP@R"] != run.callback_metrics["validation/retrieval/mAP@R"]


def test_final_scores_and_intervals_are_of_the_first_and_the_last_epoch(tmp_path: Path) -> None:
    gallery, query = split(50, 0), split(23, 1)
    evaluation = Evaluation({"knn": WeightedKNN(k=5)}, {"wide": WeightedKNN(k=20)}, "embedding", "knn/top1")
    history = History()
    run = trainer(tmp_path, evaluation, Steps(), history, max_epochs=3)
    run.validate(Lookup(), [loader(query), loader(gallery)], verbose=False)
    assert evaluation.is_complete(history.rows[0])
    evaluation.intervals = {}
    run.fit(Lookup(), loader(gallery), [loader(query), loader(gallery)])
    assert [evaluation.is_complete(row) for row in history.rows] == [True, False, False, True]
    assert ["wide/top1" in row for row in history.rows] == [True, False, False, True]
    prefixes = [f"{space}{name}" for space in ("", "pooled/") for name in ("knn", "wide")]
    assert evaluation.intervals.keys() == {f"{prefix}/{top}" for prefix in prefixes for top in ("top1", "top5")}
    low, high = evaluation.intervals["pooled/wide/top1"]
    assert 0 <= low < history.rows[-1]["pooled/wide/top1"] < high <= 100
    # Who looks in the meantime sees what was scored.
    assert evaluation.sets.keys() == {"query", "gallery"}
    for found, batches in zip(evaluation.sets.values(), (query, gallery), strict=True):
        assert found["label"].equal(joined(batches)[1])
        assert found["embedding"].equal(joined(batches)[0])
    again = Evaluation({"knn": WeightedKNN(k=5)}, {}, "embedding", "knn/top1")
    again.load_state_dict(evaluation.state_dict())
    assert again.intervals == evaluation.intervals
    assert again.is_complete(history.rows[-1])
    evaluation.on_train_epoch_start(run, Lookup())
    assert not evaluation.is_complete(history.rows[-1]), "the intervals are of an epoch before"
    again.load_state_dict(evaluation.state_dict())
    assert not again.is_complete(history.rows[-1]), "nor where it goes on"
    again.load_state_dict({"intervals": {}, "histograms": {}})
    assert again.is_complete(history.rows[-1]), "checkpoints did not always say"


def test_histograms_and_intervals_are_of_the_latest_test_images(tmp_path: Path) -> None:
    evaluation = Evaluation({"knn": WeightedKNN(k=5)}, {"near": Similarity(3)}, "embedding", "knn/top1", True)
    run = trainer(tmp_path, evaluation)
    gallery, held_out = split(50, 0), split(31, 2)
    for seed in (1, 3):  # the second takes the first's place
        query = split(23, seed)
        run.validate(Lookup(), [loader(query), loader(held_out), loader(gallery)], verbose=False)
        assert evaluation.sets.keys() == {"query", "validation", "gallery"}
        assert evaluation.histograms.keys() == {"embedding", "pooled"}
        for space, prefix, first in (("embedding", "", 0), ("pooled", "pooled/", 1)):
            metric = Similarity(3)
            metric.update(*joined(query, first), *joined(gallery, first))
            assert evaluation.histograms[space] == metric.histograms()
            (found,) = {evaluation.intervals[f"{prefix}near/AUC"]}
            assert found == pytest.approx(intervals(metric, 23, seed=0)["AUC"])
    names = {f"{which}{space}" for which in ("", "validation/") for space in ("", "pooled/")}
    assert evaluation.intervals.keys() == {
        f"{name}{score}" for name in names for score in ("knn/top1", "knn/top5", "near/overlap", "near/AUC")
    }
    assert not evaluation.extracted, "nothing is held twice"
    evaluation.intervals["of another time"] = (0, 1)
    run.validate(Lookup(), [loader(query), loader(held_out), loader(gallery)], verbose=False)
    assert "of another time" not in evaluation.intervals
    evaluation.on_train_epoch_start(run, Lookup())
    assert not evaluation.sets, "nor while it trains"

    alone = Evaluation({"near": Similarity(3), "knn": WeightedKNN(k=5)}, {}, "embedding", "knn/top1")
    trainer(tmp_path, alone).validate(Lookup(), [loader(query), loader(gallery)], verbose=False)
    assert alone.histograms == evaluation.histograms, "where nothing is held out too"


@pytest.mark.parametrize("searched", [True, False])
def test_a_whitening_is_fitted_to_all_training_images_and_those_with_a_label_are_searched(
    tmp_path: Path, searched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    equalised: list[Any] = []
    monkeypatch.setattr("src.callbacks.evaluation.broadcast_buffers", equalised.append)
    query, held_out, training = split(23, 1), split(31, 2), split(50, 0)
    for batch in training:
        batch["label"][::3] = -1
    features, labels = torch.cat([batch["point"] for batch in training])[:, 1:], joined(training)[1]
    known = labels >= 0
    assert 0 < known.sum() < len(labels)
    expected = Whitening(3, 2)
    expected.fit(features)
    queries = {"query": query, "validation": held_out}
    whitened = {which: expected(torch.cat([batch["point"] for batch in of])[:, 1:]) for which, of in queries.items()}
    if searched:
        whitened["gallery"] = expected(features[known])
        metric: Any = WeightedKNN(k=5)
        metric.update(whitened["query"], joined(query)[1], whitened["gallery"], labels[known])
    else:
        metric = Retrieval((1,))
        metric.update(whitened["query"], joined(query)[1])
    name = next(iter(metric.scores()))
    module, metrics = Lookup(Whitening(3, 2)), {"it": type(metric)(5) if searched else Retrieval((1,))}
    for fits in (False, True):
        evaluation = Evaluation(metrics, {}, "embedding", f"it/{name}", True, searched, fits)
        run = trainer(tmp_path, evaluation)
        run.validate(module, [*map(loader, (query, held_out, training))], verbose=False)
        assert torch.allclose(module.whitening.weight, expected.weight) == fits  # type: ignore[union-attr]
    assert equalised == [module.whitening], "several ranks score by one"
    assert run.callback_metrics[f"it/{name}"] == pytest.approx(metric.compute()[name].item())
    assert evaluation.sets.keys() == whitened.keys()
    for which, embedding in whitened.items():
        torch.testing.assert_close(evaluation.sets[which]["embedding"], embedding)
        torch.testing.assert_close(evaluation.sets[which]["pooled"].norm(dim=1), torch.ones(len(embedding)))


def test_features_that_are_not_finite_are_no_score(tmp_path: Path) -> None:
    query, training = split(23, 1), split(50, 0)
    query[1]["point"][3, 0] = torch.nan
    run = trainer(tmp_path, Evaluation({"knn": WeightedKNN(k=5)}, {}, "embedding", "knn/top1"))
    with pytest.raises(FloatingPointError, match="embedding features are not finite"):
        run.validate(Lookup(), [loader(query), loader(training)], verbose=False)
    training[2]["point"][0, 3] = torch.nan  # and no whitening is made of them, nor an error of the linear algebra's
    run = trainer(tmp_path, Evaluation({"knn": WeightedKNN(k=5)}, {}, "embedding", "knn/top1", fits=True))
    with pytest.raises(FloatingPointError, match=r"^pooled features are not finite: lower optimizer.lr, or see the we"):
        run.validate(Lookup(Whitening(3, 2)), [loader(query), loader(training)], verbose=False)


def test_a_row_is_complete_with_all_final_scores_and_no_more() -> None:
    evaluation = Evaluation({"knn": WeightedKNN(k=5)}, {"wide": WeightedKNN(k=20)}, "embedding", "knn/top1", True)
    names = [
        f"{space}{name}/{top}" for space in ("", "pooled/") for name in ("knn", "wide") for top in ("top1", "top5")
    ]
    row = dict.fromkeys([*names, "validation/knn/top1"], 1.0)
    assert not evaluation.is_complete(row), "no last evaluation was there, which has the intervals"
    evaluation.closed = True
    assert evaluation.is_complete(row)
    assert not any(evaluation.is_complete({name: 1.0 for name in row if name != left_out}) for left_out in row)


def test_what_decides_is_named_without_its_set() -> None:
    metrics = {"knn": WeightedKNN(k=5)}
    assert Evaluation(metrics, {}, "pooled", "embedding/knn/top5").monitor == "embedding/knn/top5"
    with pytest.raises(ValueError, match=r"protocol.monitor=validation/knn/top1: must be one of knn/top1, knn/top5, e"):
        Evaluation(metrics, {}, "pooled", "validation/knn/top1", validation=True)


def test_steps_and_history(tmp_path: Path) -> None:
    """Scores stand in the epochs that were scored, and only there."""
    gallery, query, module = loader(split(50, 0)), loader(split(23, 1)), Lookup()
    history = History()
    run = trainer(
        tmp_path,
        Evaluation({"knn": WeightedKNN(k=5)}, {}, "embedding", "knn/top1"),
        Steps(),
        history,
        max_epochs=4,
        check_val_every_n_epoch=2,
        log_every_n_steps=3,
    )
    run.validate(module, [query, gallery], verbose=False)
    run.fit(module, gallery, [query, gallery])
    assert [row["epoch"] for row in history.rows] == [0, 1, 2, 3, 4]
    assert ["knn/top1" in row for row in history.rows] == [True, False, True, False, True]
    best = history.best("knn/top1")
    assert best is not None
    assert best["epoch"] == 2, "the first of equals"
    assert set(history.rows[1]) == {
        "epoch",
        "train/loss",
        "train/half",
        "train/lr",
        "train/images_per_s",
        "train/seconds",
    }
    # Eight steps an epoch, each a tenth down: the mean over the first epoch, not its last step.
    assert history.rows[1]["train/loss"] == pytest.approx(sum(1 - 0.1 * step for step in range(8)) / 8)
    assert history.rows[2]["train/half"] == pytest.approx(sum(0.2 - 0.1 * step for step in range(8)) / 16)
    assert run.callback_metrics["train/loss_step"] == pytest.approx(1 - 0.1 * 31)
    assert history.median("train/images_per_s") > 0

    run.validate(module, [query, gallery], verbose=False)
    assert [row["epoch"] for row in history.rows] == [0, 1, 2, 3, 4], "a score after training is the last epoch's"

    restored = History()
    restored.load_state_dict(history.state_dict())
    assert restored.rows == history.rows
