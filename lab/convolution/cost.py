"""What the convolution by hand costs against torch's, on the shapes of the presets' own networks; the page docs/conv2d.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lab.common.quick import demand_whole
from lab.common.statements import span
from learning.presets import PRESETS
from results.documents import measured_on, replace_between
from utils import ROOT, resolve_precision

if TYPE_CHECKING:
    from torch import Tensor, nn

PAGE = ROOT / "docs" / "conv2d.md"
MARKERS = "<!-- conv2d-costs -->", "<!-- /conv2d-costs -->"
BATCH_SIZE = 128


@dataclass
class ByHand:
    """Compare a convolution written by hand with torch's: difference in the homework's case, cost on the presets' shapes."""

    quick: bool = False
    """One repeat of each shape instead of seven."""
    docs: bool = False
    """Put the table into docs/conv2d.md."""

    def run(self) -> int:
        demand_whole(self.quick, self.docs)
        import torch

        from lab.convolution.conv2d import demonstrate

        difference = f"largest difference to F.conv2d, input 1x3x10x12, weight 2x3x4x5, fp32: {demonstrate():.1e}"
        print(difference, flush=True)
        repeats = 1 if self.quick else 7
        precisions = ["fp32", *(["bf16"] if resolve_precision("auto", torch.device("cpu")) == torch.bfloat16 else [])]
        costs = {name: layer_costs(name, repeats) + network_costs(name, repeats) for name in precisions}
        text = f"{table(costs)}\n\n{in_words(costs)}"
        print(f"\nbatch of {BATCH_SIZE} images\n\n{text}")
        if self.docs:
            replace_between(PAGE, MARKERS, f"{difference[0].upper()}{difference[1:]}.\n\n{text}\n\n{measured_on()}")
        return 0


class Cost(NamedTuple):
    """What forward and backward of one convolution of the presets' networks, or of a whole network, take in milliseconds."""

    shape: str
    presets: str  # whose networks have it
    torch_ms: float
    own_ms: float

    @property
    def ratio(self) -> float:
        return self.own_ms / self.torch_ms


def _convolutions_of_the_presets() -> dict[tuple, list[str]]:
    """(in, out, kernel, stride, padding, dilation, groups, (H, W) of the input) -> presets, for 32x32 RGB images."""
    import torch
    from torch import nn

    from model import Net

    found: dict[tuple, list[str]] = {}
    for name, preset in PRESETS.items():

        def note(module: nn.Conv2d, inputs: tuple[Tensor], name: str = name) -> None:
            key = (
                module.in_channels,
                module.out_channels,
                module.kernel_size,
                module.stride,
                module.padding,
                module.dilation,
                module.groups,
                tuple(inputs[0].shape[2:]),
            )
            if name not in found.setdefault(key, []):
                found[key].append(name)

        net = Net(3, 10, **preset.net)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(note)
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, 32, 32))
    return found


def _least_ms(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """The least milliseconds of `repeats` calls of each, the works in turn, after a round that is not counted."""
    times: list[list[float]] = []
    for _ in range(1 + repeats):
        times.append([])
        for work in works:
            start = time.perf_counter()
            work()
            times[-1].append(1000 * (time.perf_counter() - start))
    return [min(column) for column in zip(*times[1:], strict=True)]


def layer_costs(precision: str, repeats: int, batch_size: int = BATCH_SIZE) -> list[Cost]:
    """The cost of each convolution in the presets' networks against torch's, channels last in memory, as in training; the least
    of `repeats`. `precision` is fp32 or bf16, which is autocast: the weights are fp32.

    Forward and backward to weight and input, the stem's to the weight alone: images need no gradient.
    """
    import torch
    import torch.nn.functional as F

    from lab.convolution.conv2d import conv2d

    def there_and_back(convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, *arguments: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            y = convolve(x, weight, None, *arguments)
        torch.autograd.grad(y, [t for t in (x, weight) if t.requires_grad], y.detach())

    rows = []
    for (c_in, c_out, kernel, stride, padding, dilation, groups, size), presets in _convolutions_of_the_presets().items():
        x, weight = (
            torch.randn(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_(needs_grad)
            for shape, needs_grad, dtype in (
                ((batch_size, c_in, *size), c_in != 3, torch.bfloat16 if precision == "bf16" else torch.float32),
                ((c_out, c_in // groups, *kernel), True, torch.float32),
            )
        )
        arguments = (x, weight, stride, padding, dilation, groups)
        shape = f"{c_in}->{c_out} {kernel[0]}x{kernel[1]} at {size[0]}x{size[1]}"
        shape += "".join(
            f", {name} {value}"
            for name, value in (("stride", stride[0]), ("padding", padding[0]), ("dilation", dilation[0]), ("groups", groups))
            if value > 1
        )
        times = _least_ms([partial(there_and_back, f, *arguments) for f in (F.conv2d, conv2d)], repeats)
        rows.append(Cost(shape, ", ".join(presets), *times))
    return rows


def network_costs(precision: str, repeats: int, batch_size: int = BATCH_SIZE) -> list[Cost]:
    """The same of the whole networks, forward and backward, each distinct one once."""
    import torch

    from lab.convolution.conv2d import ByHandNet
    from model import Net

    by_network: dict[str, list[str]] = {}
    for name, preset in PRESETS.items():
        by_network.setdefault(str(preset.net), []).append(name)
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def step(network: nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(images)
        logits.float().logsumexp(1).sum().backward()
        network.zero_grad()

    rows = []
    for presets in by_network.values():
        networks = [kind(3, 10, **PRESETS[presets[0]].net).to(memory_format=torch.channels_last) for kind in (Net, ByHandNet)]
        times = _least_ms([partial(step, network) for network in networks], repeats)
        rows.append(Cost("the whole network", ", ".join(presets), *times))
    return rows


def table(costs: dict[str, list[Cost]]) -> str:
    """A Markdown table of the same shapes' costs, by the name of the precision."""
    lines = [
        "| forward and backward | presets |" + "".join(f" {name}: torch | own | own / torch |" for name in costs),
        "|---|---|" + "--:|--:|--:|" * len(costs),
    ]
    for same in zip(*costs.values(), strict=True):
        cells = "".join(f" {cost.torch_ms:.2f} ms | {cost.own_ms:.2f} ms | {cost.ratio:.1f} |" for cost in same)
        lines.append(f"| {same[0].shape} | {same[0].presets} |{cells}")
    return "\n".join(lines)


def in_words(costs: dict[str, list[Cost]]) -> str:
    """Where the sprint's own network stands, and the worst case."""
    sentences = []
    for name, rows in costs.items():
        sprint = [row for row in rows if "sprint" in row.presets.split(", ")]
        *layers, whole = sprint
        worst, worst_of_all = max(layers, key=lambda row: row.ratio), max(rows, key=lambda row: row.ratio)
        sentences.append(
            f"In {name} the convolutions of the sprint's network take {span([row.ratio for row in layers], '.1f')} "
            f"times as long as torch's (the worst: {worst.shape}), the whole network {whole.ratio:.1f} times; over all presets the "
            f"worst is {worst_of_all.ratio:.1f} ({worst_of_all.shape})."
        )
    return " ".join(sentences)
