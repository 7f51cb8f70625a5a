"""What every metric is to the evaluation around it."""

from typing import ClassVar

from torch import Tensor
from torchmetrics import Metric


class Score(Metric):
    """Takes what is extracted of the query, and of the gallery where there is one, and computes scores by name."""

    key: ClassVar[str]  # what conf/protocol calls it
    full_state_update = False
    higher_is_better = True

    def scores(self) -> list[str]:
        """The names of what `compute` returns."""
        raise NotImplementedError

    def check(self, query_labels: Tensor, gallery_labels: Tensor | None, query: str = "the test set") -> None:
        """Raise a ValueError, before any training, for a `query` (its name) or a gallery that cannot be scored."""
        if query_labels.min() < 0:
            raise ValueError(f"protocol.metrics.{self.key} needs labels, and {query} has images without one")
        if len(query_labels.unique()) == 1:
            raise ValueError(
                f"protocol.metrics.{self.key}: {query} has one class ({int(query_labels[0])}), and nothing to tell "
                "apart: it must have images of two or more"
            )
