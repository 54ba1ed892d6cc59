"""An assignment: what it demands of a network and of its training, read from a file of TOML.

Every limit is exclusive, as courses write them: fewer parameters than max_parameters, more pixels than min_receptive_field, an
accuracy above target_accuracy. Numbers of epochs are inclusive.
"""

from __future__ import annotations

import datetime
import difflib
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError, model_validator

from config import InputError
from limits.kinds import KINDS
from limits.patterns import parse_layers
from utils import ROOT, demand_regular_file

FOLDER = ROOT / "assignments"
DEFAULT = "c1c2c3c4o"
MAX_BYTES = 100_000  # of a file
LONGEST_NAME = 255  # of a file, in bytes, on any system
MAX_CHANNELS, MAX_CLASSES = 1_000, 100_000  # of what a network can be built for here: more is a slip

Above0 = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=100)], ...], Strict(False)]


def _known(kind: str) -> str:
    if kind not in KINDS:
        near = difflib.get_close_matches(kind.lower(), KINDS, 1, 0.5)
        raise ValueError(f"unknown kind '{kind}': " + (f"did you mean {near[0]}?" if near else f"choose from {', '.join(KINDS)}"))
    return kind


def _as_tuple(kinds: Any) -> Any:
    return (kinds,) if isinstance(kinds, str) else kinds


def _as_float32(size: Any) -> Any:
    if size == {}:
        raise ValueError("name float32, int8 or both")
    return {"float32": size} if isinstance(size, int | float) else size


def _with_offset(deadline: Any) -> Any:
    if not isinstance(deadline, datetime.datetime) or deadline.tzinfo is None or not 2000 <= deadline.year < 3000:
        raise ValueError("write date, time and offset from UTC, without quotes, as 2026-12-01T18:00:00+01:00")
    return deadline


Kind = Annotated[str, AfterValidator(_known)]
AnyOf = Annotated[tuple[Kind, ...], Strict(False), BeforeValidator(_as_tuple)]


