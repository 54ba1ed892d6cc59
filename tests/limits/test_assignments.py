"""Assignments as files: what they say, what is wrong with a file, and each limit on a network that meets and one that misses it."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import Good, changed, dense
from torch import Tensor, nn

from config import InputError
from conftest import ROOT
from learning.presets import PRESETS
from limits import assignments
from limits.assignments import Assignment, Course, load, parse
from limits.constraints import Constraint, check, exit_status, format_table
from limits.costs import mult_adds, size_kb
from limits.tracing import trace_model
from model import Net
from utils import count_mult_adds

pytestmark = pytest.mark.usefixtures("one_thread")


def rules(**lines: object) -> Assignment:
    return parse(lines, "mine.toml")


def only(network: nn.Module, **lines: object) -> Constraint:
    """The one constraint that `lines` demand."""
    (constraint,) = check(network, assignment=rules(**lines))
    return constraint


def test_the_assignments_that_ship() -> None:
    assert assignments.names() == ["c1c2c3c4o", "c1c2c3c4o-strict", "cifar-50k", "mnist-20k", "mnist-8k", "onecycle-90", "speed-55"]
    limits = {name: (load(name).max_parameters, load(name).target_accuracy, load(name).max_epochs) for name in assignments.names()}
    assert limits == {
        "c1c2c3c4o": (200_000, 0.85, None),
        "c1c2c3c4o-strict": (200_000, 0.85, None),
        "cifar-50k": (50_000, 0.70, 20),
        "mnist-20k": (20_000, 0.9939, 20),
        "mnist-8k": (8_000, 0.9939, 15),
        "onecycle-90": (None, 0.90, 24),
        "speed-55": (200_000, 0.55, None),
    }
    assert assignments.default() == load("c1c2c3c4o")
    strict = load("c1c2c3c4o-strict")
    assert strict.forbid == ("max_pool",)
    assert strict.augmentation.model_dump() == {"flip": True, "shift_scale_rotate": True, "hole": 16}
    assert (strict.bonus.max_parameters, strict.bonus.min_receptive_field) == (100_000, 52)
    assert (load("mnist-8k").last_epochs, load("speed-55").seconds) == (3, 360)
    assert (load("onecycle-90").peak_epoch, load("onecycle-90").batch_size) == (5, 512)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        *((load(name).preset, name) for name in assignments.names()),
        ("cifar-50k-group", "cifar-50k"),
        ("cifar-50k-layer", "cifar-50k"),
    ],
)
def test_a_preset_that_ships_satisfies_each(preset: str, name: str) -> None:
    assignment = load(name)
    network = Net(assignment.channels, assignment.classes, **PRESETS[preset].net)
    constraints = check(network, assignment.size, assignment.channels, assignment=assignment)
    assert [one for one in constraints if not one.passed and not one.is_bonus] == []
    assert len([one for one in constraints if not one.is_bonus]) == assignment.num_constraints
    config = PRESETS[preset].train
    assert config.epochs <= (assignment.max_epochs or 1000)
    assert config.batch_size == (assignment.batch_size or config.batch_size)
    assert config.epochs * config.pct_start == pytest.approx(assignment.peak_epoch or config.epochs * config.pct_start)
    wanted = assignment.augmentation
    assert not wanted.hole or config.hole == wanted.hole
    assert not wanted.flip or {"flip", "shift_scale_rotate", "dropout"} == {*config.augmentations}


# Files that are wrong


EVENING = datetime.datetime(2026, 12, 1, 18, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({"max_parametrs": 1}, ["unknown line max_parametrs", "did you mean max_parameters?"]),
        ({"tint": "red"}, ["unknown line tint", "choose from", "max_mult_adds"]),
        ({"bonus": {"min_receptive_feld": 3}}, ["unknown line bonus.min_receptive_feld", "did you mean min_receptive_field?"]),
        ({"bonus": {"target_accuracy": 0.9}}, ["unknown line bonus.target_accuracy"]),
        ({"max_size_kb": {"int4": 1}}, ["unknown line max_size_kb.int4", "did you mean int8?"]),
        ({"augmentation": {"flips": True}}, ["unknown line augmentation.flips", "did you mean flip?"]),
        ({"require": ["separables"]}, ["unknown kind 'separables'", "did you mean separable?"]),
        ({"require": [["gap", "gap"]]}, ["require names gap twice in one list of alternatives"]),
        ({"forbid": ["max_pol"]}, ["unknown kind 'max_pol'", "did you mean max_pool?"]),
        ({"require": ["GAPS"]}, ["unknown kind 'GAPS'", "did you mean gap?"]),
        ({"max_size_kb": {}}, ["max_size_kb", "name float32, int8 or both"]),
        ({"max_parameters": 0}, ["max_parameters is 0", "greater than 0"]),
        ({"max_parameters": "200_000"}, ["max_parameters is '200_000'"]),
        ({"max_parameters": True}, ["max_parameters is True"]),
        ({"max_latency_ms": float("nan")}, ["max_latency_ms is nan"]),
        ({"target_accuracy": 85}, ["target_accuracy is 85", "less than 1"]),
        ({"require": "gap"}, ["require is 'gap'", "list"]),
        ({"require": [[]]}, ["require has an empty list"]),
        ({"bonus": 3}, ["bonus is 3", "table"]),
        ({"layers": "C1 X2"}, ["'X2' is none of C, c, P, GAP"]),
        ({"layers": "C1 GAP GAP"}, ["GAP stands there twice"]),
        ({"blocks": ["C1"]}, ["two or more different names"]),
        ({"blocks": ["A", "B", "A"]}, ["two or more different names"]),
        # contradictions
        ({"require": ["gap"], "forbid": ["gap"]}, ["contradict each other", "gap"]),
        ({"require": [["batch_norm", "group_norm"]], "forbid": ["group_norm", "batch_norm"]}, ["contradict each other"]),
        ({"layers": "C1 P1 C2", "forbid": ["max_pool"]}, ["layers and forbid contradict each other"]),
        ({"layers": "C1 C2", "require": ["max_pool"]}, ["layers and require contradict each other"]),
        ({"last_epochs": 3}, ["target_accuracy is missing"]),
        ({"last_epochs": 16, "max_epochs": 15, "target_accuracy": 0.5}, ["last_epochs is 16, but max_epochs is 15"]),
        ({"peak_epoch": 30, "max_epochs": 24}, ["peak_epoch is 30", "max_epochs is 24"]),
        ({"layers_per_block": 3}, ["blocks is missing"]),
        ({"blocks": ["A", "B", "O"], "layers_per_block": 2, "layers": "C1 C2 c3 GAP c4"}, ["layers has 3", "demand 4"]),
        ({"max_parameters": 100, "bonus": {"max_parameters": 100}}, ["bonus.max_parameters is 100", "anyway"]),
        ({"min_receptive_field": 44, "bonus": {"min_receptive_field": 40}}, ["bonus.min_receptive_field is 40", "anyway"]),
        ({"require": ["dilated"], "bonus": {"require": ["dilated"]}}, ["bonus.require names dilated", "anyway"]),
        ({"forbid": ["dilated"], "bonus": {"require": ["dilated"]}}, ["bonus.require names dilated", "forbid"]),
        ({"require": ["dropout"], "bonus": {"forbid": ["dropout"]}}, ["bonus.forbid names dropout", "require"]),
        ({"require": ["separable"], "forbid": ["grouped"]}, ["require and forbid contradict each other", "grouped"]),
        ({"layers": "C1 P1 GAP c2", "require": ["max_pool", "max_pool"]}, ["layers has only 1 P, which is max_pool"]),
        ({"layers": "C1 GAP c2", "bonus": {"forbid": ["gap"]}}, ["with the bonus, layers and forbid contradict"]),
        ({"layers": "C1 GAP c2", "bonus": {"require": ["max_pool"]}}, ["with the bonus, layers and require contradict"]),
        ({"forbid": ["max_pool"], "bonus": {"layers": "C1 P1 GAP c2"}}, ["with the bonus, layers and forbid contradict"]),
        ({"layers": "C1 GAP c2", "bonus": {"layers": "C1 GAP c2"}}, ["bonus.layers and layers"]),
        ({"forbid": ["dropout"], "bonus": {"forbid": ["dropout"]}}, ["bonus.forbid names dropout", "anyway"]),
        ({"classes": 10**8}, ["classes is 100000000", "100000"]),
        ({"channels": 10**9}, ["channels is 1000000000", "1000"]),
        ({"augmentation": {"hole": 40}}, ["augmentation.hole is 40", "image_size is 32"]),
        # the course
        ({"course": {"dedline": EVENING}}, ["unknown line course.dedline", "did you mean deadline?"]),
        ({"course": {"deadline": EVENING.replace(tzinfo=None)}}, ["course.deadline", "offset from UTC"]),
        ({"course": {"deadline": EVENING.date()}}, ["course.deadline", "offset from UTC"]),
        ({"course": {"deadline": "2026-12-01T18:00:00+01:00"}}, ["course.deadline", "without quotes"]),
        ({"course": {"deadline": EVENING.replace(year=26)}}, ["course.deadline"]),
        ({"course": {"visibility": "soon"}}, ["course.visibility is 'soon'", "'after_due_date'"]),
        ({"course": {"repeats": 0}}, ["course.repeats is 0"]),
        ({"course": {"late_penalty": 101, "late_days": 1, "deadline": EVENING}}, ["course.late_penalty is 101"]),
        ({"course": {"late_days": 2}}, ["late_days", "deadline is missing"]),
        ({"course": {"late_penalty": 10, "deadline": EVENING}}, ["late_penalty", "late_days is 0"]),
        ({"course": {"points": 0, "constraint_points": 0}}, ["points and constraint_points are both 0"]),
        ({"target_accuracy": 0.5, "course": {}}, ["course.constraint_points is 30", "nothing is demanded of the network"]),
    ],
)
def test_what_is_wrong_is_named_in_one_line(lines: dict, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        rules(**lines)
    text = str(error.value)
    assert text.startswith("mine.toml: ")
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"max_parameters = ", "not valid TOML"),
        (b"max_parameters = 1\nmax_parameters = 2\n", r"a line or table is given twice \(at line 2,"),
        (b"[bonus]\nforbid = []\n[bonus]\n", r"a line or table is given twice \(at line 3,"),
        (rb'"a\u001b[2J" = 1', r"unknown line 'a\\x1b\[2J': choose from"),
        (b"about = '\xff'", "not valid TOML"),
        (b"a=" + b"[" * 50_000, "not valid TOML"),
        (b"#" * 200_000, "more than 100,000 bytes"),
        (b"name = 'x'", "unknown line name"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "mine.toml").write_bytes(text)
    with pytest.raises(InputError, match=words):
        load(str(tmp_path / "mine.toml"))


def test_the_course_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        "max_parameters = 5\n[course]\ndeadline = 2026-12-01T18:00:00+01:00\nlate_days = 2\nlate_penalty = 12.5\npoints = 60\n"
    )
    course = load(str(tmp_path / "mine.toml")).course
    assert course == Course(deadline=EVENING, late_days=2, late_penalty=12.5, points=60)
    assert (course.constraint_points, course.visibility, course.repeats, course.top) == (30, "visible", 3, 10)
    assert load("c1c2c3c4o").course is None


@pytest.mark.parametrize("page", ["limits.md", "grading.md"])
def test_the_examples_of_the_pages_are_taken(tmp_path: Path, page: str) -> None:
    examples = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert len(examples) == 1
    (tmp_path / "mine.toml").write_text(examples[0])
    assert load(str(tmp_path / "mine.toml")).num_constraints > 1


@pytest.mark.parametrize("name", ["a\nb", "x" * 400, "x" * 5000, "folder/" + "x" * 400 + ".toml", "\x1b[2J.toml"])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(InputError, match="is no name of an assignment or of a file") as refused:
        load(name)
    assert str(refused.value).isprintable()


def test_names_and_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown assignment 'mnist-9k' \(did you mean mnist-8k\?\): choose from c1c2c3c4o, "):
        load("mnist-9k")
    with pytest.raises(InputError, match="cannot read .*No such file"):
        load(str(tmp_path / "missing.toml"))
    with pytest.raises(InputError, match="not a regular file"):
        load(str(tmp_path))
    (tmp_path / "mine.toml").write_text("max_parameters = 5", encoding="utf-8-sig")  # as Windows' Notepad begins a file
    assert load(str(tmp_path / "mine.toml")) == Assignment(name="mine", max_parameters=5)


# Each limit


@pytest.mark.parametrize("preset", ["sprint", "slim", "cifar-50k-group", "cifar100"])
def test_mult_adds_are_those_of_torchinfo_but_for_normalisation(preset: str) -> None:
    network = Net(3, 10, **PRESETS[preset].net)
    assert mult_adds(trace_model(network, (32, 32), 3))[0] == pytest.approx(count_mult_adds(network, 3, (32, 32)), rel=2e-3)


class Products(nn.Module):
    def __init__(self, product) -> None:
        super().__init__()
        self.conv, self.product, self.weight = nn.Conv2d(3, 8, 1), product, nn.Parameter(torch.randn(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self.conv(x).mean((2, 3)), self.weight)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: x @ w,
        lambda x, w: (w.T @ x.T).T,
        lambda x, w: F.linear(x, w.T),
        lambda x, w: torch.addmm(torch.zeros(10), x, w),
        lambda x, w: torch.bmm(x[None], w[None])[0],
        lambda x, w: torch.mm(x, mat2=w),
    ],
)
def test_every_matrix_product_counts(product) -> None:
    count = 32 * 32 * 8 * 3 + 8 * 10
    assert only(Products(product), max_mult_adds=count + 1) == Constraint("mult-adds", f"{count:,}", f"< {count + 1:,}", True)
    assert only(Products(product), max_mult_adds=count).passed is False


def test_mult_adds_that_cannot_be_counted_are_unknown() -> None:
    network = Products(lambda x, w: torch.einsum("ni,io->no", x, w))
    assert only(network, max_mult_adds=10**9).passed is None
    assert "einsum in forward cannot be counted" in only(network, max_mult_adds=10**9).value
    assert only(network, max_mult_adds=100).passed is False  # what is counted is too much already


def test_size() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    weights, rest = 8 * 27 + 80, 8 + 4 * 8 + 10  # BatchNorm has two parameters and two statistics a channel
    assert size_kb(network) == (weights + rest) * 4 / 1000
    assert size_kb(network, int8=True) == (weights + 4 * (8 + 10) + 4 * rest) / 1000
    assert only(network, max_size_kb=1.4).passed is True
    assert only(network, max_size_kb={"float32": 1.3}).passed is False
    assert only(network, max_size_kb={"int8": 0.5}).value == f"{(weights + 4 * 18 + 4 * rest) / 1000:.1f} kB"


def test_latency_is_measured_and_the_machine_said() -> None:
    network = Good().train()
    fast = only(network, max_latency_ms=10_000)
    assert fast.passed is True
    assert float(fast.value.split(" ms")[0]) > 0
    assert "core" in fast.value
    assert only(network, max_latency_ms=1e-6).passed is False
    assert network.training


LAYERS = "C1 C2 C3 P1 C4 C5 C6 P2 C7 C8 C9 P3 C10 C11 C12 GAP c13"


def test_layers_in_their_order() -> None:
    assert only(Good(), layers=LAYERS) == Constraint("layers", LAYERS, LAYERS, True)
    assert only(Good(), layers=LAYERS.replace(" ", "")).passed is True
    assert only(Good(), layers=LAYERS.replace("P2", "")).passed is False
    wider = changed(C2=nn.Sequential(dense(8, 8), nn.Conv2d(8, 8, 1), dense(8, 8), nn.MaxPool2d(2)))
    assert only(wider, layers=LAYERS).value == LAYERS.replace("C5", "c5")
    pooled = changed(O=nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 10)))
    assert only(pooled, layers=LAYERS).passed is False


class Normalised(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), *layers)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.BatchNorm2d(8), "batch_norm"),
        (nn.GroupNorm(2, 8), "group_norm"),
        (nn.GroupNorm(1, 8), "layer_norm"),
        (nn.LayerNorm([8, 15, 15]), "layer_norm"),
        (nn.InstanceNorm2d(8), "instance_norm"),
        (nn.Dropout2d(0.1), "dropout"),
        (nn.MaxPool2d(2), "max_pool"),
        (nn.AvgPool2d(2), "average_pool"),
        (nn.Conv2d(8, 8, 3, dilation=2), "dilated"),
        (nn.Conv2d(8, 8, 3, groups=4), "grouped"),
        (nn.Conv2d(8, 8, 1), "pointwise"),
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)), "separable"),
    ],
    ids=str,
)
def test_kinds(layer: nn.Module, kind: str) -> None:
    assert only(Normalised(layer), require=[kind]).passed is True
    assert only(Normalised(layer), forbid=[kind]).passed is False
    assert only(Normalised(), require=[kind]).passed is False
    assert only(Normalised(), forbid=[kind]).passed is True
    assert only(Normalised(layer), require=[kind, kind]).passed is False
    for other in ("batch_norm", "group_norm", "layer_norm", "instance_norm", "dropout"):
        assert only(Normalised(layer), forbid=[other]).passed is (other != kind)


def test_kinds_that_every_such_network_has() -> None:
    class Residual(Normalised):
        def forward(self, x: Tensor) -> Tensor:
            x = self.body[0](x)
            return self.head((x + F.relu(x)).mean((2, 3)))

    assert only(Normalised(), require=["strided"]).passed is True
    assert only(Good(), require=["strided"]).passed is False
    assert only(Normalised(), require=["linear"]).passed is True
    assert only(Normalised(), forbid=["gap"]).passed is False
    assert only(Residual(), require=["residual"]).passed is True
    assert only(Normalised(), require=["residual"]).passed is False


def test_functions_count_as_modules_do() -> None:
    network = Normalised()
    network.forward = lambda x: network.head(F.dropout(F.group_norm(network.body(x), 1), 0.1).mean((2, 3)))
    assert only(network, require=["layer_norm"]).passed is True
    assert only(network, require=["dropout"]).passed is True


def test_one_of_several_kinds_suffices() -> None:
    either = [["batch_norm", "group_norm"]]
    assert only(Normalised(nn.GroupNorm(2, 8)), require=either).passed is True
    assert only(Normalised(nn.LayerNorm([8, 15, 15])), require=either) == Constraint(
        "BatchNorm or GroupNorm", "BatchNorm 0, GroupNorm 0", ">= 1", False
    )


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_what_cannot_be_looked_into_is_unknown() -> None:
    network = Normalised(torch.jit.script(nn.Sequential(nn.BatchNorm2d(8))))
    for lines in ({"require": ["batch_norm"]}, {"forbid": ["max_pool"]}, {"layers": "C1 GAP c2"}, {"max_mult_adds": 10**9}):
        assert only(network, **lines).passed is None
        assert "cannot be" in only(network, **lines).value
    assert only(network, forbid=["strided"]).passed is False  # there is one outside


def test_blocks_of_other_names_and_numbers() -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = dense(3, 8), nn.Sequential(dense(8, 8), dense(8, 8))
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.stem(x)))

    assert only(Stages(), blocks=["stem", "body", "head"]) == Constraint("stem body head", "1 2", "in this order", True)
    assert only(Stages(), blocks=["body", "stem", "head"]).passed is False
    assert only(Stages(), blocks=["stem", "body", "head"], layers_per_block=2).passed is False
    assert only(Stages(), blocks=["A", "O"]).value == "0, no A O"
    named = rules(blocks=["A", "B", "O"])
    (found,) = check(Stages(), blocks=["stem", "body"], assignment=named)
    assert (found.passed, found.value) == (True, "1 2 as stem body head")
    with pytest.raises(InputError, match="two different modules, or three with the output block"):
        check(Stages(), blocks=["stem"], assignment=named)
    with pytest.raises(InputError, match="demands no blocks"):
        check(Stages(), blocks=["stem"], assignment=rules(max_parameters=5))


def test_a_bonus_is_shown_and_does_not_fail() -> None:
    more = {"max_parameters": 1000, "min_receptive_field": 50, "require": ["separable", "separable"]}
    constraints = check(Good(), assignment=rules(max_parameters=200_000, bonus=more))
    assert [(one.name, one.verdict) for one in constraints] == [
        ("parameters", "pass"),
        ("bonus: parameters", "no bonus"),
        ("bonus: depthwise separable", "no bonus"),
        ("bonus: receptive field", "bonus"),
    ]
    assert exit_status(constraints) == 0
    assert format_table(constraints).splitlines()[2].endswith("no bonus")
    assert exit_status([*constraints, Constraint("x", "", "", None)]) == 3
    assert exit_status([*constraints, Constraint("x", "", "", None), Constraint("y", "", "", False)]) == 1


def test_an_assignment_may_demand_nothing_of_the_network() -> None:
    assert check(Good(), assignment=load("onecycle-90")) == []
