"""The networks that `fit` may try: a space of arguments of `model.Net`, each brought within the limits of an assignment."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from config import InputError
from learning.presets import PRESETS
from limits.assignments import Assignment
from limits.constraints import Constraint, check
from limits.patterns import parse_layers
from model import BLOCKS, GROUP, Net

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

KINDS = ("dense", "dense_dilated", "pointwise", "separable", "separable_dilated")
STEMS = {"4/2": (4, 2, 0), "2/1": (2, 1, 0), "3/1": (3, 1, 1), "4/4": (4, 4, 0)}
"""Name -> kernel, stride and padding."""
WIDTHS = (8, 320)
MAX_LAYERS = 3
"""Layers of a block where the assignment leaves their number open."""
LAST_MAP = (3, 16)
"""Pixels, the least and the most, on a side of the maps that global pooling averages."""
KNOWN = ("baseline", "fast85", "fast90", "slim")
"""The presets whose networks, brought within the limits, are the first to be tried; `train` starts from the first one, too."""
ALWAYS, NEVER = ("gap", "linear"), ("average_pool", "dropout")
"""Kinds of operation that each network of model.Net has, and that none has."""
SEPARATED = {"dense": "separable", "dense_dilated": "separable_dilated", "pointwise": "separable"}
DILATED = {"dense": "dense_dilated", "separable": "separable_dilated"}
LARGER = {"pointwise": "separable", **DILATED}
SIZES = ("parameters", "mult-adds", "size in", "latency")
"""How the names of the constraints begin that narrower blocks satisfy."""

Layers = list[list[str]]
"""The kinds of the layers of each block."""


@dataclass
class Candidate:
    """A network, and what it fails of the limits."""

    net: dict[str, Any]
    """Arguments of model.Net besides the channel and class counts."""
    failed: list[Constraint] = field(default_factory=list)

    @property
    def reasons(self) -> str:
        return "; ".join(f"{one.name}: {one.value}, demanded {one.limit}" for one in self.failed)


class Space:
    """The networks for images of `image_size` (height, width) that the demands of `rules` leave to choose from.

    `suggest` asks an Optuna trial for numbers and names, always the same ones; `repaired` brings what they describe within the
    limits. Raises InputError where `rules` demand a network that `model.Net` cannot be.
    """

    def __init__(self, rules: Assignment, num_channels: int, num_classes: int, image_size: tuple[int, int]) -> None:
        self.rules, self.image_size = rules, image_size
        self.data = num_channels, num_classes
        forbidden = set(rules.forbid)
        _demand_possible(rules)
        self.kinds = tuple(
            kind
            for kind in KINDS
            if not (kind == "pointwise" and "pointwise" in forbidden)
            and not (kind.startswith("separable") and forbidden & {"separable", "grouped"})
            and not (kind.endswith("dilated") and "dilated" in forbidden)
        )
        self.stems = [name for name in STEMS if name != "4/4" or min(image_size) >= 64]
        if "strided" in forbidden:
            self.stems = [name for name in self.stems if STEMS[name][1] == 1]
        downs = {"none": "", "pool": "max_pool", "stride": "strided"}
        self.downs = [down for down, kind in downs.items() if kind not in forbidden]
        self.norms = _norms(rules)
        self.layouts = _layouts(rules)

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """The arguments of model.Net that `trial` describes, before they are brought within the limits."""
        kernel, stride, padding = STEMS[str(trial.suggest_categorical("stem", self.stems))]
        widths = [trial.suggest_int(f"width{i}", *WIDTHS, log=True) for i in range(1, 5)]
        downs: Any = [trial.suggest_categorical(f"down{i}", self.downs) for i in range(1, 5)]
        kinds: Any = [[trial.suggest_categorical(f"kind{i}{j}", self.kinds) for j in range(self._longest)] for i in range(1, 5)]
        norm: Any = trial.suggest_categorical("norm", self.norms)
        if self.layouts:
            layout = self.layouts[trial.suggest_int("layout", 0, len(self.layouts) - 1)]
            kinds = [[self._fitting(*pair) for pair in zip(*block, strict=False)] for block in zip(kinds, layout, strict=True)]
            downs = ["pool" if block.startswith(("CP", "cP")) else "none" for block in _with_pools(self.rules.layers, layout)]
        else:
            counts = [trial.suggest_int(f"layers{i}", *self._counts) for i in range(1, 5)]
            kinds = [block[:count] for block, count in zip(kinds, counts, strict=True)]
        return self._net(widths, downs, kinds, (kernel, stride, padding), norm)

    def parameters_of(self, net: dict[str, Any]) -> dict[str, Any] | None:
        """What a trial must suggest for the network of a preset, or one near it; None where the space has none like it."""
        net = {name: parameter.default for name, parameter in inspect.signature(Net).parameters.items()} | net
        stem = f"{net['stem_kernel']}/{net['stem_stride']}"
        found: dict[str, Any] = {"stem": stem if stem in self.stems else self.stems[0]}
        strides = (1, *net["strides"])
        for i in range(4):
            kinds = net["kinds"][i]
            if {*kinds} - {*KINDS, "whitening"}:
                return None
            found[f"width{i + 1}"] = min(max(net["widths"][i], WIDTHS[0]), WIDTHS[1])
            down = "pool" if net["pools"][i] > 1 else "stride" if strides[i] > 1 else "none"
            found[f"down{i + 1}"] = down if down in self.downs else self.downs[-1]
            for j in range(self._longest):
                kind = kinds[j] if j < len(kinds) and kinds[j] != "whitening" else self.kinds[-1]
                found[f"kind{i + 1}{j}"] = kind if kind in self.kinds else "dense"
            if not self.layouts:
                found[f"layers{i + 1}"] = min(max(len(kinds), self._counts[0]), self._counts[1])
        found["norm"] = net["norm"] if net["norm"] in self.norms else self.norms[0]
        if self.layouts:
            sizes = [len(kinds) for kinds in net["kinds"]]
            found["layout"] = next((i for i, layout in enumerate(self.layouts) if list(map(len, layout)) == sizes), 0)
        return found

    def known(self) -> list[dict[str, Any]]:
        """What a trial must suggest for the networks to begin with: those of KNOWN, and of the assignment's own preset."""
        first, *others = KNOWN
        names = dict.fromkeys([first, *([self.rules.preset] if self.rules.preset in PRESETS else []), *others])
        found = [self.parameters_of(PRESETS[name].net) for name in names]
        return [parameters for i, parameters in enumerate(found) if parameters and parameters not in found[:i]]

    def repaired(self, net: dict[str, Any]) -> Candidate:
        """`net` with the kinds that are required, a receptive field that is large enough, and blocks narrow enough for the limits.

        The candidate says what it fails all the same.
        """
        kinds: Layers = [list(block) for block in net["kinds"]]
        self._require(net, kinds)
        self._widen_field(net, kinds)
        net = {**net, "kinds": tuple(map(tuple, kinds))}
        net = self._narrowed(net)
        failed = self.failed(net)
        for _ in range(12):
            if not failed or not all(one.name.startswith(SIZES) for one in failed):
                break
            narrower = _scaled(net["widths"], 0.8)
            if narrower == net["widths"]:
                break
            net = {**net, "widths": narrower}
            failed = self.failed(net)
        return Candidate(net, failed)

    def failed(self, net: dict[str, Any]) -> list[Constraint]:
        """The demands on the network, without the bonus, that it fails or that cannot be known of it."""
        found = check(Net(*self.data, **net), self.image_size, self.data[0], assignment=self.rules)
        return [one for one in found if not one.passed and not one.is_bonus]

    @property
    def _counts(self) -> tuple[int, int]:
        exactly = self.rules.layers_per_block
        return (exactly, exactly) if exactly else (1, MAX_LAYERS)

    @property
    def _longest(self) -> int:
        return max(len(block) for layout in self.layouts for block in layout) if self.layouts else self._counts[1]

    def _fitting(self, kind: str, symbol: str) -> str:
        """`kind`, or one that is what `symbol` of the demanded layers says."""
        if symbol == "c":
            return "pointwise"
        return self._one_of("separable", "dense") if kind == "pointwise" else kind

    def _one_of(self, *wanted: str) -> str:
        return next(kind for kind in wanted if kind in self.kinds)

    def _net(self, widths: list[int], downs: list[str], kinds: Layers, stem: tuple[int, int, int], norm: str) -> dict[str, Any]:
        kernel, stride, padding = stem
        downs = ["pool" if downs[0] == "pool" else "none", *downs[1:]]
        side = (min(self.image_size) + 2 * padding - kernel) // stride + 1
        for i, down in enumerate(downs):  # no map gets too small
            if down != "none" and side // 2 < LAST_MAP[0] and not self.layouts:
                downs[i] = "none"
            side = side // 2 if downs[i] != "none" else side
        for i in (1, 2, 3):  # nor stays too large
            if downs[i] == "none" and side > LAST_MAP[1] and len(self.downs) > 1 and not self.layouts:
                downs[i], side = self.downs[-1], side // 2
        kinds = [["whitening", *kinds[0][1:]], *kinds[1:]]
        for i in (1, 2, 3):
            if downs[i] == "stride":  # the other kinds have none
                kinds[i][0] = "dense" if kinds[i][0].startswith("dense") else self._one_of("separable", "dense")
        return {
            "widths": _scaled(widths, 1),
            "pools": tuple(2 if down == "pool" else 1 for down in downs),
            "strides": tuple(2 if down == "stride" else 1 for down in downs[1:]),
            "kinds": tuple(map(tuple, kinds)),
            "stem_kernel": kernel,
            "stem_stride": stride,
            "stem_padding": padding,
            "norm": norm,
            "norm_momentum": 0.1,
            "logit_scale": 1.0,
        }

    def _changeable(self, kinds: Layers) -> list[tuple[int, int]]:
        """Block and layer of what may become another kind, the deepest first: not the stem, nor a demanded 1x1 convolution."""
        return [
            (i, j)
            for i in (3, 2, 1, 0)
            for j in range(len(kinds[i]))
            if kinds[i][j] != "whitening" and not (self.layouts and kinds[i][j] == "pointwise")
        ]

    def _exchange(self, net: dict[str, Any], kinds: Layers, other: dict[str, str], wanted: tuple[str, ...], least: int) -> None:
        """Exchange layers by `other`, the deepest first, until `least` of them are `wanted`."""
        for i, j in self._changeable(kinds):
            if _count(kinds, wanted) < least:
                self._change(net, kinds, i, j, other)

    def _change(self, net: dict[str, Any], kinds: Layers, i: int, j: int, other: dict[str, str]) -> None:
        new = other.get(kinds[i][j], "")
        has_stride = i > 0 and j == 0 and net["strides"][i - 1] > 1
        if new in self.kinds and not (has_stride and new.endswith("dilated")):
            kinds[i][j] = new

    def _require(self, net: dict[str, Any], kinds: Layers) -> None:
        """Exchange layers until the required kinds are there; dilation comes last: it keeps what is separable so."""
        separable, dilated = ("separable", "separable_dilated"), ("dense_dilated", "separable_dilated")
        ways: dict[str, list[tuple[tuple[str, ...], dict[str, str]]]] = {
            "separable": [(separable, SEPARATED)],
            "grouped": [(separable, SEPARATED)],
            "pointwise": [(("pointwise",), dict.fromkeys(KINDS, "pointwise"))],
            "dilated": [(dilated, DILATED), (dilated, {"pointwise": self.kinds[-1]})],
        }
        required = Counter(kinds[0] for kinds in self.rules.require)
        for kind, exchanges in ways.items():
            for wanted, other in exchanges:
                self._exchange(net, kinds, other, wanted, required[kind])
        for kind in ("max_pool", "strided"):
            if required[kind] and not self.layouts:
                _shrink(net, kinds, kind, required[kind])

    def _widen_field(self, net: dict[str, Any], kinds: Layers) -> None:
        least = self.rules.min_receptive_field
        for i, j in [*self._changeable(kinds)] * 2:  # a 1x1 convolution first becomes 3x3, then dilated
            if least is not None and receptive_field(net, kinds) <= least:
                self._change(net, kinds, i, j, LARGER)

    def _narrowed(self, net: dict[str, Any]) -> dict[str, Any]:
        """`net` with the widest blocks, in the same proportions, that have fewer parameters than is allowed."""
        limit = self.rules.max_parameters
        if limit is None or self.parameters(net) < limit:
            return net
        low, high = 0.0, 1.0
        for _ in range(9):
            scale = (low + high) / 2
            is_small = self.parameters({**net, "widths": _scaled(net["widths"], scale)}) < limit
            low, high = (scale, high) if is_small else (low, scale)
        return {**net, "widths": _scaled(net["widths"], low)}

    def parameters(self, net: dict[str, Any]) -> int:
        """Trainable parameters of the network."""
        import torch

        with torch.device("meta"):  # no memory, no random numbers
            model = Net(*self.data, **net)
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _demand_possible(rules: Assignment) -> None:
    """Raise InputError where `rules` forbid what each network of model.Net has, or require what none has."""
    if always := [kind for kind in ALWAYS if kind in rules.forbid]:
        raise InputError(f"each network of fit has {always[0]}, which the assignment {rules.name} forbids")
    if never := [kinds for kinds in rules.require if set(kinds) <= {*NEVER}]:
        raise InputError(f"no network of fit has {' or '.join(never[0])}, which the assignment {rules.name} requires")
    if rules.blocks and rules.blocks != BLOCKS:
        have, demanded = " ".join(BLOCKS), " ".join(rules.blocks)
        raise InputError(f"the networks of fit have the blocks {have}, but the assignment {rules.name} demands {demanded}")


