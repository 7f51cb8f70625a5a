"""What every metric is to the evaluation around it."""

from torch import Tensor
from torchmetrics import Metric


class Score(Metric):
    """Takes what is extracted of the query, and of the gallery where there is one, and computes scores by name."""

    full_state_update = False
    higher_is_better = True

    def scores(self) -> list[str]:
        """The names of what `compute` returns."""
        raise NotImplementedError

    def check(self, query_labels: Tensor, gallery_labels: Tensor | None) -> None:
        """Raise a ValueError, before any training, for a test set or a gallery that cannot be scored."""
        raise NotImplementedError
