import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from src.backbones.head import Head
from src.backbones.resnet import resnet18
from src.backbones.whitening import Whitening
from src.callbacks.steps import Steps
from src.methods.base import Method, TaughtMethod, TrainingSet
from src.methods.byol import BYOL
from src.methods.exemplar import Exemplar
from src.methods.invariant_spreading import InvariantSpreading, invariant_spreading_loss
from src.methods.simclr import SimCLR
from src.methods.triplet import Triplet
from src.module import EmbeddingModule, may_wait, seed_device
from src.schedules import MultiStep
from tests.backbones.test_captured import capture


@pytest.fixture(autouse=True)
def _one_thread(_two_threads: None) -> None:
    """Networks this small lose more to waiting for each other than they gain."""
    torch.set_num_threads(1)


class Eyes(nn.Module):
    """A small backbone that draws, has a mode, and says in what type it computes."""

    num_features = 6

    def __init__(self, share: float = 0.2) -> None:
        super().__init__()
        self.share = share
        self.layer, self.norm = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.types: list[torch.dtype] = []

    def forward(self, images: Tensor) -> Tensor:
        convolved = self.layer(functional.dropout(images, self.share, self.training))
        self.types.append(convolved.dtype)
        features: Tensor = self.norm(convolved).relu().mean((2, 3))
        return features


def make(
    milestones: tuple[int, ...] = (2, 3), factors: tuple[float, ...] = (0.1, 0.01), **options: Any
) -> EmbeddingModule:
    torch.manual_seed(0)
    backbone = options.pop("backbone", Eyes)()
    method = options.pop("method", None) or InvariantSpreading(0.1, "all", True, 0.5, "self")
    method.setup(TrainingSet(40, 16, pretrained=False, labels=None, num_features=backbone.num_features))
    seed = options.pop("seed", 0)
    make_optimizer = options.pop("optimizer", lambda groups: torch.optim.SGD(groups, lr=0.5))
    schedule = options.pop("schedule", None) or MultiStep(milestones, factors, 0, "epochs")
    head = options.pop("head", None) or Head(backbone.num_features, 16)
    return EmbeddingModule(backbone, head, method, make_optimizer, schedule, seed, **options)


