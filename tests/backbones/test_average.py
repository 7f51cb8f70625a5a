"""The average of a network's weights against a loop over plain numbers, and what it is as a network."""

import torch
from torch import nn

from src.backbones.average import Average
from src.backbones.head import Head
from src.backbones.resnet import resnet18


def make(evaluates: bool = False) -> tuple[nn.Module, Head, Average]:
    torch.manual_seed(0)
    backbone = resnet18(4)
    head = Head(backbone.num_features, 8, [6])
    return backbone, head, Average(backbone, head, 0.9, evaluates)


def test_it_keeps_its_share_of_itself_at_each_step() -> None:
    backbone, head, average = make()
    live = {**{f"backbone.{n}": v for n, v in backbone.state_dict().items()}}
    live |= {f"head.{n}": v for n, v in head.state_dict().items()}
    expected = {name: value.clone().double() for name, value in average.state_dict().items()}
    for _ in range(3):
        for value in live.values():
            value.add_(torch.ones((), dtype=value.dtype))
        average.follow(backbone, head)
        for name, value in live.items():
            counts = name.endswith("num_batches_tracked")
            expected[name] = value.double() if counts else 0.9 * expected[name] + 0.1 * value.double()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_it_learns_nothing_by_itself_and_begins_as_the_live_network() -> None:
    backbone, head, average = make()
    images = torch.randn(4, 3, 16, 16)
    features, embeddings = average(images)
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not features.requires_grad
    torch.testing.assert_close(features, backbone(images))
    torch.testing.assert_close(embeddings, head(backbone(images)))
    torch.testing.assert_close(average(images, unit_norm=False)[1], head.project(backbone(images)))


def test_one_that_evaluates_stays_in_evaluation_mode() -> None:
    for evaluates in (False, True):
        _, _, average = make(evaluates)
        assert all(part.training != evaluates for part in average.modules())
        average.train()
        assert all(part.training != evaluates for part in average.modules())
        average.eval()
        assert not any(part.training for part in average.modules())
