"""The sprint: train to a target accuracy on the clock, once or over consecutive seeds, and the record of it."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from commands import STARTED
from commands.shared import network_class, silence, write_report
from config import InputError
from learning.presets import get_preset
from learning.run_folder import data_place, run_folder, say_exported
from learning.weights import save_weights
from utils import (
    ROOT,
    STATED,
    demand_threads,
    demand_writable,
    network_card,
    no_garbage_collection,
    provenance,
    seed_everything,
    set_threads,
    summary,
    write_json,
)

if TYPE_CHECKING:
    from images.data import ImageDataset
    from model import Net
    from training import Trainer

MOST = 32
"""The first cycle of the larger network sees at most so many times the images of the training that missed the target."""


@dataclasses.dataclass
class Sprint:
    """Train the constrained network until it exceeds the target accuracy on the whole test split, against the clock.

    Exit status: 0 reached, 3 not reached, 2 bad input, 130 interrupted.
    """

    preset: str = "sprint"
    """Network and hyper-parameters: sprint, fast85 or fast90, or any other with --target."""
    dataset: str = "auto"
    """cifar10, cifar100, mnist, fashion_mnist, digits, shapes, folder:PATH, npz:FILE; auto is cifar10 if it is present or can be
    downloaded, otherwise shapes."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    seed: int = 0
    """Seed of the initial weights, the validation split and the order of the images."""
    seeds: int = 1
    """Number of consecutive seeds to run, each in a fresh process."""
    target: Annotated[float | None, STATED] = None
    """Test accuracy to exceed, above 0 and below 1 (default: the preset's)."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""
    conv: Literal["torch", "by-hand"] = "torch"
    """Convolution that computes the network: torch's, or the one written by hand in lab/convolution/, which is slower and equal
    up to rounding."""
    json: Path | None = None
    """File to write the record of the runs to, as JSON."""
    skip_unreadable: bool = False
    """Leave unreadable image files out instead of refusing the folder."""
    report: bool = False
    """Write a page with curves, confusion matrix and mistakes, and the weights, to runs/PRESET-DATASET (with -2, -3, ... where that
    holds a run)."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print errors only."""

    def run(self) -> int:
        with silence(self.quiet):
            return self._sprint()

    def _sprint(self) -> int:
        preset = get_preset(self.preset)
        target = preset.train.early_exit_accuracy if self.target is None else self.target
        if target is None:
            raise InputError(f"the preset {self.preset} has no target: say which test accuracy to exceed with --target")
        if not 0 < target < 1:
            raise InputError(f"--target is {target}: it must be above 0 and below 1 (0.55 is 55%)")
        if self.seeds < 1 or self.seed < 0:
            raise InputError("--seeds must be 1 or more, --seed 0 or more")
        demand_threads(self.threads)
        from images import loading

        if self.json:
            demand_writable(self.json.parent)
        dataset = loading.resolve_auto(self.dataset, self.data_dir)
        if self.seeds > 1:
            record = run_seeds(
                dataset,
                self.data_dir,
                self.preset,
                self.seed,
                self.seeds,
                target,
                self.threads,
                self.json,
                self.conv,
                self.skip_unreadable,
            )
            return 3 if record["misses"] else 0
        with no_garbage_collection(), ThreadPoolExecutor(1) as pool:
            imported = pool.submit(importlib.import_module, "training")  # with torch: 2 s, in which the images are read
            images = loading.load(dataset, self.data_dir, skip_unreadable=self.skip_unreadable)
            imported.result()
        set_threads(self.threads)
        run, trainer = run_once(images, self.preset, self.seed, target, network_class(self.conv))
        if self.json:
            run["process_seconds"] = time.perf_counter() - STARTED
            write_json(self.json, make_record(dataset, self.preset, target, [run]))
        if self.report:
            default = ROOT / "runs" / f"{self.preset}-{trainer.dataset.file_name}"
            with run_folder(default, None, dataset, resume=False, overwrite=False, instead="") as folder:
                card = trainer.final_card(trainer.history.test_accuracy, trainer.precision)
                save_weights(folder / "model.safetensors", trainer.trained_model.state_dict(), card)
                write_report(folder, f"Sprint of {self.preset}", trainer)
        return 0 if run["reached"] else 3


def run_once(
    dataset: ImageDataset, preset_name: str, seed: int, target: float, network: type[Net]
) -> tuple[dict[str, Any], Trainer]:
    """One sprint of a preset in this process: prints the summary and the result and keeps the weights under weights/.

    `network` is the class that computes it.

    Returns the run's entry in the record, all but `process_seconds`, and the Trainer as it stopped.
    """
    demand_writable(ROOT / "weights")
    trainer = _trained(dataset, preset_name, seed, target, network)
    first, larger = trainer.history, get_preset(preset_name).larger
    if larger and not first.reached:
        print(f"{target:.1%} is not reached: the larger network of the preset {larger} is trained instead", flush=True)
        trainer = _trained(dataset, larger, seed, target, network, after=trainer)
    history = trainer.history

    path = weights_path(f"{preset_name}-{dataset.file_name}", dataset.name)
    is_replaced = path.exists()
    save_weights(path, trainer.trained_model.state_dict(), trainer.final_card(history.test_accuracy, trainer.precision))
    passes = f"{history.test_passes} test pass{'' if history.test_passes == 1 else 'es'}"
    print(
        f"{'reached' if history.reached else 'NOT reached'} {target:.1%} on {dataset.name} in {history.total_seconds:.2f} s: "
        f"test accuracy {history.test_accuracy:.2%}, {history.images_seen:,} images seen, {passes}, weights in {path}"
        + " (those of an earlier sprint are replaced)"
        * is_replaced
    )
    if is_replaced:
        say_exported(path.parent, f"{path.stem}.*")
    entry = {
        "seed": seed,
        "reached": history.reached,
        "seconds": history.total_seconds,
        "test_accuracy": history.test_accuracy,
        "test_passes": history.test_passes,
        "images_seen": history.images_seen,
        "parameters": trainer.card["parameters"],
    }
    return entry, trainer