def loader(batches: int = 1, views: int = 2) -> DataLoader:
    """Batches of four images, number n those from 4n + 3 down to 4n."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(4 * batches).view(batches, 4).flip(1)
    images = torch.randn(batches, 4 * views, 3, 16, 16, generator=generator)
    made = [{"index": index[n], "views": images[n]} for n in range(batches)]
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


def make_trainer(*callbacks: pl.Callback, epochs: int = 1, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        callbacks=[Steps(), *callbacks],
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def fit(
    module: EmbeddingModule, *callbacks: pl.Callback, epochs: int = 1, batches: int = 1, **options: Any
) -> pl.Trainer:
    trainer = make_trainer(*callbacks, epochs=epochs, **options)
    trainer.fit(module, loader(batches, module.method.views))
    return trainer


def test_features_beside_the_embedding() -> None:
    module, images = make().eval(), torch.randn(2, 3, 32, 32)
    features, embedding = module(images)
    assert torch.equal(features, module.backbone(images))
    torch.testing.assert_close(embedding, functional.normalize(module.head.linear(features), dim=1))
    assert (features.shape, embedding.shape) == ((2, 6), (2, 16))


class Watched(Method):
    """Learns one weight and not the other, draws, and keeps what happens to it."""

    def __init__(self, unit_norm: bool = True, options: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.unit_norm, self.optimizer_options = unit_norm, options or {}
        self.weight, self.idle = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(3))
        self.events: list[tuple[str, Tensor, Tensor, Tensor]] = []
        self.draws: list[Tensor] = []
        self.autocast = False

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        self._keep("forward", embeddings, index)
        self.draws.append(torch.rand(5))
        self.autocast |= torch.is_autocast_enabled("cpu")
        loss = (embeddings @ self.weight).sin().mean()
        return {"loss": loss, "double": 2 * loss}

    def after_step(self, embeddings: Tensor, index: Tensor) -> None:
        self._keep("after_step", embeddings, index)

    def _keep(self, name: str, embeddings: Tensor, index: Tensor) -> None:
        assert embeddings.requires_grad == (name == "forward")
        self.events.append((name, embeddings.detach().clone(), index.clone(), self.weight.detach().clone()))


class Blind(Watched):
    """Learns from embeddings that it takes as they are."""

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        return super().forward(embeddings, index) | {"loss": (embeddings.detach() @ self.weight).sum()}


@pytest.mark.parametrize(
    ("method", "still"),
    [
        (InvariantSpreading(0.1, "all", True, 0.5, "self"), ()),
        (Exemplar(0.1), ()),
        (Watched(), ("method.idle",)),
        (Blind(), ("method.idle", "backbone", "head")),
    ],
)
def test_a_step_changes_every_parameter_that_the_loss_depends_on_and_no_other(
    method: Method, still: tuple[str, ...]
) -> None:
    module = make(method=method, backbone=lambda: resnet18(8))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    fit(module)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith(still or "none"), name
    assert {name.split(".")[0] for name in before} >= {"backbone", "head"}


def test_the_optimiser_holds_every_parameter_once_and_the_methods_in_its_own_way() -> None:
    module = make(method=Watched(options={"lr": 0.2, "weight_decay": 0.01}))
    optimizer = module.make_optimizer(module.parameter_groups())
    network, own = optimizer.param_groups
    assert [id(p) for p in own["params"]] == [id(module.method.weight), id(module.method.idle)]
    parts = [*module.backbone.parameters(), *module.head.parameters()]
    assert [id(p) for p in network["params"]] == [id(p) for p in parts]
    assert len(parts) + 2 == len(list(module.parameters()))
    assert (network["lr"], network["weight_decay"], own["lr"], own["weight_decay"]) == (0.5, 0, 0.2, 0.01)
    alone = make()
    optimizer = alone.make_optimizer(alone.parameter_groups())
    assert len(optimizer.param_groups) == 1, "a method without parameters has no group"


def test_weight_decay_can_spare_norms_and_biases() -> None:
    module = make(method=Watched(options={"weight_decay": 0.01}), decay="weights", head=Head(6, 16, [8]))
    groups = module.parameter_groups()
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    kept, spared, own = ({named[id(parameter)] for parameter in group["params"]} for group in groups)
    assert kept == {"backbone.layer.weight", "head.hidden.0.weight", "head.linear.weight"}
    norms = {f"{norm}.{part}" for norm in ("backbone.norm", "head.hidden.1") for part in ("weight", "bias")}
    assert spared == norms | {"backbone.layer.bias", "head.linear.bias"}
    assert own == {"method.weight", "method.idle"}
    assert [group.get("weight_decay") for group in groups] == [None, 0, 0]


def test_an_average_of_the_weights_is_evaluated_and_follows_each_step() -> None:
    outputs, seen = Outputs(), []

    class Weights(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            seen.append(pl_module.head.linear.weight.detach().clone())

    module = make(ema=0.8)
    expected = module.head.linear.weight.detach().clone()
    fit(module, Weights(), epochs=2, batches=3)
    for weight in seen:
        expected = 0.8 * expected + 0.2 * weight
    assert module.average is not None
    torch.testing.assert_close(module.average.head.linear.weight, expected)
    assert not torch.allclose(expected, module.head.linear.weight)
    make_trainer(outputs).validate(module, evaluation(), verbose=False)
    module.eval()
    for batch, found in zip(evaluation()[0], outputs.validation[0], strict=True):
        features, embedding = module.average(batch["image"])
        torch.testing.assert_close(found["embedding"], embedding)
        torch.testing.assert_close(found["features"], features)
        assert not torch.allclose(found["embedding"], module(batch["image"])[1], atol=1e-3)


class Taught(TaughtMethod):
    """Keeps what it was given."""

    teacher_decay = 0.7

    def __init__(self, evaluates: bool, unit_norm: bool) -> None:
        super().__init__()
        self.teacher_evaluates, self.unit_norm = evaluates, unit_norm
        self.given: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, index: Tensor, features: Tensor, teacher: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        assert features.requires_grad
        assert not any(part.requires_grad for part in teacher)
        self.given.append((embeddings.detach(), features.detach(), *teacher))
        return {"loss": (embeddings - teacher[1].roll(1, 0)).square().sum() + features.square().mean()}


@pytest.mark.parametrize("evaluates", [True, False])
@pytest.mark.parametrize("unit_norm", [True, False])
def test_a_teacher_sees_the_same_views_and_follows_the_network(evaluates: bool, unit_norm: bool) -> None:
    method = Taught(evaluates, unit_norm)
    module = make(method=method, backbone=lambda: Eyes(share=0))
    before = copy.deepcopy(module)
    fit(module, batches=2)
    views = [batch["views"] for batch in loader(2)]
    first, second = method.given
    assert before.teacher is not None
    assert module.teacher is not None
    features, embeddings = before.teacher.train()(views[0], unit_norm)
    torch.testing.assert_close(first[2:], (features, embeddings))
    before.train()
    student = before.backbone(views[0])
    torch.testing.assert_close(first[1], student.detach())
    if not evaluates:
        torch.testing.assert_close(first[2], first[1])
    assert not torch.allclose(second[1], second[2], atol=1e-4), "it lags behind"
    assert all(part.training != evaluates for part in module.teacher.modules())
    assert not any("teacher" in named for group in module.parameter_groups() for named in group)


class Plain(nn.Module):
    """Without batch norm, so that images do not depend on each other."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer(images).tanh().mean((2, 3))
        return features


