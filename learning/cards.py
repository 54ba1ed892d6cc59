"""The schema of the card: what weights, checkpoints and records say of a network, checked before anything is made of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from config import InputError

MAX_DEPTH = 8  # of lists and objects within each other
MAX_ENTRIES = 100_000  # of one list or object: classes, most of all
MAX_TEXT = 10_000  # characters of one value: a command line, most of all
MAX_NUMBER = 1e18
MAX_IMAGE = 2**24  # numbers of one image

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(max_length=1000)]
Side = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=0)]


class Card(BaseModel):
    """The fields that the project reads; a card may have more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    dataset: str
    classes: list[Name] = Field(min_length=1)
    num_channels: int = Field(ge=1, le=1024)
    image_size: list[Side] = Field(min_length=2, max_length=2)
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    net: dict[str, Any] | None = None
    model: str | None = Field(None, pattern=r".:\w+$")
    model_sha256: str | None = None
    preset: str | None = None
    parameters: Count | None = None
    mult_adds: Count | None = None
    test_accuracy: Share | None = None
    val_accuracy: Share | None = None
    precision: str | None = Field(None, pattern="^(fp32|bf16)$")
    epochs: Annotated[float, Field(ge=0)] | None = None
    images_seen: Count | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    seed: int | None = None
    command: str | None = None
    hardware: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    teacher_sha256: list[str] | str | None = None
    data: dict[str, Count | str] | None = None
    init: str | None = None

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> Card:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.num_channels:
                raise ValueError(f"{name} has {len(values)} numbers for {self.num_channels} channels")
        if self.num_channels * math.prod(self.image_size) > MAX_IMAGE:
            raise ValueError(f"image_size: images of {self.image_size} with {self.num_channels} channels are too large")
        return self


def check_card(path: Path, card: Any) -> dict[str, Any]:
    """`card`, from the file `path`, as it is. Raises InputError, in one line, where it is none or has absurd values."""
    problem = _absurd(card)
    if not problem:
        try:
            # A card in a checkpoint has the tuples that JSON has no word for.
            Card.model_validate({key: list(value) if isinstance(value, tuple) else value for key, value in card.items()})
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            problem = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
    if problem:
        raise InputError(f"{path}: its card cannot be right: {' '.join(problem.split())[:200]}")
    return card


def _absurd(card: Any) -> str:
    """What is wrong with a value from a file whatever it means; empty where nothing is."""
    if not isinstance(card, dict):
        return "it is no object of JSON, or too long"
    waiting = [(card, "", 1)]
    while waiting:
        value, where, depth = waiting.pop()
        if isinstance(value, dict | list | tuple):
            if depth > MAX_DEPTH:
                return f"{where} is nested more than {MAX_DEPTH} deep"
            if len(value) > MAX_ENTRIES:
                return f"{where} has {len(value):,} entries"
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(inner, f"{where}.{str(key)[:50]}" if where else str(key)[:50], depth + 1) for key, inner in pairs]
        elif isinstance(value, str):
            if len(value) > MAX_TEXT:
                return f"{where} has {len(value):,} characters"
        elif isinstance(value, int | float):
            if not abs(value) <= MAX_NUMBER:  # NaN is not either
                return f"{where} is not a number that can be meant"
        elif value is not None:
            return f"{where} is of type {type(value).__name__}"
    return ""
