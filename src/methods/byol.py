"""Bootstrap your own latent: predict what a teacher makes of the other view (Grill et al., NeurIPS 2020)."""

from torch import Tensor, nn
from torch.nn import functional

from src.hints import Dimension, Momentum
from src.methods.base import TaughtMethod, TrainingSet


def byol_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean over images of |q_1 - z_2|^2 + |q_2 - z_1|^2, all taken to unit norm (equation 2, both ways).

    Args:
        predicted: q `(2N, D)`, of any norm; rows i and i + N are two views of one image.
        target: z `(2N, D)`, likewise; no gradient flows through it.
    """
    other = target.detach().roll(len(target) // 2, 0)
    return 4 - 4 * functional.cosine_similarity(predicted, other, dim=1).mean()


class BYOL(TaughtMethod):
    """A predictor of the teacher's projection. The network's own is the embedding itself, scored as every method's is.

    Args:
        hidden: width of the predictor's hidden layer, with batch norm and ReLU.
        momentum: of the teacher.
    """

    unit_norm = False
    predictor: nn.Sequential

    def __init__(self, hidden: Dimension, momentum: Momentum) -> None:
        super().__init__()
        self.hidden, self.teacher_decay = hidden, momentum

    def setup(self, data: TrainingSet) -> None:
        self.predictor = nn.Sequential(
            nn.Linear(data.embedding_dim, self.hidden, bias=False),
            nn.BatchNorm1d(self.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(self.hidden, data.embedding_dim, bias=False),
        )

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, index: Tensor, features: Tensor, teacher: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        return {"loss": byol_loss(self.predictor(embeddings), teacher[1])}
