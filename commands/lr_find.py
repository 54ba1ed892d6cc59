"""The learning-rate range test as a command, and before a training (train --max-lr auto)."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from config import InputError, TrainConfig
from learning.history import Observer, Training
from learning.presets import get_preset
from utils import (
    ROOT,
    STATED,
    demand_new,
    demand_threads,
    demand_writable,
    random_states,
    restore_random_states,
    seed_everything,
    set_threads,
    write_atomically,
)

if TYPE_CHECKING:
    from torch import nn

    from images.data import ImageDataset
    from learning.range_test import Curve, RangeTest

CURVE = "lr-find.png"


@dataclasses.dataclass
class LrFind:
    """Find a learning rate by a range test: it rises exponentially, from batch to batch, until the loss diverges (Smith 2015).

    Prints the curve and a suggestion for --max-lr of train, and writes a plot. `train --max-lr auto` does the same with all options
    of the training.
    """

    preset: str = "baseline"
    """Preset of the network and its settings."""
    model: str = ""
    """A network of your own instead of the preset's: FILE.py:CLASS, as for check."""
    dataset: str = "auto"
    """Data set, as for train."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    skip_unreadable: bool = False
    """Leave unreadable image files out instead of refusing the folder."""
    optimizer: Annotated[Literal["adamw", "muon", "sgd"] | None, STATED] = None
    """Optimizer (default: the preset's)."""
    batch_size: Annotated[int | None, STATED] = None
    """Images in one step (default: the preset's, or fewer for few images)."""
    lowest: float = 1e-5
    """Learning rate of the first step."""
    highest: float = 10.0
    """Learning rate of the last step, unless the loss diverges before."""
    steps: int = 100
    """Number of steps, at most."""
    seed: int = 0
    """Seed of the initial weights and the order of the images."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""
    out: Annotated[Path | None, STATED] = None
    """PNG file of the plot (default: runs/lr-find/PRESET-DATASET.png, which the next test replaces)."""
    overwrite: bool = False
    """Replace the file that --out names."""

    def run(self) -> int:
        if self.out and self.out.suffix.lower() != ".png":
            raise InputError(f"--out is {self.out}: the plot is a PNG, so the name must end in .png")
        if self.out:
            demand_new(self.out, self.overwrite)
        demand_threads(self.threads)
        from images import data
        from learning import own
        from learning.fitting import fit_to_data
        from learning.range_test import RangeTest
        from model import Net

        test = RangeTest(self.lowest, self.highest, self.steps)
        preset = get_preset(self.preset, bool(self.model))
        chosen: dict[str, Any] = {"optimizer": self.optimizer, "batch_size": self.batch_size}
        given = {name: value for name, value in chosen.items() if value is not None}
        config = dataclasses.replace(preset.train, **given, seed=self.seed, device=self.device)
        set_threads(self.threads)
        name = data.resolve_auto(self.dataset, self.data_dir)
        called = self.model.rpartition(":")[2] or self.preset
        path = self.out or ROOT / "runs" / "lr-find" / f"{called}-{data.file_name(name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        demand_writable(path.parent)
        dataset = data.load(name, self.data_dir, config.image_size, self.skip_unreadable)
        config = dataclasses.replace(config, steps=self.steps, ema_decay=0.0)  # so that neither is fitted to the data
        config = fit_to_data(config, dataset, tuple(given), has_options=False)
        seed_everything(self.seed)
        model = own.build(self.model, dataset) if self.model else Net(dataset.num_channels, dataset.num_classes, **preset.net)
        curve = find(model, dataset, config, test)
        write(curve, path)
        print(f"plot in {path}")
        return 0


def find(
    model: nn.Module, dataset: ImageDataset, config: TrainConfig, test: RangeTest | None = None, card: dict[str, Any] | None = None
) -> Curve:
    """The range test of training `model` on `dataset` as `config` says, printed. All else is as if it had never been.

    It works on a copy of the network with an optimizer of its own, and puts the random states back: neither the weights nor the
    order of the images nor anything drawn afterwards is other than without it. `card` is as for Trainer.

    Raises InputError where nothing can be suggested.
    """
    from learning.range_test import Ended, RangeTest
    from limits.copying import copy_of
    from results.range_plot import range_line
    from training import Diverged, Trainer

    test = test or RangeTest()
    trial = dataclasses.replace(
        config,
        steps=test.steps,
        eval_every=test.steps,
        cycles=1,
        early_exit_accuracy=None,
        patience=0,
        flat_loss=0.0,
        ema_decay=0.0,
        resolutions=(),
        compile=False,
    )
    states = random_states()
    try:
        trainer = Trainer(copy_of(model), dataset, trial, card=card, observer=test, schedule=test.schedule)
        with contextlib.suppress(Ended):
            trainer.fit()
    except Diverged:
        test.became_infinite = True
    finally:
        restore_random_states(states)
    curve = test.curve()
    print(range_line(curve))
    print(f"suggestion: --max-lr {curve.suggestion:g}, {curve.reason}", flush=True)
    return curve


def write(curve: Curve, path: Path) -> None:
    """Write the plot of `curve` to the PNG `path`. Raises InputError where that fails."""
    from results.canvas import png
    from results.range_plot import range_figure

    write_atomically(path, png(range_figure(curve)))


class KeepCurve(Observer):
    """Writes the plot to the folder of a run once its training starts: by then, an earlier run there is removed."""

    def __init__(self, curve: Curve, folder: Path) -> None:
        self.curve, self.folder = curve, folder

    def started(self, trainer: Training) -> None:
        write(self.curve, self.folder / CURVE)


COMMANDS = {"lr-find": LrFind}
