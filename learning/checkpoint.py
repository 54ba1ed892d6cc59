"""A training's whole state in a file: written after whole steps, and gone on from as if nothing had happened."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from config import InputError, TrainConfig
from images.sources import SPLIT_NAMES
from learning import distributed
from learning.history import History, Observer, Training
from learning.schedule import budget_of, with_other_budget
from learning.weights import load_checkpoint, save_checkpoint
from utils import random_states, restore_random_states

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from learning.averaging import WeightAverage

BUDGET = ("epochs", "steps")
FREE = ("workers", "image_size", *BUDGET)
"""Fields that may be others in a resumed run; the size of the images themselves may not."""


class Resumable(Training, Protocol):
    """What is kept of a training, and what it is asked for meanwhile; the Trainer is one."""

    checkpoint_path: Path | None
    averaged: WeightAverage | None
    best: dict[str, Tensor] | None
    optimizer: Optimizer
    observer: Observer
    running: dict[str, float]
    cycle_ends: list[int]
    total_steps: int
    steps_per_epoch: int
    learning_rate: float
    seconds_before: float

    def read_losses(self) -> None: ...

    def clock(self) -> float: ...

    def is_over(self) -> bool: ...

    def last_checkpoint(self) -> str: ...


def save(trainer: Resumable) -> None:
    """Write the state of `trainer`. Raises InputError where weights are not finite or the file cannot be written."""
    trainer.read_losses()
    state = trainer.trained_model.state_dict()
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise InputError(
            f"the weights are no longer finite after step {trainer.step}, learning rate {trainer.learning_rate:.3g}: "
            f"try a lower max_lr{trainer.last_checkpoint()}"
        )
    trainer.observer.saving()
    with distributed.main_first():
        if distributed.is_main():
            averaged = trainer.averaged
            assert trainer.checkpoint_path is not None  # without a folder no one saves
            save_checkpoint(
                trainer.checkpoint_path,
                {
                    "card": trainer.card,
                    "config": asdict(trainer.config),
                    "model": state,
                    "step": trainer.step,
                    "cycle_ends": trainer.cycle_ends,
                    "trained": trainer.model.state_dict(),
                    "averaged": averaged.module.state_dict() if averaged else None,
                    "average_steps": averaged.updates if averaged else 0,
                    "best": trainer.best,
                    "optimizer": trainer.optimizer.state_dict(),
                    "random": random_states(),
                    "history": asdict(trainer.history),
                    "running": trainer.running,
                    "seconds": trainer.clock(),
                },
            )


def read(path: Path) -> dict[str, Any]:
    """The state in a file, to resume from. Raises InputError where it is missing, damaged, or not a whole one."""
    state = load_checkpoint(path)
    missing = [name for name in ("config", "step", "history", "trained", "optimizer", "random") if name not in state]
    if missing or not isinstance(state["config"], dict):
        raise InputError(f"{path} cannot be resumed: {', '.join(missing) or 'its configuration'} is missing")
    return state


def restore(trainer: Resumable) -> None:
    """Bring `trainer`, which is prepared, to the state in its folder. Raises InputError where there is none or it does not fit."""
    path = trainer.checkpoint_path
    if not path or not path.exists():
        raise InputError(f"nothing to resume: there is no {path}")
    state = read(path)
    demand_same_data(path, state, trainer.card)
    demand_same_config(path, state, trainer.config)
    if state["card"].get("teacher_sha256") != trainer.card.get("teacher_sha256"):
        raise InputError(
            f"{path} was made with another teacher: the weights in {' or '.join(trainer.config.teacher)} have changed since"
        )
    try:
        trainer.step, trainer.history = state["step"], History.from_dict(state["history"])
        was = TrainConfig(**state["config"])
        ends = state.get("cycle_ends") or [budget_of(was, trainer.steps_per_epoch)]
        if any(getattr(was, name) != getattr(trainer.config, name) for name in BUDGET):
            ends = _other_ends(trainer, ends)
        trainer.cycle_ends = ends
        if trainer.config.cycles == 1:  # of more cycles the budget is that of all
            trainer.total_steps = ends[-1]
        trainer.model.load_state_dict(state["trained"])
        if trainer.averaged:
            trainer.averaged.restore(state.get("averaged") or state["model"], state["average_steps"])
        trainer.best = state.get("best")
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.running, trainer.seconds_before = state["running"], state["seconds"]
        restore_random_states(state["random"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise InputError(f"{path} holds the state of another training than its card says: {reason}") from error


def _other_ends(trainer: Resumable, was: list[int]) -> list[int]:
    """The ends of the cycles of a run, so far `was`, with the budget of its configuration now, which is said on stderr."""
    if trainer.is_over():
        why = "reached its target" if trainer.history.reached else "stopped early"
        raise InputError(f"the run {why} after step {trainer.step}, and more epochs change nothing: train anew, into another --out")
    ends = with_other_budget(was, trainer.step, trainer.cycle_ends[0], trainer.config)
    how = "another OneCycle over the additional steps" if len(ends) > len(was) else "its OneCycle is stretched to the new budget"
    print(f"note: the run goes on from step {trainer.step} (of {was[-1]}) to step {ends[-1]}: {how}", file=sys.stderr)
    return ends


def demand_same_data(path: Path, state: dict[str, Any], card: dict[str, Any]) -> None:
    """Raise InputError unless network and data are those that the checkpoint was made with."""
    # The data are known by their content: a folder may have moved. Older checkpoints have the name alone.
    names = () if "data" in state["card"] else (("data set", "dataset"),)
    for what, key in (*names, ("classes", "classes"), ("size of image", "image_size"), ("network", "net")):
        was, now = state["card"].get(key), card.get(key)
        if was != now:
            other = "other" if what == "classes" else "another"
            raise InputError(f"{path} was made with {other} {what} ({was}, not {now}): give it another --out")
    demand_same_images(path, state["card"], card["data"])


def demand_same_images(path: Path, card: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError unless `now`, as ImageDataset.content gives it, are the data of the checkpoint at `path` with this card."""
    if "data" in card:
        was = card["data"]
        for part in ("train", "val", "test"):
            if was[part] != now[part]:
                raise InputError(
                    f"{path} was made with other data: the {SPLIT_NAMES[part]} split had {was[part]:,} images and has "
                    f"{now[part]:,}; bring them back, or train anew into another --out"
                )
        for what in ("labels", "pixels"):
            if was[what] != now[what]:
                raise InputError(
                    f"{path} was made with other data: as many images, but their {what} are others "
                    "(images or class folders were exchanged); bring them back, or train anew into another --out"
                )


def demand_same_config(path: Path, state: dict[str, Any], now: TrainConfig) -> None:
    """Raise InputError unless the configuration is that which the checkpoint was made with, but for the fields FREE."""
    config = asdict(now)
    was = asdict(TrainConfig()) | state["config"]  # a field that is newer than the checkpoint had its default
    changed = [
        f"{name} was {was[name]}, is {config.get(name, 'gone')}"
        for name in was
        if name not in config or was[name] != config[name] and name not in FREE
    ]
    if changed:
        raise InputError(f"{path} was made with another configuration: {'; '.join(changed)}")
