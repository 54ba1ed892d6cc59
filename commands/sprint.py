"""The sprint: train to a target accuracy on the clock, once or over consecutive seeds, and the record of it."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from config import InputError, get_preset
from images import data
from model import Net
from training import Trainer
from utils import (
    PRECISIONS,
    ROOT,
    count_parameters,
    demand_writable,
    provenance,
    save_weights,
    seed_everything,
    summary,
    write_json,
)


def run_once(
    dataset: data.ImageDataset, preset_name: str, seed: int, target: float, network: type[Net] = Net
) -> tuple[dict[str, Any], Trainer]:
    """One sprint of a preset in this process: prints the summary and the result and keeps the weights under weights/.

    `network` is the class that computes it.

    Returns the run's entry in the record, all but `process_seconds`, and the Trainer as it stopped.
    """
    demand_writable(ROOT / "weights")
    preset = get_preset(preset_name)
    config = dataclasses.replace(preset.train, seed=seed, early_exit_accuracy=target)
    seed_everything(seed)
    model = network(dataset.num_channels, dataset.num_classes, **preset.net)
    print(summary(model, dataset.num_channels, dataset.image_size), flush=True)
    parameters = count_parameters(model)
    trainer = Trainer(model, dataset, config, card={"preset": preset_name, "net": preset.net, "parameters": parameters})
    history = trainer.fit()

    path = ROOT / "weights" / f"{preset_name}-{dataset.file_name}.safetensors"
    (precision,) = (name for name, dtype in PRECISIONS.items() if dtype == trainer.precision)
    save_weights(
        path,
        trainer.trained_model.state_dict(),
        trainer.card
        | {
            "test_accuracy": history.test_accuracy,
            "seconds": history.total_seconds,
            "images_seen": history.images_seen,
            "seed": seed,
            "precision": precision,
            **provenance(),
        },
    )
    print(
        f"{'reached' if history.reached else 'NOT reached'} {target:.1%} on {dataset.name} in {history.total_seconds:.2f} s: "
        f"test accuracy {history.test_accuracy:.2%}, {history.images_seen:,} images seen, "
        f"{history.test_passes} test pass{'' if history.test_passes == 1 else 'es'}, weights in {path}"
    )
    entry = {
        "seed": seed,
        "reached": history.reached,
        "seconds": history.total_seconds,
        "test_accuracy": history.test_accuracy,
        "test_passes": history.test_passes,
        "images_seen": history.images_seen,
        "parameters": parameters,
    }
    return entry, trainer


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
) -> dict[str, Any]:
    """`seeds` sprints over consecutive seeds, each in a fresh process; the record is written after every one.

    Raises InputError where a run fails for another reason than a missed target.
    """
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first_seed, first_seed + seeds):
            path = Path(folder) / f"{seed}.json"
            arguments = [
                "sprint",
                "--preset",
                preset,
                "--dataset",
                dataset,
                "--data-dir",
                str(data_dir),
                "--seed",
                str(seed),
                "--target",
                str(target),
                "--threads",
                str(threads),
                "--json",
                str(path),
                "--conv",
                conv,
            ]
            started = time.perf_counter()
            child = subprocess.run([sys.executable, str(ROOT / "main.py"), *arguments], stdout=subprocess.DEVNULL)
            process_seconds = time.perf_counter() - started
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
