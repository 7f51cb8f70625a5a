"""Methods with a teacher in the real module: what they are given, and how the teacher follows."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from src.backbones.head import Head
from src.backbones.resnet import resnet18
from src.methods.base import TaughtMethod
from src.methods.byol import BYOL
from src.methods.stml import STML
from tests.test_module import fit, loader, make


@pytest.fixture(autouse=True)
def _one_thread(_two_threads: None) -> None:
    """Networks this small lose more to waiting for each other than they gain."""
    torch.set_num_threads(1)


class States(pl.Callback):
    """All weights and buffers, before the first step and after each."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.on_train_start(trainer, pl_module)


METHODS = [lambda: STML(1.0, 1.0, 2, 0.8, 6), lambda: BYOL(6, 0.8)]


@pytest.mark.parametrize("method", METHODS, ids=["stml", "byol"])
def test_the_teacher_follows_after_each_step_and_sees_the_same_views(method: Any) -> None:
    states, given = States(), []
    module = make(method=method(), backbone=lambda: resnet18(1, winograd=False), head=Head(8, 16))
    module.method.register_forward_pre_hook(
        lambda _, inputs, options: given.append((inputs, options)), with_kwargs=True
    )
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, states, batches=3)

    assert isinstance(module.method, TaughtMethod)
    followed = {"method.teacher_weight": "method.g.weight", "method.teacher_bias": "method.g.bias"}
    pairs = {name: followed.get(name, name.removeprefix("teacher.")) for name in initial if "teacher" in name}
    assert len(pairs) > 50
    assert all(torch.equal(initial[mine], initial[live]) for mine, live in pairs.items()), "it begins as a copy"
    floats = {mine: live for mine, live in pairs.items() if initial[mine].is_floating_point()}
    for before, after in zip(states.seen[:-1], states.seen[1:], strict=True):
        for mine, live in floats.items():
            if not (isinstance(module.method, BYOL) and "running" in mine):  # it also updates those itself
                torch.testing.assert_close(after[mine], 0.8 * before[mine] + 0.2 * after[live])
    assert not torch.equal(states.seen[-1]["teacher.head.linear.weight"], states.seen[-1]["head.linear.weight"])

    (embeddings, _), options = given[1]
    features, taught = options["teacher"]
    assert module.teacher is not None
    assert features.grad_fn is None
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(8)), "of any norm, as the teacher's"
    module.load_state_dict(states.seen[1])
    views = list(loader(3))[1]["views"]
    with torch.no_grad():
        module.train()
        assert module.teacher.backbone.training == isinstance(module.method, BYOL)
        torch.testing.assert_close(module.teacher.backbone(views), features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(module.teacher.head.linear(features), taught)
        torch.testing.assert_close(module.backbone(views), options["features"], rtol=1e-4, atol=1e-5)
