from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch.nn.functional import adaptive_avg_pool2d, conv2d, gelu, interpolate, max_pool2d, unfold

from src.assemble import assemble
from src.backbones.airbench import Airbench, Pool
from src.datamodules.base import StoreDataModule
from tests.test_cost import configure


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Real digits in three channels that differ."""
    grey = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16
    return torch.cat([grey, grey.flip(3), torch.randn(grey.shape, generator=torch.Generator().manual_seed(0))], 1)


def test_patches_are_whitened_as_by_scikit_learn(images: torch.Tensor) -> None:
    network = Airbench((8, 16, 16))
    network.whiten(images)
    white = conv2d(images, network.filters).transpose(0, 1).flatten(1)
    torch.testing.assert_close(white[:12], -white[12:])
    patches = unfold(images, 2).transpose(0, 1).flatten(1).T
    both = torch.cat([patches, -patches]).double().numpy()  # of mean 0, as the paper takes the patches
    theirs = torch.from_numpy(PCA(whiten=True).fit_transform(both))[: len(patches)].T.float()
    varied = PCA().fit(both).explained_variance_ > 0.1  # against 5e-4 that ours adds
    assert varied.sum() >= 8
    torch.testing.assert_close(white[:12][varied].abs(), theirs[varied].abs(), rtol=0.003, atol=1e-5)
    assert white[:12].square().mean(1).max() <= 1


def test_what_hardly_varies_is_not_blown_up() -> None:
    network = Airbench((8, 16, 16))
    network.whiten(torch.ones(10, 3, 8, 8))
    assert network.filters.isfinite().all()
    assert network.filters.abs().max() <= 5e-4**-0.5


def test_the_network_layer_by_layer() -> None:
    """The paper's section 3: convolution, pooling, norm, GELU; convolution, norm, GELU; a maximum at the end."""
    network = Airbench((8, 16, 24))
    images = torch.randn(4, 3, 32, 32)
    x = gelu(conv2d(images, network.filters, network.bias))
    assert x.shape == (4, 24, 31, 31)
    state = network.state_dict()
    of_block = {}
    for weight in [name for name in state if name.endswith("weight") and state[name].ndim == 4]:
        x = conv2d(x, state[weight], padding=1)
        if weight in ("blocks.0.weight", "blocks.7.weight", "blocks.14.weight"):
            x = max_pool2d(x, 2)
        x = gelu((x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt())
        of_block[x.shape[2]] = adaptive_avg_pool2d(x, 3).flatten(1)
    assert x.shape == (4, 24, 3, 3)
    torch.testing.assert_close(network(images), x.amax((2, 3)), atol=1e-4, rtol=1e-4)
    assert network.num_features == 24
    grid = Airbench((8, 16, 24), "grid")
    grid.load_state_dict(state)
    torch.testing.assert_close(grid(images), x.flatten(1), atol=1e-4, rtol=1e-4)
    assert grid.num_features == 9 * 24
    pyramid = Airbench((8, 16, 24), "pyramid")
    pyramid.load_state_dict(state)
    assert [*of_block] == [15, 7, 3]
    torch.testing.assert_close(pyramid(images), torch.cat([*of_block.values()], 1), atol=1e-4, rtol=1e-4)
    assert pyramid.num_features == 9 * (8 + 16 + 24)


def test_a_grid_has_the_mean_of_each_part() -> None:
    """Of a last map of 7x7, parts of 3x3 that share their edges."""
    network = Airbench((8, 16, 24), "grid").eval()
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        last = network.blocks(gelu(conv2d(images, network.filters, network.bias)))
        found = network(images).view(4, 24, 3, 3)
    assert last.shape == (4, 24, 7, 7)
    parts = [slice(0, 3), slice(2, 5), slice(4, 7)]
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts):
            torch.testing.assert_close(found[:, :, i, j], last[:, :, rows, columns].mean((2, 3)))


def test_convolutions_begin_with_the_identity() -> None:
    torch.manual_seed(0)
    network = Airbench((32, 16, 48))
    image = torch.randn(1, 24, 5, 5)
    first = network.blocks[0](image)
    torch.testing.assert_close(first[:, :24], image)
    assert first[:, 24:].std() > 0.1
    torch.testing.assert_close(network.blocks[7](first), first[:, :16])


SMALL = ("backbone=airbench", "backbone.widths=[8,16,16]", "input.size=16")


def configured(cache: Path, *overrides: str) -> tuple[StoreDataModule, Any]:
    datamodule, module, _ = assemble(configure(cache, *SMALL, *overrides), 1)
    return datamodule, module.backbone


def test_whitened_from_the_training_images(cache: Path) -> None:
    datamodule, network = configured(cache, "dataset.limit=300")
    white = conv2d(datamodule.clean_images(5000), network.filters).square().mean((0, 2, 3))
    assert white.max().item() == pytest.approx(1, abs=1e-3)
    assert datamodule.clean_images(5000).shape == (300, 3, 16, 16)
    assert len(datamodule.clean_images(100)) == 100
    assert "filters" in network.state_dict()
    assert "filters" not in dict(network.named_parameters()), "they do not learn"


@pytest.mark.parametrize(("pool", "parts"), [("pyramid", [72, 144, 144]), ("grid", []), ("maximum", [])])
def test_blocks_of_a_pyramid_count_alike_when_whitened(cache: Path, pool: str, parts: list[int]) -> None:
    module = assemble(configure(cache, *SMALL, f"backbone.pool={pool}", "whitening=16"), 1)[1]
    assert module.whitening is not None
    assert module.whitening.parts == parts


def test_given_weights_keep_their_filters(cache: Path, tmp_path: Path) -> None:
    state = Airbench((8, 16, 16)).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    _, network = configured(cache, f"backbone.weights={tmp_path / 'a.safetensors'}")
    torch.testing.assert_close(network.filters, state["filters"])


def test_images_too_small(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"input.size=4 or one of dataset.view_sizes does not suit"):
        configured(cache, "input.size=4")


@pytest.mark.parametrize("pool", ["maximum", "grid", "pyramid"])
def test_compiled_its_gradient_is_the_same(images: torch.Tensor, pool: Pool) -> None:
    """In bfloat16, where what a compiler computes together is rounded less often."""
    torch.manual_seed(0)
    network, larger = Airbench((8, 16, 16), pool), interpolate(images[:256], 32)
    found = []
    for _ in range(2):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            features = network(larger)
        features.float().square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        network.compile()
    assert (found[1] - found[0]).norm() < 0.2 * found[0].norm(), "near ties fall otherwise, no more"
