"""What a method makes lies where its embeddings are: on torch's `meta` device, which computes nothing, but refuses a
tensor that is elsewhere as an accelerator would."""

from collections.abc import Callable

import pytest
import torch

from src.methods.base import Method, TrainingSet
from src.methods.invariant_spreading import InvariantSpreading
from src.methods.nce import NCE
from src.methods.simclr import SimCLR
from src.methods.stml import relaxed_contrastive_loss
from src.methods.triplet import Triplet

METHODS: dict[str, Callable[[], Method]] = {
    "invariant_spreading": lambda: InvariantSpreading(0.1, "all", False, 0.5, "self"),
    "hard": lambda: InvariantSpreading(0.1, "hard", True, 0.5, "self"),
    "easy": lambda: InvariantSpreading(0.1, "easy", True, 0.5, "self"),
    "nce": lambda: NCE(0.1, 16, 0.5, 2.0),
    "simclr": lambda: SimCLR(0.1),
    "triplet": lambda: Triplet(0.5, "random"),
    "triplet_hard": lambda: Triplet(0.5, "hard"),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_stays_on_the_device(name: str) -> None:
    method = METHODS[name]()
    method.setup(TrainingSet(20, 4, pretrained=False, labels=None, num_features=8))
    method.to("meta")
    embeddings = torch.empty(4 * method.views, 4, device="meta", requires_grad=True)
    index = torch.empty(4, dtype=torch.long, device="meta")
    loss = method(embeddings, index)["loss"]
    loss.backward()
    method.after_step(embeddings.detach(), index)
    assert loss.is_meta
    assert embeddings.grad is not None
    assert all(tensor.is_meta for tensor in method.state_dict().values())


def test_stmls_loss_does_too() -> None:
    distance = torch.empty(6, 6, device="meta")
    assert relaxed_contrastive_loss(distance, distance, 1.0).is_meta
