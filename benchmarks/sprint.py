"""The sprint's record: ours on both clocks beside three reference networks, over consecutive seeds, each run a fresh process.

    python benchmarks/sprint.py                  # ten seeds, references on the first three; writes docs/records/DATE-HOST.json
    python benchmarks/sprint.py --readme         # and puts its table into README.md
    python benchmarks/sprint.py --quick          # two seeds, references cut after 20 s: under 3 minutes
    python benchmarks/sprint.py --plot RECORD    # runs nothing; draws docs/sprint.png (and with --readme writes the table)

The runs of a seed follow each other, so that whatever else the machine does falls on all contenders alike. The record is written
after every run: Ctrl-C keeps what is done. No run is left out; one that misses 55% counts with the seconds it spent.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import contextlib
import datetime
import itertools
import json
import platform
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from benchmarks import run_command
from benchmarks.references import REFERENCES, TARGET
from config import InputError
from results.documents import replace_between
from utils import ROOT, demand_writable, machine, provenance, write_json

MARKERS = ("<!-- sprint-table -->", "<!-- /sprint-table -->")
QUICK_LIMIT = 20.0  # seconds that --quick leaves a reference's training
EVERY_SEED = ("sprint", "harness", "ours")
FIRST_SEEDS = ("dense", "airbench")  # a minute or two each
REFERENCE_SEEDS = 3
ONCE = ("undownsampled",)
CUT_WHEN_QUICK = ("dense", "airbench")
ABOUT = {
    "sprint": "**ours, own clock**",
    "process": "ours, the whole process, prompt to prompt",
    "harness": "**ours, course's harness**: `model.py` and `config.py` alone",
    **{name: reference.about for name, reference in REFERENCES.items()},
}
TABLE = ("sprint", "process", "harness", "dense", "airbench", "undownsampled")
COLOURS = {"ours": "#0072b2", "harness": "#56b4e9", "dense": "#d55e00", "airbench": "#009e73"}  # told apart by the colour-blind
LABELS = {
    "ours": "ours, own clock",
    "harness": "ours, course's harness: test split",
    "dense": "dense CNN",
    "airbench": "airbench kind",
}


@dataclass
class Benchmark:
    """Run the sprint and its references side by side; write the record, print the table and the ratios."""

    seeds: int = 10
    """Number of consecutive seeds."""
    seed: int = 0
    """The first of them."""
    data_dir: Path = ROOT / "data"
    """Holds CIFAR-10."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""
    quick: bool = False
    """Two seeds, and references cut after 20 s each: a check, no record to quote."""
    readme: bool = False
    """Put the table between its markers in README.md."""
    plot: Path | None = None
    """Run nothing: draw docs/sprint.png from this record."""

    def run(self) -> int:
        if self.seeds < 1 or self.seed < 0 or self.threads < 0:
            raise InputError("--seeds must be 1 or more, --seed and --threads 0 or more")
        if self.plot:
            record = read_record(self.plot)
            plot(record, ROOT / "docs" / "sprint.png")
        else:
            if not (self.data_dir / "cifar-10-batches-py").is_dir():
                raise InputError(f"no CIFAR-10 in {self.data_dir}: ./run.sh sprint --dataset cifar10 downloads it")
            seeds = range(self.seed, self.seed + (2 if self.quick else self.seeds))
            record = self.measure(seeds, free_path(self.quick))
        print(table(record))
        if self.readme:
            replace_between(ROOT / "README.md", MARKERS, table(record))
        return 0

    def measure(self, seeds: range, path: Path) -> dict[str, Any]:
        """Run everything, and write the record to `path` after each run: Ctrl-C, or a run that fails, leaves what is done."""
        demand_writable(path.parent)
        runs: dict[str, list[dict[str, Any]]] = {}
        plan = [
            (name, seed) for i, seed in enumerate(seeds) for name in (*EVERY_SEED, *(FIRST_SEEDS if i < REFERENCE_SEEDS else ()))
        ]
        plan += [(name, seeds[0]) for name in ONCE]
        try:
            with tempfile.TemporaryDirectory() as folder, tqdm(plan, unit=" runs", disable=None) as progress:
                for name, seed in progress:
                    progress.set_description(f"{name}, seed {seed}")
                    runs.setdefault(name, []).append(self.run_one(name, seed, Path(folder)))
                    record = make_record(runs, self.threads, self.quick)
                    write_json(path, record)
                    progress.write(f"{name}, seed {seed}: {outcome(runs[name][-1])}")
        finally:
            print(f"{sum(map(len, runs.values()))} of {len(plan)} runs done{f', record in {path}' if runs else ''}")
        return record

    def run_one(self, name: str, seed: int, folder: Path) -> dict[str, Any]:
        """One run in a fresh process: its entry of the record. Raises InputError where it fails."""
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        common = [
            "--data-dir",
            str(self.data_dir.resolve()),
            "--seed",
            str(seed),
            "--threads",
            str(self.threads),
            "--json",
            str(result),
        ]
        if name == "sprint":
            command = ["main.py", "sprint", "--dataset", "cifar10", *common]
        elif name == "harness":
            for file in ("model.py", "config.py"):
                shutil.copy(ROOT / file, folder)
            command = ["course/harness.py", str(folder), *common]
        else:
            limit = QUICK_LIMIT if self.quick and name in CUT_WHEN_QUICK else 0
            command = ["benchmarks/references.py", name, *common, "--limit", str(limit)]
        started = time.perf_counter()
        child = subprocess.run([sys.executable, *command], cwd=ROOT, text=True, capture_output=True)
        process_seconds = time.perf_counter() - started
        if child.returncode == 130:
            raise KeyboardInterrupt
        if child.returncode not in (0, 3):
            message = (child.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{name} with seed {seed} ended with exit status {child.returncode}: {message}")
        entry = json.loads(result.read_text())
        return (entry["runs"][0] if name == "sprint" else entry) | {"process_seconds": process_seconds}


def make_record(runs: dict[str, list[dict[str, Any]]], threads: int, quick: bool) -> dict[str, Any]:
    """All `runs` with what they were made on, and a summary of each contender."""
    record = {
        "date": datetime.date.today().isoformat(),
        "dataset": "cifar10",
        "target": TARGET,
        "quick": quick,
        **provenance(),
        "summaries": {name: summarise(entries) for name, entries in runs.items()},
        "runs": runs,
    }
    if threads:  # of the runs, which are processes of their own
        record["hardware"]["threads"] = threads
    return record


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, minimum and maximum of the seconds of all `runs`, and how many of them missed the target.

    A run that missed counts with the seconds it spent; `median_is_a_bound` says that the median would be later had it gone on.
    """
    seconds = [run["seconds"] for run in runs]
    missed = [run["seconds"] for run in runs if not run.get("reached", True)]
    return {
        "runs": len(runs),
        "median_seconds": statistics.median(seconds),
        "min_seconds": min(seconds),
        "max_seconds": max(seconds),
        "misses": len(missed),
        "median_is_a_bound": any(spent <= statistics.median_high(seconds) for spent in missed),
    }


def outcome(run: dict[str, Any]) -> str:
    """A run in a few words."""
    if "step_seconds" in run:
        return f"{run['step_seconds']:.2f} s a step, {run['seconds']:,.0f} s an epoch"
    return f"{'reached' if run['reached'] else 'NOT reached'} in {run['seconds']:.2f} s"


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table; ratios are of medians, to our own on the same clock (the sprint's)."""
    runs, summaries = record["runs"], dict(record["summaries"])
    if "sprint" in runs:  # the same runs on the clock that the user has
        summaries["process"] = summarise([run | {"seconds": run["process_seconds"]} for run in runs["sprint"]])
    rows = ["| network | runs | median | min | max | missed | times ours | parameters |", "|---|---|---|---|---|---|---|---|"]
    for name in TABLE:
        if name not in summaries:
            continue
        values = summaries[name]
        bound = "> " if values["median_is_a_bound"] else ""
        median, least, most = (digits(values[f"{which}_seconds"]) for which in ("median", "min", "max"))
        ratio = bound + digits(values["median_seconds"] / summaries["sprint"]["median_seconds"]) if name in REFERENCES else ""
        parameters = runs["sprint" if name == "process" else name][0]["parameters"]
        rows.append(
            f"| {ABOUT[name]} | {values['runs']} | {bound}{median} s | {least} | {most} | "
            f"{'-' if name in ONCE else values['misses']} | {ratio} | {parameters:,} |"
        )
    note = (
        f"Seconds to more than {record['target']:.0%} on CIFAR-10's test split, each run a fresh process; {record['date']}, "
        f"{machine(record)}: `{record['command']}`."
    )
    return "\n".join([*rows, "", note])


def digits(value: float) -> str:
    """A positive number to about three figures."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"


def plot(record: dict[str, Any], path: Path) -> None:
    """Draw accuracy against seconds for every run of the record, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, colour in COLOURS.items():
        runs = record["runs"].get(name, [])
        for i, run in enumerate(runs):
            curve = list(zip(run["epoch_seconds"], run["accuracies"], strict=True)) if name == "harness" else run["curve"]
            if curve:
                axes.plot(
                    *zip(*curve, strict=True),
                    color=colour,
                    alpha=0.6,
                    linewidth=1,
                    marker="o",
                    markersize=2.5,
                    label="_" if i else LABELS[name],
                )
        # The curve's own runs look more often than the sprint does: where ours ends is the sprint's to say.
        ends = [
            (run["seconds"], run["test_accuracy"])
            for run in record["runs"].get("sprint" if name == "ours" else name, [])
            if run.get("test_accuracy") is not None
        ]
        if ends:
            axes.plot(*zip(*ends, strict=True), linestyle="none", marker="*", markersize=9, color=colour)
    axes.axhline(record["target"], color="#5f6368", linestyle="--", linewidth=1, label="target")
    axes.plot([], [], linestyle="none", marker="*", markersize=9, color="#5f6368", label="end: test split")
    axes.set(xscale="log", xlabel="seconds on the clock", ylabel="accuracy", title="To 55% on CIFAR-10")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    print(f"plot in {path}")


def read_record(path: Path) -> dict[str, Any]:
    """A record that this script wrote. Raises InputError where it is none."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and {"runs", "summaries", "hardware"} <= set(record):
            return record
    raise InputError(f"{path} is not a record of benchmarks/sprint.py")


def free_path(quick: bool) -> Path:
    """Where the next record goes: none that is there is overwritten."""
    host = re.sub(r"[^A-Za-z0-9.-]+", "-", platform.node()) or "host"
    stem = f"{datetime.date.today().isoformat()}-{host}{'-quick' if quick else ''}"
    paths = (ROOT / "docs" / "records" / f"{stem}{f'-{n}' if n > 1 else ''}.json" for n in itertools.count(1))
    return next(path for path in paths if not path.exists())


if __name__ == "__main__":
    sys.exit(run_command(Benchmark, __doc__))
