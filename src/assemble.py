"""From a resolved config to data, network with its method, and metrics, checked against each other; and a trainer."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import ClusterEnvironment, LightningEnvironment
from torch import nn

from src.backbones.airbench import Airbench
from src.backbones.head import Head
from src.backbones.whitening import Whitening
from src.callbacks.checkpoints import Checkpoints, WholeCheckpointIO
from src.callbacks.evaluation import Evaluation
from src.callbacks.history import History
from src.callbacks.refresh import Refresh
from src.callbacks.standing import Standing
from src.callbacks.steps import Steps
from src.datamodules.base import StoreDataModule
from src.methods.base import TrainingSet
from src.module import EmbeddingModule
from src.running import checkpoints, runs

WHITENED = 5000 * 32**2  # pixels of training images whose patches are whitened, where a network wants that
ASIDE = ("_target_", "weights", "pretrained", "cache_dir")  # of a backbone: what its shape does not depend on


def assemble(
    config: DictConfig, ranks: int, filled: bool = False, fits: bool = True
) -> tuple[StoreDataModule, EmbeddingModule, Evaluation]:
    """Data, network with its method, and evaluation of a resolved config, checked against each other.

    Args:
        config: of a run.
        ranks: how many processes train.
        filled: whether a checkpoint will fill the network, whose initial weights then need not be there.
        fits: whether a whitening, where there is one, is fitted at every evaluation, or a checkpoint's taken.

    Raises:
        ValueError: they do not fit; the message names the setting.
    """
    augmentation = instantiate(config.augmentation)
    datamodule = instantiate(config.dataset, _partial_=True)(augmentation=augmentation)
    try:
        backbone = make_backbone(config, filled).to(memory_format=torch.channels_last)
    except InstantiationException as error:
        if isinstance(error.__cause__, OSError) and (missing := datamodule.missing()):
            raise OSError(f"{error.__cause__}. {missing}") from error  # of two things to fetch, name both at once
        raise
    datamodule.prepare_data()
    datamodule.setup()
    datamodule.check(ranks)
    datamodule.fits = fits and bool(config.whitening)
    if isinstance(backbone, Airbench) and not (filled or config.backbone.weights):
        backbone.whiten(datamodule.clean_images(max(1, WHITENED // datamodule.image_size**2)))
    check_size(backbone, min(datamodule.view_sizes))
    if config.protocol.disjoint:
        check_disjoint(datamodule)
    assert datamodule.store is not None
    groups = (config.protocol.metrics, config.protocol.final)
    metrics, final = ({name: instantiate(metric) for name, metric in group.items() if metric} for group in groups)
    queries = {"the test set": datamodule.query_labels}
    if datamodule.validation_labels is not None:
        queries[f"the validation set (dataset.validation={datamodule.validation})"] = datamodule.validation_labels
    for metric in [*metrics.values(), *final.values()]:
        metric.name_classes(datamodule.store.classes)
        for name, labels in queries.items():
            metric.check(labels, datamodule.gallery_labels, name)
    space, monitor, held_out = config.protocol.space, config.protocol.monitor, datamodule.validation is not None
    evaluation = Evaluation(metrics, final, space, monitor, held_out, datamodule.gallery, datamodule.fits)
    module = EmbeddingModule(
        backbone,
        Head(int(backbone.num_features), config.embedding_dim, **config.head),  # type: ignore[arg-type]
        instantiate(config.method),
        instantiate(config.optimizer, _convert_="all"),
        instantiate(config.schedule, _convert_="all"),
        config.seed,
        config.decay,
        config.ema,
        config.microbatch,
        config.graph,
        make_whitening(backbone, config.whitening) if config.whitening else None,
        config.mirror,
    )
    labels = datamodule.train_labels if module.method.supervised else None
    pretrained = bool(config.backbone.get("pretrained", config.backbone.get("weights")))
    # After the network, whose initial weights are then the same for every method.
    images, features = len(datamodule.train_labels), int(backbone.num_features)  # type: ignore[arg-type]
    module.method.setup(TrainingSet(images, config.embedding_dim, pretrained, labels, features))
    return datamodule, module, evaluation


def make_whitening(backbone: nn.Module, dim: int) -> Whitening:
    """A whitening of what the backbone makes, whose `parts`, where it names them, count alike."""
    return Whitening(int(backbone.num_features), dim, getattr(backbone, "parts", ()))  # type: ignore[arg-type]


def make_backbone(config: DictConfig, filled: bool) -> nn.Module:
    """The network of a config with the weights that it begins with, which may be the backbone's of another run.

    Raises:
        FileNotFoundError, ValueError: that run is not there, damaged, or of another network; the message names both.
    """
    run = None if filled else _begun_from(config.backbone)
    bare = config.copy()
    if filled or run:
        runs.forget_initial_weights(bare)
    backbone: nn.Module = instantiate(bare.backbone)
    if run:
        try:
            begin_with(backbone, config.backbone, *runs.locate(run, "last"))
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"backbone.weights={config.backbone.weights}: {error}") from error
    return backbone


def _begun_from(backbone: DictConfig) -> Path | None:
    """The run that a network begins with, or a checkpoint of one; None where there is none, or a file of weights."""
    if not (backbone.get("weights") and backbone.get("pretrained", True)):
        return None
    path = Path(backbone.weights).expanduser()
    return path if path.is_dir() or (path.suffix == ".ckpt" and path.parent.name == "checkpoints") else None


def begin_with(backbone: nn.Module, described: DictConfig, folder: Path, which: str) -> None:
    """Fill `backbone`, `described` by its config, with the weights of a run's checkpoint; its head is left aside."""
    theirs = runs.load_config(folder).backbone
    state, _ = checkpoints.read_weights(folder, which)
    try:
        backbone.load_state_dict(checkpoints.part_of(state, "backbone"))
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"its network is {_named(theirs)}, not {_named(described)}: choose the backbone of that run ({reason})"
        ) from error


