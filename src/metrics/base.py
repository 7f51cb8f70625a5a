"""What every metric is to the evaluation around it."""

from typing import ClassVar

from torch import Tensor
from torchmetrics import Metric


class Score(Metric):
    """Takes what is extracted of the query, and of the gallery where there is one, and computes scores by name.

    Attributes:
        shares: what each query adds to a score, `(Q,)`, by the names of those scores that are its mean, 0 to 1, over
            the queries of the last `update`; NaN for a query left out.
    """

    key: ClassVar[str]  # what conf/protocol calls it
    group: ClassVar[str] = "metrics"  # and where: there, or among the `final` ones
    full_state_update = False
    higher_is_better = True

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # every rank holds all the images
        self.shares: dict[str, Tensor] = {}

    def scores(self) -> list[str]:
        """The names of what `compute` returns."""
        raise NotImplementedError

    def name_classes(self, classes: list[str]) -> None:
        """Learn the classes' names by label, before `check`.

        Raises:
            ValueError: what the metric is told of classes does not fit them.
        """

    def check(self, query_labels: Tensor, gallery_labels: Tensor | None, query: str = "the test set") -> None:
        """Raise a ValueError, before any training, for a `query` (its name) or a gallery that cannot be scored."""
        if query_labels.min() < 0:
            raise ValueError(f"{self.setting} needs labels, and {query} has images without one")
        if len(query_labels.unique()) == 1:
            raise ValueError(
                f"{self.setting}: {query} has one class ({int(query_labels[0])}), and nothing to tell apart: it must "
                "have images of two or more"
            )

    @property
    def setting(self) -> str:
        """The key of its settings."""
        return f"protocol.{self.group}.{self.key}"

    def resampled(self, counts: Tensor) -> dict[str, Tensor]:
        """The scores of resamples of the queries of the last `update`.

        Args:
            counts: `(R, Q)`, float32: how often each query is in each resample.

        Returns:
            `(R,)` by the names of `compute`, NaN for a resample without a query that counts; a score of which no
            interval can be had is not among them.
        """
        return {name: 100 * weighted_mean(share, counts) for name, share in self.shares.items()}

    def histograms(self) -> dict[str, dict[str, list[float]]]:
        """What was counted in the last `update`, if anything: `edges` and densities, by grouping of the classes."""
        return {}

    def reset(self) -> None:
        super().reset()
        self.shares = {}


def weighted_mean(values: Tensor, counts: Tensor) -> Tensor:
    """Means `(R,)`, float64, of `values` `(Q,)`, each as often as `counts` `(R, Q)` says; a NaN is none of them."""
    known = ~values.isnan()
    return (counts[:, known] @ values[known].to(counts.dtype)).double() / counts[:, known].sum(1)
