"""Linear classifiers of frozen features: a linear SVM (the column of Table 2), and logistic regression."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from src.hints import Positive
from src.metrics.base import Score

SCORES = 2**22  # of images for classes, held at once
STEPS = 2000  # of L-BFGS at most; tens are enough
TOLERANCE = 3e-7  # of the gradient, times the root of the initial loss

# Scores (N, K) and one-hot classes (N, K) to the sum of the losses and its derivative (N, K).
Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LinearModel:
    """Weights `(K, D)` and intercepts `(K,)`, float64, of K classes; `converged`: whether they are the minimum."""

    weights: Tensor
    intercepts: Tensor
    converged: bool

    def predict(self, features: Tensor) -> Tensor:
        """Class numbers `(N,)`, 0 to K - 1, of features `(N, D)`."""
        parts = features.split(max(1, SCORES // len(self.weights)))
        scores = (part.double() @ self.weights.T + self.intercepts for part in parts)
        return torch.cat([part.argmax(1) for part in scores])


def linear_svm(features: Tensor, labels: Tensor, C: float) -> LinearModel:
    """One-vs-rest support vector machine: ½ |w|² + C Σ max(0, 1 - y (w x + b))², where |w|² has b² too.

    As liblinear's L2-regularised squared hinge loss, scikit-learn's `LinearSVC` with `intercept_scaling=1`. Of two
    classes, both have weights, of opposite sign.

    Args:
        features: `(N, D)`.
        labels: `(N,)`, classes 0 to K - 1.
        C: of the sum of the losses; the larger, the less regularised.
    """

    def squared_hinge(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        signs = 2 * targets - 1
        short = (1 - signs * scores).clamp(min=0)
        return short.square().sum(), -2 * signs * short

    return _fit(features, labels, C, squared_hinge, curvature=2, intercept_penalty=1)


def logistic_regression(features: Tensor, labels: Tensor, C: float) -> LinearModel:
    """Multinomial logistic regression: ½ |W|² - C Σ log softmax(W x + b) of the true class; b is not regularised.

    As scikit-learn's `LogisticRegression` of three classes or more. Of two, it takes a single weight vector for both,
    which is the same model at half this C.

    Args:
        features: `(N, D)`.
        labels: `(N,)`, classes 0 to K - 1.
        C: of the sum of the losses; the larger, the less regularised.
    """

    def cross_entropy(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logs = scores.log_softmax(1)
        return -(logs * targets).sum(), logs.exp() - targets

    return _fit(features, labels, C, cross_entropy, curvature=0.5, intercept_penalty=0)


def _fit(
    features: Tensor, labels: Tensor, C: float, loss: Loss, curvature: float, intercept_penalty: float
) -> LinearModel:
    """Minimise ½ |W|² + C loss by L-BFGS, in float64.

    It sees the weights in coordinates in which the largest second derivative there can be, `curvature` times the Gram
    matrix and the regularisation, is 1 in all directions: tens of steps then do what takes thousands otherwise.
    """
    classes, basis = int(labels.max()) + 1, None
    points = features.double()
    if points.shape[1] > len(points):  # the weights lie in the span of the images
        basis, points = torch.linalg.qr(points.T)
        points = points.T
    points = torch.cat([points, points.new_ones(len(points), 1)], 1)
    penalty = points.new_ones(points.shape[1], 1)
    penalty[-1] = intercept_penalty
    root = torch.linalg.cholesky(C * curvature * (points.T @ points) + penalty.squeeze(1).diag())
    coordinates = points.new_zeros(points.shape[1], classes)

    def weights() -> Tensor:
        return torch.linalg.solve_triangular(root.T, coordinates, upper=True)

    def objective() -> tuple[Tensor, Tensor]:
        current = weights()
        value, gradient = (penalty * current.square()).sum() / 2, penalty * current
        rows = max(1, SCORES // classes)
        for part, own in zip(points.split(rows), labels.split(rows), strict=True):
            losses, derivative = loss(part @ current, one_hot(own, classes).double())
            value, gradient = value + C * losses, gradient + C * (derivative.T @ part).T
        return value, torch.linalg.solve_triangular(root, gradient, upper=False).contiguous()

    def evaluate() -> Tensor:
        value, coordinates.grad = objective()
        return value

    tolerance = TOLERANCE * float(objective()[0]) ** 0.5  # half the gradient's square is about what is left to gain
    optimizer = torch.optim.LBFGS(
        [coordinates],
        max_iter=STEPS,
        max_eval=2 * STEPS,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(evaluate)
    found, gradient = weights(), objective()[1]
    directions = found[:-1] if basis is None else basis @ found[:-1]
    return LinearModel(directions.T, found[-1], bool(gradient.abs().max() <= tolerance))


class Linear(Score):
    """Accuracy of classifiers trained on the gallery, in percent of the query: `{"svm": …, "logistic": …}`.

    Args:
        svm_C: of `linear_svm`.
        logistic_C: of `logistic_regression`.
    """

    key = "linear"
    group = "final"

    def __init__(self, svm_C: Positive = 1.0, logistic_C: Positive = 10.0) -> None:
        super().__init__()
        self.models = {"svm": (linear_svm, svm_C), "logistic": (logistic_regression, logistic_C)}

    def scores(self) -> list[str]:
        return list(self.models)

    def check(self, query_labels: Tensor, gallery_labels: Tensor | None, query: str = "the test set") -> None:
        if gallery_labels is None:
            raise ValueError(f"{self.setting} learns from a gallery: set protocol.gallery=true")
        super().check(query_labels, gallery_labels, query)
        found = gallery_labels.unique()
        if len(found) < 2:
            raise ValueError(
                f"{self.setting}: the gallery has images of {len(found)} class(es), and nothing to tell apart: it must "
                f"have two or more, or leave the metric out with ~{self.setting}"
            )

    def update(self, query: Tensor, query_labels: Tensor, gallery: Tensor, gallery_labels: Tensor) -> None:
        """Learn from `gallery` `(G, D)`, classify `query` `(Q, D)`; a class that the gallery lacks is never right."""
        classes, labels = gallery_labels.unique(return_inverse=True)
        for name, (fit, C) in self.models.items():
            model = fit(gallery, labels, C)
            if not model.converged:
                warnings.warn(f"{self.setting}: {name} is not at its minimum yet: lower {name}_C", stacklevel=2)
            self.shares[name] = (classes[model.predict(query)] == query_labels).float()

    def compute(self) -> dict[str, Tensor]:
        """Percent of the queries, by name."""
        return {name: 100 * share.mean() for name, share in self.shares.items()}