class _Lines(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Size(_Lines):
    """Kilobytes (1,000 bytes) that the network's numbers must take less than."""

    float32: Above0 | None = None
    int8: Above0 | None = None
    """The weights of convolutions and linear layers in one byte each, with one float32 scale for each of their outputs; all the
    rest in float32."""


class Demands(_Lines):
    """What is demanded of a network; None and () demand nothing."""

    max_parameters: Count | None = None
    """Trainable parameters."""
    max_mult_adds: Count | None = None
    """Multiply-adds of convolutions and linear layers for one image."""
    max_size_kb: Annotated[Size, BeforeValidator(_as_float32)] = Size()
    max_latency_ms: Above0 | None = None
    """Milliseconds for one image on the machine that checks: the median of many, in float32."""
    min_receptive_field: Annotated[int, Field(ge=0)] | None = None
    """Pixels."""
    layers: str = ""
    """The layers in their order, as `C1 C2 c3 P1 C4 GAP c5` (see `parse_layers`)."""
    require: Annotated[tuple[AnyOf, ...], Strict(False)] = ()
    """One of KINDS each, or several of which one suffices; named twice, two are required."""
    forbid: Annotated[tuple[Kind, ...], Strict(False)] = ()

    @model_validator(mode="after")
    def _agree(self) -> Demands:
        if () in self.require:
            raise ValueError("require has an empty list, which nothing satisfies")
        if twice := [kinds[0] for kinds in self.require if len(set(kinds)) < len(kinds)]:
            raise ValueError(f"require names {twice[0]} twice in one list of alternatives")
        _demand_agreement(self.layers, self.require, self.forbid)
        return self


def _demand_agreement(layers: str, require: tuple[tuple[str, ...], ...], forbid: tuple[str, ...]) -> None:
    """Raise ValueError where no network has these layers, all the required kinds and none of the forbidden ones."""
    for kinds in require:
        if set(kinds) <= set(forbid):
            raise ValueError(f"require and forbid contradict each other: both name {kinds[0]}")
    if ("separable",) in require and "grouped" in forbid:
        raise ValueError("require and forbid contradict each other: what is separable is grouped, too")
    symbols = parse_layers(layers)
    for symbol, kind in (("P", "max_pool"), ("GAP", "gap"), ("c", "pointwise")):
        there, wanted = symbols.count(symbol), require.count((kind,))
        if there and kind in forbid:
            raise ValueError(f"layers and forbid contradict each other: {symbol} in layers is {kind}")
        if symbols and there < wanted:
            number = f"only {there}" if there else "no"
            raise ValueError(f"layers and require contradict each other: layers has {number} {symbol}, which is {kind}")


class Augmentation(_Lines):
    """What must be done to training images, by Albumentations."""

    flip: bool = False
    shift_scale_rotate: bool = False
    hole: Count | None = None
    """Coarse dropout of one square hole of so many pixels a side, filled with the mean colour."""


Visibility = Literal["visible", "after_due_date", "after_published", "hidden"]  # Gradescope's names


class Course(_Lines):
    """How a course runs an assignment; `grade`, `leaderboard`, `course serve` and `course export` go by it."""

    deadline: Annotated[datetime.datetime | None, BeforeValidator(_with_offset)] = None
    """What is submitted later does not count on the board."""
    late_days: Annotated[int, Field(ge=0, le=365)] = 0
    """Days after the deadline for which submissions are still taken and earn points."""
    late_penalty: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Percent of the points that each late day costs from its first moment."""
    repeats: Count = 3
    """Runs of each submission; the score is their median."""
    points: Annotated[float, Field(ge=0, lt=1e6)] = 70.0
    """For reaching the target accuracy within the limit."""
    constraint_points: Annotated[float, Field(ge=0, lt=1e6)] = 30.0
    """For meeting all demands on the network, each of which earns an equal part."""
    visibility: Visibility = "visible"
    """When students see scores, points and the board. The website shows after_published and hidden to teachers alone."""
    top: Annotated[int, Field(ge=0)] = 10
    """Places of the board that everybody sees; at 0, students see their own place alone."""

    @model_validator(mode="after")
    def _agree(self) -> Course:
        if self.late_days and self.deadline is None:
            raise ValueError("late_days count from the deadline, but deadline is missing")
        if self.late_penalty and not self.late_days:
            raise ValueError("late_penalty is for submissions after the deadline, but late_days is 0: none is taken")
        if not self.points + self.constraint_points:
            raise ValueError("points and constraint_points are both 0")
        return self


class Assignment(Demands):
    """An assignment. `name` is that of its file."""

    name: str = ""
    about: str = ""
    preset: str = ""
    """The preset that satisfies it, where one ships."""
    dataset: str = ""
    channels: Annotated[int, Field(gt=0, le=MAX_CHANNELS)] = 3
    image_size: Annotated[int, Field(ge=8, le=2048)] = 32
    """Pixels on a side of the images that the network is checked with."""
    classes: Annotated[int, Field(ge=2, le=MAX_CLASSES)] = 10
    blocks: Names = ()
    """The names of the blocks in their order; the last one is the output block."""
    layers_per_block: Count | None = None
    """Convolution layers in each block but the last."""
    bonus: Demands = Demands()
    """Further demands, which are shown and need not be met."""
    target_accuracy: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Test accuracy to exceed."""
    max_epochs: Above0 | None = None
    """Epochs that a training may take."""
    last_epochs: Count | None = None
    """The test accuracy must exceed the target with the weights after each of so many last epochs, too."""
    seconds: Above0 | None = None
    """Time limit of a training."""
    batch_size: Count | None = None
    peak_epoch: Above0 | None = None
    """The epoch after which OneCycle's learning rate is at its peak."""
    augmentation: Augmentation = Augmentation()
    course: Course | None = None

    @property
    def num_constraints(self) -> int:
        """How many demands on the network there are, without the bonus."""
        of_one = (
            self.max_parameters,
            self.max_mult_adds,
            self.max_size_kb.float32,
            self.max_size_kb.int8,
            self.max_latency_ms,
            self.layers,
            self.blocks,
        )
        return sum(map(bool, of_one)) + (self.min_receptive_field is not None) + len({*self.require}) + len({*self.forbid})

    @property
    def limits(self) -> dict[str, Any]:
        """What it demands, as JSON: two assignments of the same limits are equal here, whatever they are called."""
        return self.model_dump(mode="json", exclude={"name", "about", "preset", "dataset", "course"})

    @property
    def without_course(self) -> dict[str, Any]:
        """All that `parse` needs to make it anew, but for how a course runs it; as JSON."""
        return self.model_dump(mode="json", exclude={"course"}, exclude_defaults=True)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that the network is checked with."""
        return self.image_size, self.image_size

    @model_validator(mode="after")
    def _is_possible(self) -> Assignment:
        if self.last_epochs and self.target_accuracy is None:
            raise ValueError("last_epochs demands an accuracy, but target_accuracy is missing")
        if self.max_epochs:
            for name in ("last_epochs", "peak_epoch"):
                if (getattr(self, name) or 0) > self.max_epochs:
                    raise ValueError(f"{name} is {getattr(self, name)}, but max_epochs is {self.max_epochs:g}")
        if self.layers_per_block and not self.blocks:
            raise ValueError("layers_per_block says how many layers each block has, but blocks is missing")
        if self.blocks and (len(self.blocks) < 2 or len(set(self.blocks)) < len(self.blocks)):
            raise ValueError("blocks are two or more different names, the last one that of the output block")
        symbols = parse_layers(self.layers)
        if symbols and self.layers_per_block:
            before = symbols[: symbols.index("GAP")] if "GAP" in symbols else symbols
            count, demanded = sum(symbol in "Cc" for symbol in before), self.layers_per_block * (len(self.blocks) - 1)
            if count != demanded:
                raise ValueError(f"layers has {count} convolutions, but blocks and layers_per_block demand {demanded}")
        if self.augmentation.hole and self.augmentation.hole > self.image_size:
            raise ValueError(f"augmentation.hole is {self.augmentation.hole}, but image_size is {self.image_size}")
        if self.course and self.course.constraint_points and not self.num_constraints:
            points = self.course.constraint_points
            raise ValueError(f"course.constraint_points is {points:g}, but nothing is demanded of the network: set it to 0")
        self._demand_more(self.bonus)
        return self

    def _demand_more(self, bonus: Demands) -> None:
        """Raise ValueError where a bonus is no more than what is demanded anyway, or what is forbidden."""
        size, more = self.max_size_kb, bonus.max_size_kb
        for name, here, there, sign in (
            ("max_parameters", self.max_parameters, bonus.max_parameters, 1),
            ("max_mult_adds", self.max_mult_adds, bonus.max_mult_adds, 1),
            ("max_size_kb.float32", size.float32, more.float32, 1),
            ("max_size_kb.int8", size.int8, more.int8, 1),
            ("max_latency_ms", self.max_latency_ms, bonus.max_latency_ms, 1),
            ("min_receptive_field", self.min_receptive_field, bonus.min_receptive_field, -1),
        ):
            if here is not None and there is not None and sign * there >= sign * here:
                raise ValueError(f"bonus.{name} is {there:,}, but {name} demands {here:,} anyway")
        if self.layers and bonus.layers:
            raise ValueError("bonus.layers and layers are two lists of all layers: keep one of them")
        required, extra = Counter(self.require), Counter(bonus.require)
        for kinds, count in extra.items():
            if set(kinds) <= set(self.forbid):
                raise ValueError(f"bonus.require names {kinds[0]}, which forbid names too")
            if count <= required[kinds]:
                times = f" {count} times" if count > 1 else ""
                raise ValueError(f"bonus.require names {' or '.join(kinds)}{times}, but require does so anyway")
        both = set(bonus.forbid) & {kinds[0] for kinds in required if len(kinds) == 1}
        if both:
            raise ValueError(f"bonus.forbid names {min(both)}, which require names too")
        if anyway := set(bonus.forbid) & set(self.forbid):
            raise ValueError(f"bonus.forbid names {min(anyway)}, which forbid names anyway")
        try:
            _demand_agreement(self.layers or bonus.layers, (*self.require, *bonus.require), (*self.forbid, *bonus.forbid))
        except ValueError as error:
            raise ValueError(f"with the bonus, {error}") from error


def names() -> list[str]:
    """The names of the assignments that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Assignment:
    """The assignment of that name among those that ship, or of the file `name`.

    Raises InputError, in one line, where there is none, or where it is wrong.
    """
    path = Path(name)
    if not name.isprintable() or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise InputError(f"{name!r:.80} is no name of an assignment or of a file")
    if name in names():
        path = FOLDER / f"{name}.toml"
    elif path.suffix != ".toml" and len(path.parts) == 1 and not os.path.isfile(path):
        near = difflib.get_close_matches(name, names(), 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(f"unknown assignment '{name}'{meant}: choose from {', '.join(names())}, or name a file of TOML")
    return read(path)


def default() -> Assignment:
    """The assignment of a command that was given none."""
    return load(DEFAULT)


def read(path: Path) -> Assignment:
    """The assignment in a file of TOML. Raises InputError, in one line, where it is missing or wrong."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    demand_regular_file(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"{path} is no assignment: it has more than {MAX_BYTES:,} bytes")
        values = tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # of TOML or of UTF-8
        text = re.sub("Cannot overwrite a value|Cannot declare .* twice", "a line or table is given twice", str(error))
        raise InputError(f"{path} is not valid TOML: {' '.join(text.split())[:200]}") from error
    if "name" in values:
        raise InputError(f"{path}: unknown line name: an assignment has the name of its file")
    return parse({**values, "name": path.stem}, str(path))


def parse(values: dict[str, Any], where: str) -> Assignment:
    """The assignment that `values` describe. Raises InputError, which begins with `where`, in one line, where they are wrong."""
    try:
        return Assignment.model_validate(values)
    except ValidationError as error:
        problems = [_problem(values, dict(each)) for each in error.errors(include_url=False)]
    raise InputError(f"{where}: {'; '.join(dict.fromkeys(problems))}"[:1000])


TABLES: dict[str, type[_Lines]] = {"bonus": Demands, "max_size_kb": Size, "augmentation": Augmentation, "course": Course}


def _problem(values: dict[str, Any], error: dict[str, Any]) -> str:
    """One of pydantic's errors in words."""
    path = [part for part in error["loc"] if isinstance(part, str) and not part.startswith("function-")]
    line = ".".join(path)
    if error["type"] == "extra_forbidden":
        model = TABLES.get(path[-2] if len(path) > 1 else "")
        known = [name for name in (model or Assignment).model_fields if name != "name"]
        near = difflib.get_close_matches(path[-1], known, 1, 0.5)
        shown = line if line.isprintable() else repr(line)
        return f"unknown line {shown}" + (f": did you mean {near[0]}?" if near else f": choose from {', '.join(known)}")
    text = " ".join(error["msg"].removeprefix("Value error, ").split())
    text = re.sub("valid dictionary.*", "table", text.replace("valid tuple", "list"))
    if error["type"] == "value_error":
        return f"{line}: {text}" if line and line not in ("bonus", "course") else text
    return f"{line} is {error['input']!r:.60}: {text[0].lower()}{text[1:]}"
