"""A method as a whole, from setup to the last step, beside a transcription of it that shares no code with `src`.

`follow` takes a Method through what `src/module.py`, `src/callbacks/refresh.py` and `src/datamodules/base.py` do around
it, with a teacher where it asks for one; `transcribe` takes a Transcription through the same images in its own way;
`assert_agree` compares all that can be seen of the two.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional

from src.methods.base import Method, TrainingSet
from tests.methods.tiny import (
    BATCH,
    DIM,
    EPOCHS,
    IMAGES,
    MOMENTUM,
    Run,
    Step,
    Tiny,
    Weights,
    clean_images,
    draw_views,
    generator_of,
    order,
    seed_step,
)
from tests.methods.transcription import Transcription, transcribe


def follow(make: Callable[[], Method], labels: Tensor | None = None, lr: float = 0.1) -> Run:
    """Train as the module and its callbacks do; before the last epoch all goes over to a new method, network and
    optimiser by their states, as a run does that goes on.

    Args:
        make: a new method, not set up.
        labels: `(N,)`, for a supervised method.
        lr: of the network, and of the method if it has none of its own.
    """
    network, method, optimizer = _assemble(make, labels, lr, seed=6)
    teacher = deepcopy(network).requires_grad_(False)
    run = Run(_kept(method))
    for epoch in range(EPOCHS):
        if epoch == EPOCHS - 1:
            old = network, method, optimizer
            network, method, optimizer = _assemble(make, labels, lr, seed=7)
            network.load_state_dict(old[0].state_dict())
            method.load_state_dict(old[1].state_dict())
            optimizer.load_state_dict(old[2].state_dict())
        companions, places_of = _refresh(network, method, optimizer, generator_of(epoch), run)
        for places in order(epoch) if places_of is None else places_of:
            if companions is None:
                index = torch.tensor(places)
                sources = index.repeat(method.views)
            else:
                sources = companions[places].T.flatten()
                index = sources[: len(places)]
            step = len(run.steps)
            seed_step(step)
            images = draw_views(clean_images()[sources], step)
            features, embeddings = network(images, method.unit_norm)
            given: dict[str, Any] = {}
            if method.teacher_decay is not None:
                given = {"features": features, "teacher": teacher(images, method.unit_norm)}
            terms = method(embeddings, index, **given)
            assert not any(term.requires_grad for name, term in terms.items() if name != "loss"), "curves have no graph"
            optimizer.zero_grad()
            terms["loss"].backward()
            named = [(name, value) for part in (network, method) for name, value in part.named_parameters()]
            gradients = {name: value.grad.clone() for name, value in named if value.grad is not None}
            optimizer.step()
            for average, now in zip(teacher.parameters(), network.parameters(), strict=True):
                average.lerp_(now.detach(), 1 - (method.teacher_decay or 0))
            method.after_step(embeddings.detach(), index)
            values = _kept(method) | {name: value.detach().clone() for name, value in network.named_parameters()}
            if method.teacher_decay is not None:
                values |= {f"teacher.{name}": value.clone() for name, value in teacher.named_parameters()}
            detached = {name: term.detach().clone() for name, term in terms.items()}
            run.steps.append(Step(index.tolist(), detached, gradients, values))
    return run


def _assemble(
    make: Callable[[], Method], labels: Tensor | None, lr: float, seed: int
) -> tuple[Tiny, Method, torch.optim.SGD]:
    torch.manual_seed(seed)  # of what the method begins with
    method = make()
    method.setup(TrainingSet(IMAGES, DIM, pretrained=True, labels=labels, num_features=8))
    method.double()
    network = Tiny()
    groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
    if own := list(method.parameters()):
        groups.append({"params": own, **method.optimizer_options})
    return network, method, torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)


def _refresh(
    network: Tiny, method: Method, optimizer: torch.optim.SGD, generator: Generator, run: Run
) -> tuple[Tensor | None, list[list[int]] | None]:
    looks = 0

    @torch.no_grad()
    def extract(kind: str = "unit") -> tuple[Tensor, Tensor]:
        nonlocal looks
        looks += 1
        features, embeddings = network(clean_images())
        return functional.normalize(features, dim=1) if kind == "unit" else features, embeddings

    companions = method.on_epoch_start(extract, generator)
    places = method.order(extract, generator, BATCH)
    batches = None if places is None else [batch.tolist() for batch in places.split(BATCH)]
    if method.restarts:
        for parameter in method.parameters():
            optimizer.state.pop(parameter, None)
    assert companions is None or companions.shape == (IMAGES, method.views), "a view of each companion"
    run.companions.append(None if companions is None else companions.tolist())
    run.orders.append(batches)
    run.looks.append(looks)
    return companions, batches


def _kept(method: Method) -> Weights:
    """What a checkpoint has of the method, without its extra state."""
    return {name: value.clone() for name, value in method.state_dict().items() if isinstance(value, Tensor)}


def assert_agree(
    method: Callable[[], Method],
    transcription: Callable[[Weights], Transcription],
    labels: Tensor | None = None,
    lr: float = 0.1,
) -> Run:
    """Both trainings are the same: companions, order, passes over the images, losses, gradients, weights, memories.

    Returns:
        The transcription's, for the caller to look whether it has anything in it to be missed.
    """
    ours = follow(method, labels, lr)
    theirs = transcribe(transcription, ours.start, lr)
    assert ours.companions == theirs.companions, "the images that each epoch is made of"
    assert ours.orders == theirs.orders, "their order, where it is the method's"
    assert ours.looks == theirs.looks, "passes over the images"
    for number, (mine, other) in enumerate(zip(ours.steps, theirs.steps, strict=True)):
        assert mine.index == other.index
        for what in ("terms", "gradients", "values"):
            _assert_same(getattr(mine, what), getattr(other, what), f"step {number}: {what}")
    return theirs


def _assert_same(mine: Weights, other: Weights, where: str) -> None:
    assert mine.keys() == other.keys(), where
    for name, value in mine.items():
        try:
            torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-9)
        except AssertionError as error:
            raise AssertionError(f"{where}: {name}: {error}") from None