def _trained(
    dataset: ImageDataset, preset_name: str, seed: int, target: float, network: type[Net], after: Trainer | None = None
) -> Trainer:
    """A training of the preset, finished. `after` is one that missed the target: it says how many images are needed, and what
    it has spent and seen counts here too."""
    from learning.fitting import fit_to_data, say_limits
    from learning.log import Log
    from learning.schedule import images_needed
    from training import Trainer

    preset = get_preset(preset_name)
    config = dataclasses.replace(preset.train, seed=seed, early_exit_accuracy=target)
    if after:
        missing = target + config.early_exit_margin - after.history.evaluations[-1].val_accuracy
        images = min(images_needed(after.history.images_seen, missing), MOST * after.history.images_seen)
        config = dataclasses.replace(config, steps=math.ceil(images / config.batch_size))
    config = fit_to_data(config, dataset)
    seed_everything(seed)
    model = network(dataset.num_channels, dataset.num_classes, **preset.net)
    print(summary(model, dataset.num_channels, dataset.image_size), flush=True)
    card = network_card(model, dataset.num_channels, dataset.image_size, preset.net, preset=preset_name)
    trainer = Trainer(model, dataset, config, card=card, observer=Log())
    if not after:  # the second training has the same validation images
        say_limits(dataset, trainer.val_split)
    else:
        trainer.seconds_before = time.perf_counter() - after.started
    trainer.fit()
    if after:
        trainer.history.test_passes += after.history.test_passes
        trainer.history.images_seen += after.history.images_seen
    return trainer


def weights_path(name: str, dataset: str) -> Path:
    """The file in weights/ for a sprint on `dataset`: `name`, or `name-2` and so on where that has the weights of another's.

    Two folders of images may have the same name.
    """
    number = 1
    while True:
        path = ROOT / "weights" / f"{name}{'' if number == 1 else f'-{number}'}.safetensors"
        known = dataset  # of a card that is missing or damaged there is nothing to keep
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            known = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["dataset"]
        if data_place(str(known)) == data_place(dataset):
            return path
        number += 1


def run_seeds(
    dataset: str,
    data_dir: Path,
    preset: str,
    first_seed: int,
    seeds: int,
    target: float,
    threads: int,
    record_path: Path | None,
    conv: str = "torch",
    skip_unreadable: bool = False,
) -> dict[str, Any]:
    """`seeds` sprints over consecutive seeds, each in a fresh process; the record is written after every one.

    Raises InputError where a run fails for another reason than a missed target.
    """
    set_threads(threads)  # the record's machine is described in this process
    same = {"preset": preset, "dataset": dataset, "data-dir": data_dir, "target": target, "threads": threads, "conv": conv}
    runs, said = [], set()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first_seed, first_seed + seeds):
            path = Path(folder) / f"{seed}.json"
            options = [f"--{name}={value}" for name, value in {**same, "seed": seed, "json": path}.items()]
            options += ["--skip-unreadable"] * skip_unreadable
            started = time.perf_counter()
            child = subprocess.run(
                [sys.executable, str(ROOT / "main.py"), "sprint", *options],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            process_seconds = time.perf_counter() - started
            for line in child.stderr.splitlines():
                if line not in said:  # what is true of all seeds is said once
                    print(line, file=sys.stderr)
                    said.add(line)
            if child.returncode not in (0, 3):
                raise InputError(f"the run with seed {seed} ended with exit status {child.returncode}: see its message above")
            run = json.loads(path.read_text())["runs"][0] | {"process_seconds": process_seconds}
            runs.append(run)
            print(
                f"seed {seed}: {'reached' if run['reached'] else 'NOT reached'} in {run['seconds']:.2f} s "
                f"(process {process_seconds:.2f} s), test accuracy {run['test_accuracy']:.2%}, {run['images_seen']:,} images, "
                f"{run['test_passes']} test pass{'' if run['test_passes'] == 1 else 'es'}",
                flush=True,
            )
            record = make_record(dataset, preset, target, runs)
            if record_path:
                write_json(record_path, record)
    print(
        f"{len(runs)} seeds: median {record['median_seconds']:.2f} s, min {record['min_seconds']:.2f}, "
        f"max {record['max_seconds']:.2f}; {record['misses']} missed {target:.1%}"
    )
    return record


def make_record(dataset: str, preset: str, target: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of `runs`. The median, minimum and maximum are over all of them, missed ones with the seconds they spent."""
    seconds = [run["seconds"] for run in runs]
    return {
        "dataset": dataset,
        "preset": preset,
        "target": target,
        "runs": runs,
        "median_seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "max_seconds": max(seconds),
        "misses": sum(not run["reached"] for run in runs),
        **provenance(),
    }
