"""Non-parametric softmax over a memory of all images (Wu et al., CVPR 2018; Ye et al., equation 2)."""

from torch import Tensor
from torch.nn import functional

from src.memory_bank import MemoryBank
from src.methods.base import Method, TrainingSet


def npsoftmax_loss(embeddings: Tensor, memory: Tensor, index: Tensor, temperature: float) -> Tensor:
    """The mean of -log P(i|x), P(i|x) = exp(v_i.f / temperature) / sum_k exp(v_k.f / temperature).

    Args:
        embeddings: f, `(B, D)`, unit norm.
        memory: v, `(N, D)`, unit norm; no gradient flows into it.
        index: i, `(B,)`.
        temperature: positive.
    """
    return functional.cross_entropy(embeddings @ memory.T / temperature, index)


class NPSoftmax(Method):
    """One view a step; an image's memory is updated when it has been seen."""

    views = 1
    bank: MemoryBank

    def __init__(self, temperature: float, momentum: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"method.temperature={temperature} must be positive")
        self.temperature, self.momentum = temperature, momentum

    def setup(self, data: TrainingSet) -> None:
        self.bank = MemoryBank(data.images, data.embedding_dim, self.momentum)

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": npsoftmax_loss(embeddings, self.bank.memory, index, self.temperature)}

    def after_step(self, embeddings: Tensor, index: Tensor) -> None:
        self.bank.update(index, embeddings)
