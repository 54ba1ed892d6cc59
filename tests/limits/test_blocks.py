"""Blocks under other names than C1, C2, C3, C4, O."""

from __future__ import annotations

import pytest
from networks import Good, dense
from torch import Tensor, nn

from config import InputError
from limits.constraints import check


class Renamed(nn.Module):
    """The good network with blocks of these names, and with a stem before them where that is said."""

    def __init__(self, *names: str, stem: nn.Module | None = None, pool: nn.Module | None = None) -> None:
        super().__init__()
        good = Good()
        if stem:
            self.stem = stem
        for name, block in zip(names, (good.C1, good.C2, good.C3, good.C4), strict=False):
            setattr(self, name, block)
        self.blocks = names[:4]
        if len(names) > 4:
            setattr(self, names[4], good.O)
        else:
            self.fc = nn.Linear(8, 10)
        self.last = names[4] if len(names) > 4 else None

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "stem"):
            x = self.stem(x)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return getattr(self, self.last)(x) if self.last else self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    "names",
    [
        ("convblock1", "convblock2", "convblock3", "convblock4", "output"),
        ("layer0", "layer1", "layer2", "layer3", "head"),
        ("conv_block_1", "conv_block_2", "conv_block_3", "conv_block_4", "classifier"),
        ("c1", "c2", "c3", "c4", "o"),
        ("C1", "C2", "C3", "C4", "fc"),
        ("block1_convs", "block2_convs", "block3_convs", "block4_convs", "O"),
        ("entry", "early", "middle", "late", "out"),
        ("layer1", "layer2", "layer3", "layer4"),
        ("C1", "C2", "C3", "C4"),
    ],
)
def test_blocks_of_other_names_are_found_and_said(names: tuple[str, ...]) -> None:
    _, blocks, pooling, *_ = found = check(Renamed(*names))
    assert blocks.value == "3 3 3 3 as " + " ".join(names if len(names) == 5 else (*names, "fc"))
    assert pooling.value == ("adaptive_avg_pool2d in " + names[4] + ".0" if len(names) == 5 else "mean in forward")
    assert all(one.passed for one in found)


def test_blocks_in_a_sequence_are_found() -> None:
    good = Good()
    network = nn.Sequential(
        nn.Sequential(good.C1, good.C2, good.C3, good.C4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )
    assert check(network)[1].value == "3 3 3 3 as 0.0 0.1 0.2 0.3 1 2 3"
    assert all(one.passed for one in check(network))


def test_faults_of_blocks_of_other_names() -> None:
    network = Renamed("layer1", "layer2", "layer3", "layer4", stem=dense(3, 3))
    assert check(network)[1].value == "3 3 3 3 as layer1 layer2 layer3 layer4 fc, 1 outside the blocks"
    assert check(network)[1].passed is False
    network = Renamed("layer1", "layer2", "layer3", "layer4")
    network.blocks = ("layer1", "layer3", "layer2", "layer4")
    assert check(network)[1].value == "3 3 3 3 as layer1 layer2 layer3 layer4 fc, in the order C1 C3 C2 C4 O"
    network.layer3 = nn.Sequential(dense(8, 8), dense(8, 8))
    network.blocks = ("layer1", "layer2", "layer3", "layer4")
    assert check(network)[1].value == "3 3 2 3 as layer1 layer2 layer3 layer4 fc"
    assert check(network)[1].passed is False


def test_a_flat_network_has_no_blocks() -> None:
    layers = [dense(3, 8), *(dense(8, 8) for _ in range(11))]
    network = nn.Sequential(*(part for layer in layers for part in layer), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    found = check(network)[1]
    assert (found.passed, found.value) == (False, "0 0 0 0, no C1 C2 C3 C4 O, 12 outside the blocks")


def test_blocks_that_are_said() -> None:
    network = Renamed("left", "b", "right", "d", "top", stem=nn.Sequential(dense(3, 3), dense(3, 3)))
    assert check(network)[1].value == "0 0 0 0, no C1 C2 C3 C4 O, 14 outside the blocks"
    network.stem = nn.Identity()
    network.left = nn.Sequential(network.left)
    for blocks in (["left.0", "b", "right", "d", "top"], ["left.0", "b", "right", "d"]):
        found = check(network, blocks=blocks)[1]
        assert found.value == "3 3 3 3 as left.0 b right d top"
        assert found.passed


@pytest.mark.parametrize(
    "blocks, message",
    [
        (["C1", "C2", "C3", "C9"], "no module 'C9': it has C1, C1.0, .*C2"),
        (["C1", "C2", "C3"], "four different modules, or five"),
        (["C1", "C2", "C3", "C3"], "four different modules"),
        (["C1", "C2", "C3", "C4", "O", "O.0"], "four different modules"),
        (["", "C2", "C3", "C4"], "no module ''"),
    ],
)
def test_blocks_that_are_not_there(blocks: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(Good(), blocks=blocks)