def gradients(module: EmbeddingModule) -> dict[str, Tensor | None]:
    """Of one step."""
    (batch,) = loader(1, module.method.views)
    module.training_step(batch, 0)["loss"].backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("at_once", [1, 3, 8, 100])
@pytest.mark.parametrize(
    "method",
    [
        InvariantSpreading(0.1, "all", False, 0.5, "self"),
        Exemplar(0.1),
        SimCLR(0.5),
        Triplet(0.5, "random"),
    ],
)
def test_in_parts_the_gradient_is_that_of_the_whole_batch(method: Method, at_once: int) -> None:
    whole, parts = (
        gradients(make(method=copy.deepcopy(method), backbone=Plain, microbatch=microbatch))
        for microbatch in (None, at_once)
    )
    for name, gradient in whole.items():
        part = parts[name]
        assert gradient is not None
        assert part is not None
        assert (part - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_in_parts_no_part_counts_twice_and_each_draws_what_it_drew() -> None:
    """Batch norm's statistics after one step, and dropout, which a part that is computed again must repeat."""
    module = make(method=SimCLR(0.5), microbatch=3)
    by_hand = copy.deepcopy(module)
    found = gradients(module)
    (batch,) = loader(1)
    seed_device(torch.device("cpu"), 0)
    features = torch.cat([by_hand.backbone(part) for part in batch["views"].split(3)])
    by_hand.method(by_hand.head(features), batch["index"])["loss"].backward()
    for name, parameter in by_hand.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)
    for (name, buffer), expected in zip(module.named_buffers(), by_hand.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected, msg=name)
    norms = [part.momentum for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms == [0.1], "and it goes on as before"


def test_captured_the_network_learns_what_it_learns_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where capturing draws and changes running statistics (`capture`)."""
    captured: list[nn.Module] = []

    def counted(network: nn.Module, *arguments: Any, **options: Any) -> Any:
        captured.append(network)
        return capture(network, *arguments, **options)

    monkeypatch.setattr("torch.cuda.make_graphed_callables", counted)
    plain, graph = make(method=BYOL(4, 0.9)), make(method=BYOL(4, 0.9), graph=True)
    for module in (plain, graph):
        fit(module, epochs=2, batches=3)
    assert len(captured) == 1
    assert graph.state_dict().keys() == plain.state_dict().keys()
    for name, weight in graph.state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name]), name


def test_a_teacher_sees_as_many_views_at_once_as_the_network() -> None:
    module = make(method=BYOL(4, 0.9), microbatch=3)
    assert module.teacher is not None
    seen = [list[int](), list[int]()]
    for network, sizes in zip((module.backbone, module.teacher.backbone), seen, strict=True):
        network.register_forward_pre_hook(lambda _, given, sizes=sizes: sizes.append(len(given[0])))
    gradients(module)
    assert seen[1] == [3, 3, 2]
    assert seen[0][:3] == seen[1], "and again for the gradient"


@pytest.mark.parametrize("unit_norm", [True, False])
def test_the_method_remembers_once_a_step_what_it_was_given_when_the_network_has_learned(unit_norm: bool) -> None:
    method = Watched(unit_norm)
    fit(make(method=method), epochs=2, batches=3)
    assert [name for name, *_ in method.events] == ["forward", "after_step"] * 6
    given, remembered = method.events[::2], method.events[1::2]
    for step, ((_, z, index, before), (_, again, index_again, after)) in enumerate(zip(given, remembered, strict=True)):
        assert index.tolist() == index_again.tolist() == [4 * (step % 3) + place for place in (3, 2, 1, 0)]
        assert torch.equal(z, again)
        assert not torch.equal(before, after), "the optimiser comes first"
        norms = z.norm(dim=1)
        assert torch.allclose(norms, torch.ones(8)) == unit_norm
    for (*_, after), (*_, before) in zip(remembered[:-1], given[1:], strict=True):
        assert torch.equal(after, before), "and nothing else changes a weight"


class Outputs(pl.Callback):
    """What the steps of training and evaluation return."""

    def __init__(self) -> None:
        self.training: list[dict[str, Any]] = []
        self.validation: dict[int, list[dict[str, Tensor]]] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.training.append(outputs)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.validation.setdefault(dataloader_idx, []).append(outputs)


class Rates(pl.Callback):
    """The learning rate of each epoch's first step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_schedule_counts_the_optimizers_steps() -> None:
    """Of which several batches may make one; the last of an epoch takes what is left."""
    for batches, several in ((3, 1), (3, 2), (4, 4), (1, 2)):
        rates = Rates()
        fit(
            make(milestones=(1, 3), factors=(0.1, 0.01)),
            rates,
            epochs=4,
            batches=batches,
            accumulate_grad_batches=several,
        )
        assert rates.rates == pytest.approx([0.5, 0.05, 0.05, 0.005])


def test_a_step_returns_all_terms_detached() -> None:
    outputs, method = Outputs(), Watched()
    fit(make(method=method), outputs, batches=2)
    for step in outputs.training:
        assert step["terms"].keys() == {"loss", "double", "alignment"}
        assert not any(made.requires_grad for made in (*step["terms"].values(), step["features"], step["embeddings"]))
        assert step["terms"]["loss"] == step["loss"] == step["terms"]["double"] / 2
    _, z, _, weight = method.events[0]
    torch.testing.assert_close(outputs.training[0]["loss"], (z @ weight).sin().mean())
    pairs = list(zip(functional.normalize(z, dim=1), functional.normalize(z, dim=1)[len(z) // 2 :], strict=False))
    expected = sum((one - other).square().sum() for one, other in pairs) / len(pairs)
    torch.testing.assert_close(outputs.training[0]["terms"]["alignment"], expected)


def test_numbers_are_read_every_so_many_steps_and_at_an_epochs_end() -> None:
    def waits(step: int, last: bool) -> bool:
        state: Any = SimpleNamespace(is_last_batch=last, global_step=step, log_every_n_steps=3)
        return may_wait(state)

    assert [waits(step, False) for step in range(7)] == [True, False, False, True, False, False, True]
    assert all(waits(step, True) for step in range(7))


def test_the_method_is_given_what_the_head_makes_of_the_views() -> None:
    for unit_norm in (True, False):
        method = Watched(unit_norm)
        fit(make(method=method, backbone=lambda: resnet18(8)))
        untrained = make(method=Watched(), backbone=lambda: resnet18(8))
        (batch,) = loader()
        with torch.no_grad():
            projected = untrained.head.linear(untrained.backbone(batch["views"]))
        expected = functional.normalize(projected, dim=1) if unit_norm else projected
        torch.testing.assert_close(method.events[0][1], expected)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_under_autocast_the_network_computes_in_bfloat16_and_the_method_in_float32(
    precision: str, dtype: torch.dtype
) -> None:
    method, outputs = Watched(), Outputs()
    module = make(method=method)
    trainer = fit(module, outputs, batches=2, precision=precision)
    trainer.validate(module, evaluation(), verbose=False)
    assert module.backbone.types == [dtype] * (2 + 4)
    assert not method.autocast
    assert {z.dtype for _, z, *_ in method.events} == {torch.float32}
    for batch in outputs.validation[0]:
        assert batch["embedding"].dtype == batch["features"].dtype == torch.float32
        torch.testing.assert_close(batch["embedding"].norm(dim=1), torch.ones(len(batch["index"])))


def test_the_loss_is_exact_under_autocast() -> None:
    outputs, seen = Outputs(), []
    module = make()
    module.method.register_forward_pre_hook(lambda method, inputs: seen.append(inputs[0].detach()))
    fit(module, outputs, precision="bf16-mixed")
    exact = invariant_spreading_loss(seen[0].double()).item()
    assert outputs.training[0]["loss"].item() == pytest.approx(exact, rel=1e-6)


def drawn(seed: int = 0, before: int = 0, **options: Any) -> list[Tensor]:
    """What the network and the method draw at each of six steps, after `before` other draws."""
    method = Watched()
    module = make(method=method, seed=seed)
    torch.manual_seed(before)
    torch.rand(before)
    trainer = make_trainer(epochs=2)
    trainer.fit(module, loader(3), **options)
    embeddings = [z.flatten() for name, z, *_ in method.events if name == "forward"]
    return [torch.cat(pair) for pair in zip(method.draws, embeddings, strict=True)]


def test_seed_and_step_decide_every_draw(tmp_path: Path) -> None:
    first, again, other = drawn(), drawn(before=7), drawn(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "whatever was drawn before"
    draws = [tuple(draw[:5].tolist()) for draw in first + other]
    assert len(set(draws)) == 12, "each step its own, and each seed"
    module = make(method=Watched())
    fit(module, batches=3).save_checkpoint(tmp_path / "one.ckpt")
    rest = drawn(before=3, ckpt_path=tmp_path / "one.ckpt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(first[3:], rest, strict=True)), "a run that goes on"


def test_on_each_rank_the_network_draws_its_own_and_the_method_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn()
    monkeypatch.setattr(EmbeddingModule, "global_rank", 1)
    for one, other in zip(first, drawn(), strict=True):
        assert torch.equal(one[:5], other[:5])
        assert not torch.isclose(one[5:], other[5:]).any()


def evaluation() -> list[DataLoader]:
    """Query and gallery of five images in two batches, indices and labels of no order."""

    def batches(seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(5, 3, 16, 16, generator=generator)
        index, label = torch.randperm(5, generator=generator), torch.randint(9, (5,), generator=generator)
        for rows in torch.arange(5).split(3):
            yield {"index": index[rows], "label": label[rows], "image": images[rows]}

    return [DataLoader(list(batches(seed)), batch_size=None) for seed in (1, 2)]  # type: ignore[arg-type]


def test_an_evaluation_step_returns_both_spaces_of_its_images_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    module, outputs, equalised = make(method=Watched(unit_norm=False)), Outputs(), []
    monkeypatch.setattr("src.module.broadcast_buffers", lambda part: equalised.append(part))
    fit(module)
    make_trainer(outputs).validate(module, evaluation(), verbose=False)
    assert equalised == [module], "of what a checkpoint holds"
    module.eval()
    for number, batches in enumerate(evaluation()):
        assert len(outputs.validation[number]) == 2
        for batch, found in zip(batches, outputs.validation[number], strict=True):
            assert found.keys() == {"index", "label", "embedding", "features"}
            assert torch.equal(found["index"], batch["index"])
            assert torch.equal(found["label"], batch["label"])
            with torch.no_grad():
                features = module.backbone(batch["image"])
                embedding = functional.normalize(module.head.linear(features), dim=1)
            torch.testing.assert_close(found["features"], features)
            torch.testing.assert_close(found["embedding"], embedding)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_whitening_is_given_the_features_of_image_and_mirror_image(ema: float | None) -> None:
    module = make(ema=ema, whitening=Whitening(6, 4), mirror=True)
    fit(module)
    module.eval()
    (images,) = next(iter(evaluation()[0]))["image"].split(3)
    batch = {"index": torch.arange(3), "label": torch.arange(3), "image": images}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = module.validation_step(batch, 0)
    assert found.keys() == {"index", "label", "features"}
    assert found["features"].dtype == torch.float32
    network = (module.average or module).backbone
    with torch.no_grad():
        expected = (network(images) + network(images.flip(3))) / 2
        assert not torch.allclose(expected, network(images), rtol=0.05)
    torch.testing.assert_close(found["features"], expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("milestones", "factors", "shares"),
    [
        ((2, 3), (0.1, 0.01), (1, 1, 0.1, 0.01, 0.01)),
        ((), (), (1, 1)),
        ((1, 1), (0.5, 0.2), (1, 0.2)),
        ((0,), (3,), (3,)),
    ],
)
@pytest.mark.parametrize(("batches", "options", "own", "scheduled"), [(1, {"lr": 0.2}, 0.2, False), (3, {}, 0.5, True)])
def test_schedule(
    milestones: tuple[int, ...],
    factors: tuple[float, ...],
    shares: tuple[float, ...],
    batches: int,
    options: dict[str, float],
    own: float,
    scheduled: bool,
) -> None:
    """At every step of every epoch, of the network's rate and the method's, but of one that it names itself."""
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = make(milestones, factors, method=Watched(options=options))
    fit(module, Rates(), epochs=len(shares), batches=batches)
    expected = [[0.5 * share, own * (share if scheduled else 1)] for share in shares for _ in range(batches)]
    assert [rate for pair in rates for rate in pair] == pytest.approx([rate for pair in expected for rate in pair])


def test_a_checkpoint_whose_rates_counted_epochs_is_not_gone_on_with() -> None:
    make().on_load_checkpoint({"lr_schedulers": [{"last_epoch": 6}], "global_step": 6})
    with pytest.raises(ValueError, match="of an earlier version"):
        make().on_load_checkpoint({"lr_schedulers": [{"last_epoch": 2}], "global_step": 6})


class Broken(Method):
    """Fails from its third step on."""

    steps = 0

    def forward(self, embeddings: Tensor, index: Tensor) -> dict[str, Tensor]:
        self.steps += 1
        return {"loss": embeddings.sum() * (torch.nan if self.steps >= 3 else 1)}


@pytest.mark.parametrize("every", [1, 2, 50])
def test_a_loss_that_is_not_finite_stops_with_step_and_batch(every: int) -> None:
    """However seldom it is looked at, the first bad step is named, and no epoch ends unseen, nor does the training."""
    for steps in (-1, 4):
        where = r"nan at step 2 \(epoch 0, batch 2, images \[11, 10, 9\] and 1 more\)"
        with pytest.raises(FloatingPointError, match=where):
            fit(make(method=Broken()), batches=5, log_every_n_steps=every, max_steps=steps)
