"""Tables against numpy and scipy; what may not be compared is kept apart; nothing in a name breaks the form."""

import math
import re
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from src.reporting.results import group_by_protocol
from src.reporting.tables import Number, Table, agreement, latex, markdown, scores, spread, table
from tests.reporting.conftest import changed


def cells(result: list[dict[str, Any]], score: str = "knn/top1") -> list[dict[str, Any]]:
    """Rows of a score, by column."""
    (group,) = group_by_protocol(result)
    content = scores(group)
    return [dict(zip(content.columns, row, strict=True)) for row in content.rows if row[1] == score]


def of_cifar(result: dict[str, Any], seed: int = 0, augmentation: str = "full") -> dict[str, Any]:
    return changed(result, seed, choices__augmentation=augmentation, config__dataset__name="cifar10")


def test_seeds_are_averaged_in_both_spaces(result: dict[str, Any]) -> None:
    runs = [changed(result, seed) for seed in range(4)]
    (row,) = cells(runs)
    assert row["runs"] == Number(4, 0)
    for column, which, name in (
        ("untrained", "untrained", "knn/top1"),
        ("last epoch", "last", "knn/top1"),
        ("best epoch, chosen on the test images", "best", "knn/top1"),
        ("pooled: untrained", "untrained", "pooled/knn/top1"),
        ("pooled: last epoch", "last", "pooled/knn/top1"),
    ):
        values = [run[which][name] for run in runs]
        assert row[column].value == pytest.approx(np.mean(values), abs=1e-9)
        assert row[column].spread == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_where_a_run_logs_and_keeps_its_images_makes_no_other_experiment(result: dict[str, Any]) -> None:
    caches = {"config__cache_dir": "/a", "config__dataset__cache_dir": "/a", "config__backbone__cache_dir": "/a"}
    runs = [changed(result), changed(result, 1, choices__logger="wandb", config__logger={"project": "x"})]
    runs.append(changed(result, 2, **caches))
    (row,) = cells(runs)
    assert row["runs"] == Number(3, 0)


def test_an_interval_is_of_one_run_and_never_a_spread(result: dict[str, Any]) -> None:
    runs = [changed(result, seed) for seed in (3, 4)]
    last = runs[0]["last"]["knn/top1"]
    (row,) = cells(runs)
    assert row["one run's 95% interval"] == Number(last - 2.5, to=last + 2.25, note="(seed 3)")
    (alone,) = cells(runs[:1])
    assert alone["last epoch"] == Number(last)
    del runs[0]["intervals"]
    assert cells(runs[:1])[0]["one run's 95% interval"] is None


def test_the_papers_number_and_the_difference(result: dict[str, Any]) -> None:
    full, crop = cells([of_cifar(result), of_cifar(result, 0, "no_crop")])
    assert str(crop["paper"]) == "56.2 (w/o R, Table 7)"
    assert str(full["paper"]) == "83.6 (Full, Table 7)"
    last = of_cifar(result)["last"]["knn/top1"]
    assert crop["last - paper"] == Number(last - 56.2, note="†")
    text = table([of_cifar(result)])
    assert "† Ours are of another budget than the paper's: 300 training images; 2 epochs, not 200" in text
    assert "†" not in table([changed(result)]), "the paper has no digits"


def test_what_took_how_long_and_what_is_no_percent(result: dict[str, Any]) -> None:
    assert cells([changed(result)], "seconds")[0]["last epoch"] == Number(result["wall_time_s"], 1)
    assert cells([changed(result)], "images/s")[0]["last epoch"] == Number(result["images_per_s"], 1)
    assert cells([changed(result)], "geometry/rank")[0]["last epoch"].digits == 3
    assert "but for those of geometry/ and train/" in table([changed(result)])


def test_what_differs_in_protocol_is_never_in_one_table(result: dict[str, Any]) -> None:
    text = table([changed(result), changed(result, 1, protocol__metrics__knn__k=20)])
    assert "- knn.k: 200 or 20" in text
    assert text.count("| setting | score |") == 2
    assert "**digits; knn.k: 20**" in text
    assert "differ in" not in table([changed(result), changed(result, 1)])


def test_agreement_is_spearmans(result: dict[str, Any]) -> None:
    runs = [changed(result, seed) for seed in range(6)]
    (group,) = group_by_protocol(runs)
    rows = {row[0]: row for row in agreement(group).rows}
    assert set(rows) == {"train/alignment", "geometry/rank"}
    for name, (_, rho, count) in rows.items():
        pairs = [[run["last"][name] for run in runs], [run["last"]["knn/top1"] for run in runs]]
        assert isinstance(rho, Number)
        assert rho.value == pytest.approx(spearmanr(*pairs).statistic, abs=1e-9)
        assert count == Number(6, 0)
    assert not agreement(group_by_protocol(runs[:2])[0]).rows
    same = [changed(result, seed, last__x=0.0) for seed in range(3)]
    for run in same:
        run["last"] |= {"geometry/rank": 3.0, "train/alignment": math.nan}
    assert not agreement(group_by_protocol(same)[0]).rows


def test_no_number_of_nothing_and_none_of_what_is_none() -> None:
    assert spread([]) is None
    assert str(spread([1.0, math.nan])) == "nan"
    assert str(Number(1.005, 1, 0.25, note="x")) == "1.0 ± 0.2 x"


def test_a_name_breaks_no_table(result: dict[str, Any]) -> None:
    assert markdown(Table(["a"], [["x|y\n<script>"]])).splitlines()[-1] == "| x\\|y &lt;script> |"
    evil = changed(result, config__dataset__name=r"50%_of {$x} & \input{a}#~^")
    text = latex(group_by_protocol([evil]))
    assert r"50\%\_of \{\$x\} \& \textbackslash{}input\{a\}\#\textasciitilde{}\textasciicircum{}" in text
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") > 3
    for line in text.splitlines():
        if line.endswith(r"\\"):
            columns = re.findall(r"(?<!\\)&", line)
            assert 2 <= len(columns) <= 9
