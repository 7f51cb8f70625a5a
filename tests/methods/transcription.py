"""A method written down a second time, a row at a time, and its training in plain tensors: nothing here is `src`."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from tests.methods.tiny import (
    EPOCHS,
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

Look = Callable[[], tuple[Tensor, Tensor]]  # features of any norm, unit-norm embeddings of the clean images


class Transcription:
    """A method from its paper, a row at a time. By default it has nothing to learn, to look at or to remember.

    Attributes:
        views, unit_norm, options, decay: as a Method's `views`, `unit_norm`, `optimizer_options` and `teacher_decay`.
        weights: what it learns, under the names that the Method has for it; those given anew by `begin` forget their
            momentum.
    """

    views = 2
    unit_norm = True
    options: Mapping[str, float] = {}
    decay: float | None = None

    def __init__(self) -> None:
        self.weights: Weights = {}

    def begin(self, look: Look, generator: Generator) -> list[list[int]] | None:
        """Before an epoch: the images that each place has a view of; None, of its own."""
        return None

    def order(self, look: Look, generator: Generator) -> list[list[int]] | None:
        """The places of the epoch's batches; None, at random."""
        return None

    def hear(self, features: Tensor, taught: tuple[Tensor, Tensor]) -> None:
        """Before `terms`, with a teacher: the network's pooled features; the teacher's, and the output of its head."""

    def terms(self, z: Tensor, index: list[int]) -> Weights:
        """The loss and its terms, of the head's output and the image in the first view of each place."""
        raise NotImplementedError

    def remember(self, z: Tensor, index: list[int]) -> None:
        """After the step."""

    def state(self) -> Weights:
        """Under the names of the method's buffers."""
        return {}


class _Written:
    """The network written down again, with its optimiser: momentum and decay as SGD has them."""

    def __init__(self, lr: float) -> None:
        self.weights = {name: value.detach().clone() for name, value in Tiny().named_parameters()}
        self.taught = {name: value.clone() for name, value in self.weights.items()}
        self.speed: Weights = {}
        self.lr, self.looks = lr, 0

    def embed(self, images: Tensor, unit_norm: bool = True, weights: Weights | None = None) -> tuple[Tensor, Tensor]:
        w = self.weights if weights is None else weights
        features = (images @ w["backbone.0.weight"].T + w["backbone.0.bias"]).tanh()
        out = features @ w["head.weight"].T + w["head.bias"]
        return features, torch.stack([unit(row) for row in out]) if unit_norm else out

    def look(self) -> tuple[Tensor, Tensor]:
        self.looks += 1
        return self.embed(clean_images())

    def learn(self, weights: Weights, gradients: Weights, options: Mapping[str, float]) -> None:
        for name in weights.keys() & gradients.keys():
            push = gradients[name] + options.get("weight_decay", 0) * weights[name]
            if name in self.speed:
                push = push + options.get("momentum", MOMENTUM) * self.speed[name]
            self.speed[name] = push
            weights[name] -= options.get("lr", self.lr) * push

    def teach(self, decay: float) -> None:
        for name, value in self.weights.items():
            self.taught[name] = decay * self.taught[name] + (1 - decay) * value


def transcribe(make: Callable[[Weights], Transcription], start: Weights, lr: float = 0.1) -> Run:
    """The same training, of a transcription that is made of the method's initial values."""
    ours, network, run = make(start), _Written(lr), Run(start)
    for epoch in range(EPOCHS):
        before, network.looks = dict(ours.weights), 0
        generator = generator_of(epoch)
        companions, batches = ours.begin(network.look, generator), ours.order(network.look, generator)
        for name in before:
            if ours.weights[name] is not before[name]:
                network.speed.pop(name, None)
        run.companions.append(companions)
        run.orders.append(batches)
        run.looks.append(network.looks)
        for places in order(epoch) if batches is None else batches:
            rows = [[place] * ours.views if companions is None else companions[place] for place in places]
            sources = [row[view] for view in range(ours.views) for row in rows]
            index, step = [row[0] for row in rows], len(run.steps)
            images = draw_views(torch.stack([clean_images()[source] for source in sources]), step)
            learned = {**network.weights, **ours.weights}
            for value in learned.values():
                value.requires_grad_()
            seed_step(step)
            features, z = network.embed(images, ours.unit_norm)
            if ours.decay is not None:
                ours.hear(features, network.embed(images, ours.unit_norm, network.taught))
            terms = ours.terms(z, index)
            found = torch.autograd.grad(terms["loss"], list(learned.values()), allow_unused=True)
            gradients = {name: value for name, value in zip(learned, found, strict=True) if value is not None}
            for value in learned.values():
                value.requires_grad_(False)
            network.learn(network.weights, gradients, {})
            network.learn(ours.weights, gradients, ours.options)
            ours.remember(z.detach(), index)
            values = {name: value.clone() for name, value in {**learned, **ours.state()}.items()}
            if ours.decay is not None:
                network.teach(ours.decay)
                values |= {f"teacher.{name}": value.clone() for name, value in network.taught.items()}
            run.steps.append(Step(index, {name: term.detach() for name, term in terms.items()}, gradients, values))
    return run


def unit(vector: Tensor) -> Tensor:
    """A vector over its length."""
    return vector / vector.square().sum().sqrt()


def mean(values: Sequence[Tensor]) -> Tensor:
    """Of scalars."""
    return torch.stack(list(values)).sum() / len(values)