def _named(backbone: DictConfig) -> str:
    options = [f"{name}={backbone[name]}" for name in map(str, backbone) if name not in ASIDE]
    return f"{backbone._target_.rpartition('.')[2]}({', '.join(options)})"


def check_size(backbone: nn.Module, size: int) -> None:
    """Raise a ValueError where the network makes nothing of images of `size` pixels a side: too few, or not its own."""
    training = backbone.training
    try:
        with torch.no_grad():
            found = backbone.eval()(torch.zeros(1, 3, size, size)).shape[1:]
        if found != (backbone.num_features,):
            raise RuntimeError(f"it makes features of {tuple(found)}, not {backbone.num_features}")
    except (RuntimeError, AssertionError) as error:
        setting = f"input.size={size} or one of dataset.view_sizes"
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{setting} does not suit the network ({reason})") from error
    finally:
        backbone.train(training)


def check_disjoint(datamodule: StoreDataModule) -> None:
    """Raise a ValueError where the protocol asks for unseen classes and some are trained on."""
    assert datamodule.store is not None
    seen = set(datamodule.train_labels.tolist()) & set(datamodule.query_labels.tolist()) - {-1}
    if seen:
        names = [datamodule.store.classes[label] for label in sorted(seen)]
        raise ValueError(
            f"this protocol tests on unseen classes, but {len(names)} are in the training and in the test set "
            f"({', '.join(names[:3])}): choose protocol=seen or split the classes"
        )


def make_logger(config: DictConfig, folder: Path, module: EmbeddingModule) -> Logger | None:
    """The run's logger, told of every setting; None where none is asked for."""
    if not config.logger:
        return None
    logger: Logger = instantiate(config.logger, save_dir=folder)
    plain: Any = OmegaConf.to_container(config)
    logger.log_hyperparams({**plain, "labels_used": module.method.supervised})
    return logger


def make_trainer(
    config: DictConfig,
    folder: Path,
    module: EmbeddingModule,
    evaluation: Evaluation,
    history: History,
    logger: Logger | None,
    cluster: ClusterEnvironment | None,
) -> pl.Trainer:
    """A trainer with the callbacks of every run and the config's; compiles the network where the config asks for it.

    Its ranks are told of each other by `cluster`, or by `src.running.ranks.spawn` (None).
    """
    if not module.method.trains:
        config.trainer.max_epochs = 0
    if config.compile:
        module.backbone.compile()
    chosen = [instantiate(callback) for callback in config.callbacks.values() if callback]
    if not config.trainer.enable_progress_bar:
        chosen = [callback for callback in chosen if not isinstance(callback, ProgressBar)]
    standing = Standing(folder, history, evaluation.monitor)
    kept = Checkpoints(folder, history, evaluation.monitor)
    trainer: pl.Trainer = instantiate(
        config.trainer,
        logger=logger or False,
        callbacks=[Refresh(config.seed), Steps(), evaluation, history, *chosen, standing, kept],
        plugins=[WholeCheckpointIO(), cluster or LightningEnvironment()],
        default_root_dir=str(folder),
        num_sanity_val_steps=0,  # the untrained network is scored in full
        use_distributed_sampler=False,  # the datamodule brings its own
        enable_model_summary=False,
    )
    # The signals are ours (`src.running.signals`): Lightning would answer SIGTERM with an exchange between ranks, which
    # the others need not be ready for, and under Slurm SIGUSR1 with a checkpoint and a job of its own; and it would ask
    # the other ranks at every step, which waits for the device, whether SIGTERM came.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
    return trainer
