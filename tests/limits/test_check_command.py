"""The tables that `summary` and `check` print, and the exit status."""

from __future__ import annotations

import re

import pytest
import torch
from networks import Good, changed, dense
from torch import nn

import main
from commands.check import show
from limits.constraints import check
from utils import summary

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def total(table: str) -> int:
    return int(re.search(r"^Total params: ([\d,]+)", table, re.MULTILINE)[1].replace(",", ""))


def tied() -> nn.Module:
    network = Good()
    network.C1[1][0].weight = network.C1[2][0].weight
    return network


def shared() -> nn.Module:
    network = Good()
    network.C1[2] = network.C1[1]
    return network


def frozen() -> nn.Module:
    network = Good()
    network.C1[0][0].weight.requires_grad_(False)
    return network


NETWORKS = {
    "plain": (Good, 6_498, False),
    "tied": (tied, 6_498 - 8 * 8 * 9, True),
    "shared": (shared, 6_498 - 8 * 8 * 9 - 8 - 16, True),
    "TorchScript": (lambda: changed(C2=torch.jit.script(Good().C2)), 6_498, False),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_and_the_constraint_say_the_same_total(name: str) -> None:
    build, parameters, is_shared = NETWORKS[name]
    table = summary(build(), 3, (32, 32))
    assert total(table) == parameters
    assert check(build())[0].value == f"{parameters:,}"
    assert ("(what modules share counts once)" in table) == is_shared
    assert f"Trainable params: {parameters:,}" in table


def test_weights_that_are_not_trained() -> None:
    table = summary(frozen(), 3, (32, 32))
    assert "Total params: 6,498\nTrainable params: 6,282\nNon-trainable params: 216\n" in table
    assert check(frozen())[0].value == "6,282 (and 216 not trained)"


def test_units_are_written_as_people_write_them() -> None:
    table = summary(Good(), 3, (32, 32))
    assert "Total mult-adds (M): 1.90" in table
    assert "Units" not in table


@pytest.mark.parametrize(
    "network, status, verdict",
    [
        (Good(), 0, "pass"),
        (changed(C4=dense(8, 8, dilation=2)), 1, "FAIL"),
        (changed(O=torch.jit.script(Good().O)), 3, "unknown"),
        (changed(O=torch.jit.script(Good().O), C4=dense(8, 8, dilation=2)), 1, "FAIL"),
    ],
)
def test_the_exit_status(capsys: pytest.CaptureFixture, network: nn.Module, status: int, verdict: str) -> None:
    assert show(network, 3) == status
    rows = capsys.readouterr().out.splitlines()[-6:]
    assert any(row.endswith(verdict) for row in rows)


def test_the_option_is_offered_where_no_blocks_are_found(capsys: pytest.CaptureFixture) -> None:
    flat = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    assert show(flat, 3) == 1
    assert "--blocks FIRST,SECOND,THIRD,FOURTH" in capsys.readouterr().out.splitlines()[-1]
    show(Good(), 3)
    assert "--blocks" not in capsys.readouterr().out


def test_the_command_takes_the_names_of_the_blocks(capsys: pytest.CaptureFixture) -> None:
    assert main.parse(["check", "model:Model", "--blocks", "C1, C2,C3,C4"]).run() == 0
    assert main.main(["check", "model:Model", "--blocks", "C1,C2,C3,C9"]) == 2
    assert capsys.readouterr().err.startswith("error: the network has no module 'C9': it has C1, ")
