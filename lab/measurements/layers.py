"""Every layer of a preset's network with formula, shape, parameters, mult-adds and receptive field: the table of docs/model.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lab.common.quick import demand_whole
from learning.presets import get_preset
from results.documents import replace_between
from utils import ROOT

if TYPE_CHECKING:
    from torch import nn

    from model import Net

PAGE = ROOT / "docs" / "model.md"
MARKERS = "<!-- layers -->", "<!-- /layers -->"


@dataclass
class Layers:
    """Print every layer of a preset's network: formula, shape, parameters, mult-adds, receptive field after it."""

    preset: str = "sprint"
    """Preset of the network."""
    quick: bool = False
    """The same table, which takes seconds: every command of the lab takes this option."""
    docs: bool = False
    """Put the table into docs/model.md."""

    def run(self) -> int:
        demand_whole(self.quick, self.docs)
        text = table(self.preset)
        print(text)
        if self.docs:
            replace_between(PAGE, MARKERS, text)
        return 0


class Row(NamedTuple):
    """A module without children, in the order of execution."""

    path: str
    what: str
    formula: str  # LaTeX; x and y are the module's input and output, r the input of the layer it ends
    shape: tuple[int, ...]  # of the output of one image
    parameters: int
    mult_adds: int
    receptive_field: float | None  # pixels on a side; None after global pooling


def rows(preset: str, image_size: tuple[int, int] = (32, 32), num_channels: int = 3, num_classes: int = 10) -> list[Row]:
    """The rows of the network of `preset`. Raises InputError where there is none of that name."""
    net = get_preset(preset).net
    from torch import nn
    from torchinfo import summary

    from limits.receptive_field import extent
    from limits.tracing import trace_model
    from model import Net

    network = Net(num_channels, num_classes, **net)
    modules = dict(network.named_modules())
    paths = {id(module): path for path, module in modules.items()}
    trace = trace_model(network, image_size, num_channels)
    ops = {op.path: op for op in trace.ops}
    result = []
    for layer in summary(network, input_size=(1, num_channels, *image_size), verbose=0).summary_list:
        module = layer.module
        if list(module.children()) or isinstance(module, (nn.Identity, nn.Flatten)):
            continue
        path = paths[id(module)]
        parent = modules[path.rpartition(".")[0]]
        shape = tuple(layer.output_size[1:])
        field = None if shape[1:] in ((), (1, 1)) else int(extent(trace, ops[path], 0))
        result.append(Row(path, *_describe(module, parent, network), shape, layer.num_params, layer.macs, field))
    return result


def _describe(module: nn.Module, parent: nn.Module, network: Net) -> tuple[str, str]:
    """What it is, and its formula."""
    from torch import nn

    from model import DilatedDepthwiseConv2d, MeanMaxPool2d, ResidualPointwiseConv2d, WhiteningConv2d

    if isinstance(module, nn.Conv2d):
        kernel = "x".join(map(str, module.kernel_size))
        notes = "".join(
            f", {name} {value[0]}" for name, value in (("stride", module.stride), ("dilation", module.dilation)) if value[0] > 1
        )
        if isinstance(module, WhiteningConv2d):
            return f"whitening {kernel}{notes}, ReLU", r"$y = \max(0, W \star x)$, $W$ fixed"
        if isinstance(module, ResidualPointwiseConv2d):
            return "residual 1x1, ReLU", rf"$y = \max(0, x + {module.scale:g} W x)$"
        if isinstance(module, DilatedDepthwiseConv2d) or module.groups == module.in_channels > 1:
            return f"depthwise {kernel}{notes}", r"$y_c = w_c \star x_c$"
        return (f"dense {kernel}{notes}", r"$y = W \star x$") if module.kernel_size != (1, 1) else ("1x1", "$y = W x$")
    if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        groups = module.num_groups if isinstance(module, nn.GroupNorm) else 0
        name = "BatchNorm" if not groups else "LayerNorm" if groups == 1 else f"GroupNorm, {groups} groups"
        words, inner = [name], r"\gamma \hat x + \beta"
        if parent.residual:
            words, inner = [*words, "sum"], inner + " + r"
        if parent.activation == "silu":
            return ", ".join([*words, "SiLU"]), rf"$y = \mathrm{{silu}}({inner})$"
        return ", ".join([*words, "ReLU"]), rf"$y = \max(0, {inner})$"
    if isinstance(module, nn.MaxPool2d):
        k = module.kernel_size
        return f"max-pooling {k}x{k}", r"$y_{p} = \max_{q \in p} x_{q}$"
    if isinstance(module, MeanMaxPool2d):
        return "global mean and maximum", r"$y = (\frac{1}{HW} \sum_{p} x_{c,p}, \max_{p} x_{c,p})$"
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return "global average pooling", r"$y_c = \frac{1}{HW} \sum_{p} x_{c,p}$"
    if isinstance(module, nn.Linear):
        scale = f"{network.logit_scale:g} " if network.logit_scale != 1 else ""
        return "linear" + (f", logits times {network.logit_scale:g}" if scale else ""), f"$z = {scale}(W x + b)$"
    raise TypeError(f"no formula is known for {type(module).__name__}")


def table(preset: str) -> str:
    """The rows as a Markdown table with a last line of totals, for 32x32 RGB images and ten classes."""
    found = rows(preset)
    lines = ["| module | layer | formula | output | parameters | mult-adds | receptive field |", "|---|---|---|---|--:|--:|--:|"]
    for row in found:
        field = "the image" if row.receptive_field is None else f"{row.receptive_field} px"
        lines.append(
            f"| `{row.path}` | {row.what} | {row.formula} | {'x'.join(map(str, row.shape))} | {row.parameters:,} | "
            f"{row.mult_adds:,} | {field} |"
        )
    lines.append(
        f"| | **all** | | | **{sum(row.parameters for row in found):,}** | **{sum(row.mult_adds for row in found):,}** | |"
    )
    return "\n".join(lines)
