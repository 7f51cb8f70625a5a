"""Non-parametric softmax over a memory of all images (Wu et al., CVPR 2018; Ye et al., equation 2)."""

from torch import Tensor

from src.hints import Momentum, Positive
from src.methods.base import Method, TrainingSet
from src.methods.exemplar import softmax_loss
from src.vectors.memory_bank import MemoryBank


class NPSoftmax(Method):
    """Equation (1) with the memory in place of the weights; no gradient flows into it. One view a step."""

    views = 1
    bank: MemoryBank

    def __init__(self, temperature: Positive, momentum: Momentum) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum

    def setup(self, data: TrainingSet) -> None:
        self.bank = MemoryBank(data.images, data.embedding_dim, self.momentum)

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": softmax_loss(embeddings, self.bank.memory, index, self.temperature)}

    def after_step(self, embeddings: Tensor, index: Tensor) -> None:
        self.bank.update(index, embeddings)