def receptive_field(net: dict[str, Any], kinds: Layers) -> int:
    """Pixels that one unit of the last feature map sees, by arithmetic; what counts is what `limits` computes in the end."""
    seen, step = net["stem_kernel"], net["stem_stride"]
    for i, block in enumerate(kinds):
        for j, kind in enumerate(block):
            if kind not in ("whitening", "pointwise"):
                seen += 2 * step * (2 if kind.endswith("dilated") else 1)
            if j == 0:
                step *= net["strides"][i - 1] if i else 1
                if net["pools"][i] > 1:
                    seen, step = seen + step, 2 * step
    return seen


def _scaled(widths: Any, scale: float) -> tuple[int, ...]:
    """Widths that GroupNorm can divide, at least the smallest there is."""
    return tuple(max(WIDTHS[0], GROUP * round(width * scale / GROUP)) for width in widths)


def _count(kinds: Layers, wanted: tuple[str, ...]) -> int:
    return sum(kind in wanted for block in kinds for kind in block)


def _shrink(net: dict[str, Any], kinds: Layers, kind: str, least: int) -> None:
    """Give blocks max-pooling or strides, the first ones first, until there are `least`."""
    pools, strides = list(net["pools"]), list(net["strides"])
    for i in (1, 2, 3):
        if kind == "max_pool" and sum(pool > 1 for pool in pools) < least:
            pools[i], strides[i - 1] = 2, 1
        there = sum(stride > 1 for stride in strides) + (net["stem_stride"] > 1)
        if kind == "strided" and there < least and kinds[i][0] in ("dense", "separable"):
            pools[i], strides[i - 1] = 1, 2
    net["pools"], net["strides"] = tuple(pools), tuple(strides)


