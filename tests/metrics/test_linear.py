from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor

from src.metrics import linear
from src.metrics.linear import Linear, LinearModel, linear_svm, logistic_regression

Digits = tuple[Tensor, Tensor]


def same_as(model: LinearModel, reference: Any, scale: float = 1.0) -> None:
    """The weights and intercepts are those of scikit-learn; of two classes it has those of the second."""
    assert model.converged
    weights, intercepts = (part[-len(reference.coef_) :].numpy() for part in (model.weights, model.intercepts))
    np.testing.assert_allclose(scale * weights, reference.coef_, atol=1e-3)
    np.testing.assert_allclose(scale * intercepts, reference.intercept_, atol=1e-3)


def sklearn_svm(C: float) -> LinearSVC:
    return LinearSVC(C=C, dual=False, tol=1e-9, max_iter=10_000)


def sklearn_logistic(C: float) -> LogisticRegression:
    return LogisticRegression(C=C, solver="newton-cg", tol=1e-9, max_iter=10_000)


@pytest.mark.parametrize("C", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("images", [40, 1400], ids=["more dimensions than images", "more images than dimensions"])
def test_svm_against_scikit_learn(digits: Digits, C: float, images: int) -> None:
    points, labels = digits
    reference = sklearn_svm(C).fit(points[:images], labels[:images])
    model = linear_svm(points[:images], labels[:images], C)
    same_as(model, reference)
    assert model.predict(points[1400:]).tolist() == reference.predict(points[1400:]).tolist()


@pytest.mark.parametrize("C", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("images", [40, 1400], ids=["more dimensions than images", "more images than dimensions"])
def test_logistic_regression_against_scikit_learn(digits: Digits, C: float, images: int) -> None:
    points, labels = digits
    reference = sklearn_logistic(C).fit(points[:images], labels[:images])
    model = logistic_regression(points[:images], labels[:images], C)
    same_as(model, reference)
    assert model.predict(points[1400:]).tolist() == reference.predict(points[1400:]).tolist()


def test_two_classes(digits: Digits) -> None:
    points, labels = (part[digits[1] < 2] for part in digits)
    model = linear_svm(points, labels, 1.0)
    same_as(model, sklearn_svm(1.0).fit(points, labels))
    torch.testing.assert_close(model.weights[0], -model.weights[1])
    # One weight vector for both is their difference, at half the regularisation.
    same_as(logistic_regression(points, labels, 1.0), sklearn_logistic(2.0).fit(points, labels), scale=2)


def test_a_class_of_one_image(digits: Digits) -> None:
    points, labels = digits[0][:200], digits[1][:200].clone()
    labels[7] = 10
    same_as(linear_svm(points, labels, 1.0), sklearn_svm(1.0).fit(points, labels))
    same_as(logistic_regression(points, labels, 1.0), sklearn_logistic(1.0).fit(points, labels))


def test_images_come_in_blocks(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = digits[0][:300], digits[1][:300]
    whole = linear_svm(points, labels, 1.0)
    monkeypatch.setattr(linear, "SCORES", 700)
    parts = linear_svm(points, labels, 1.0)
    torch.testing.assert_close(parts.weights, whole.weights, rtol=1e-6, atol=1e-6)
    assert torch.equal(parts.predict(points), whole.predict(points))


def test_the_metric_against_scikit_learn(digits: Digits) -> None:
    """Its classes need not be 0, 1, …; the gallery lacks one."""
    points, labels = digits[0].float(), digits[1] * 3 + 2
    gallery = (labels != 5) & (torch.arange(len(labels)) < 1400)
    metric = Linear(svm_C=1.0, logistic_C=10.0)
    metric.check(labels[1400:], labels[gallery])
    with torch.inference_mode():
        metric.update(points[1400:], labels[1400:], points[gallery], labels[gallery])
    assert (labels[1400:] == 5).any()
    for name, reference in (("svm", sklearn_svm(1.0)), ("logistic", sklearn_logistic(10.0))):
        expected = reference.fit(points[gallery], labels[gallery]).score(points[1400:], labels[1400:])
        assert metric.compute()[name].item() == pytest.approx(100 * expected)
    metric.reset()
    assert metric.shares == {}


def test_collapsed_features_score_like_chance() -> None:
    points, labels = torch.ones(100, 4) / 2, torch.arange(100) % 10
    metric = Linear()
    metric.update(points, labels, points, labels)
    assert {name: value.item() for name, value in metric.compute().items()} == {"svm": 10.0, "logistic": 10.0}


def test_what_is_no_minimum_yet_is_said(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    points, labels = digits[0][:300], digits[1][:300]
    monkeypatch.setattr(linear, "STEPS", 2)
    assert not linear_svm(points, labels, 1.0).converged
    with pytest.warns(UserWarning, match="not at its minimum") as said:
        Linear().update(points, labels, points, labels)
    assert [str(warning.message) for warning in said] == [
        f"protocol.final.linear: {name} is not at its minimum yet: lower {name}_C" for name in ("svm", "logistic")
    ]


def test_galleries_that_teach_nothing_are_errors() -> None:
    labels = torch.tensor([0, 1, 2])
    Linear().check(labels, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"final.linear learns from a gallery: set protocol.gallery=true"):
        Linear().check(labels, None)
    with pytest.raises(ValueError, match=r"protocol.final.linear: the gallery has images of 1 class"):
        Linear().check(labels, torch.zeros(5))
    with pytest.raises(ValueError, match=r"protocol.final.linear: the test set has one class \(3\)"):
        Linear().check(torch.full((4,), 3), labels)
