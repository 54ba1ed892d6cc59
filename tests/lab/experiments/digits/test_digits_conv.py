"""The sizes that the page of digits-conv computes."""

import pytest
import torch
from torch import nn

from lab.common import models
from lab.experiments.digits.digits_conv import size_rows


@pytest.mark.parametrize("side", [28, 29, 32])
def test_arithmetic_of_the_sizes_is_that_of_the_network(side):
    model = models.Grayscale1Convolution(1, (side, side), 3)
    outputs: dict[str, list[int]] = {"input": [1, side, side]}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: list(out.shape[1:])}))
    model(torch.zeros(1, 1, side, side))
    for row, (name, size) in zip(size_rows(model, (side, side)), outputs.items(), strict=True):
        assert row[0].startswith(name)
        assert [int(part.replace(",", "")) for part in row[2].split(" x ")] == size
        parameters = int(row[3].split("= ")[-1].replace(",", ""))
        assert parameters == sum(p.numel() for p in getattr(model, name, nn.Identity()).parameters())