def _norms(rules: Assignment) -> list[str]:
    """The normalisations that `rules` allow, the usual one first. Raises InputError where they allow none."""
    names = {"batch": "batch_norm", "group": "group_norm", "layer": "layer_norm"}
    wanted = [set(kinds) for kinds in rules.require if set(kinds) <= {*names.values(), "instance_norm"}]
    found = [norm for norm, kind in names.items() if kind not in rules.forbid and all(kind in kinds for kinds in wanted)]
    if not found:
        raise InputError(f"fit has no normalisation that the assignment {rules.name} allows: batch_norm, group_norm or layer_norm")
    return found


def _layouts(rules: Assignment) -> list[tuple[str, ...]]:
    """The ways to share the demanded layers out among four blocks, each as their symbols; none where none are demanded.

    Max-pooling stands behind the first layer of a block. Raises InputError where the layers are none that model.Net can have.
    """
    symbols = parse_layers(rules.layers)
    if not symbols:
        return []
    refused = InputError(
        f"fit cannot build the layers of the assignment {rules.name}: they begin with C, end with GAP c and have up to four P, "
        "each after a convolution"
    )
    if symbols[-2:] != ["GAP", "c"] or symbols[0] != "C" or "PP" in "".join(symbols):
        raise refused
    layers = "".join(symbols[:-2]).replace("P", "")
    count, pooled, position = len(layers), set(), -1
    for symbol in symbols[:-2]:
        position += symbol != "P"
        if symbol == "P" and position:
            pooled.add(position)
    found = [
        tuple(layers[start:end] for start, end in zip((0, *starts), (*starts, count), strict=True))
        for starts in itertools.combinations(range(1, count), 3)
        if pooled <= {*starts}
    ]
    if not found:
        raise refused
    return found


def _with_pools(text: str, layout: tuple[str, ...]) -> list[str]:
    """The symbols of each block of `layout`, with max-pooling."""
    rest, found = "".join(parse_layers(text)[:-2]), []
    for block in layout:
        taken, count = "", 0
        while count < len(block) or rest.startswith("P"):
            count += rest[0] != "P"
            taken, rest = taken + rest[0], rest[1:]
        found.append(taken)
    return found
