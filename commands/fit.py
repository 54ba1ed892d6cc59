"""fit: the network that satisfies an assignment's limits and suits the user's images, found and trained within a budget of time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from commands.shared import silence, write_report
from config import InputError, TrainConfig
from learning.presets import PRESETS
from learning.run_folder import ALL, remove, run_folder
from learning.weights import save_weights
from utils import ASSIGNMENT, ROOT, STATED, resolve_device, set_threads, write_atomically, write_json

if TYPE_CHECKING:
    from commands.trying import Run
    from images.data import ImageDataset
    from limits.assignments import Assignment

RECIPE = dataclasses.replace(PRESETS["fast90"].train, early_exit_accuracy=None, early_exit_margin=0.0)
"""How all candidates are trained, but for what the assignment demands of a training."""
SEARCH = 0.5
"""Share of the budget for the search; the best network is trained in the rest."""
REPORT_SECONDS = 8.0
"""What test accuracy, weights and report take, at most a tenth of the budget."""
UNITS = {"s": 1, "m": 60, "h": 3600}
STUDY = "study.sqlite"
LIMITS = "limits.json"
"""In the folder of a run: what it was found within, for --resume."""


@dataclasses.dataclass
class Fit:
    """Find a network within the limits of an assignment that suits your images, and train it, all within a budget of time.

    Half of the budget goes into the search: candidates are checked against the limits, trained for a short time, and the better
    ones for longer. The rest trains the best one. The test split is evaluated once, at the end. Ctrl-C keeps the study.

    Exit status: 0 trained, 2 bad input, 130 interrupted; with --assignment 1 if a demand fails, 3 if none fails but one is unknown.
    """

    dataset: str = "auto"
    """cifar10, cifar100, mnist, fashion_mnist, digits, shapes, folder:PATH, npz:FILE; auto as for train."""
    assignment: Annotated[str, ASSIGNMENT] = ""
    budget: str = "10m"
    """Time for everything: 90s, 10m, 2h or 1h30m."""
    study: Annotated[str, tyro.conf.arg(metavar="FILE|postgresql://USER@HOST/DATABASE", help_behavior_hint="")] = ""
    """Where the networks that were tried are kept (default: study.sqlite in the folder of the run). A study that is there
    is continued; several processes may work on it at the same time."""
    search_only: bool = False
    """Search for the whole budget and train nothing: for the processes that help another one with its study."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    out: Annotated[Path | None, STATED] = None
    """Folder of the weights, the study and the report (default: runs/fit-DATASET, with -2, -3, ... where that holds a run)."""
    overwrite: bool = False
    """Replace the run in that folder once the best network is known, and its study unless --study names it."""
    resume: bool = False
    """Continue the training of the best network from the checkpoint in that folder; the search is over by then."""
    skip_unreadable: bool = False
    """Leave unreadable image files out instead of refusing the folder."""
    seed: int = 0
    """Seed of the weights, the order of the images, the augmentation and the validation split."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print errors and, at the end, the folder of the run only."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""

    def run(self) -> int:
        began = time.monotonic()
        ends = began + seconds_of(self.budget)
        if self.search_only and not self.study:
            raise InputError("--search-only helps with a study: name it with --study")
        if self.search_only and self.overwrite:
            raise InputError("--search-only leaves no run: leave out --overwrite")
        if self.resume and (self.search_only or self.study):
            raise InputError("--resume goes on with the last training, after the search: leave out --study and --search-only")
        config = dataclasses.replace(RECIPE, seed=self.seed, device=self.device)  # raises where they are wrong
        from images import data
        from learning.study import demand_optuna
        from limits.assignments import load

        demand_optuna()
        named = load(self.assignment) if self.assignment else None
        set_threads(self.threads)
        resolve_device(self.device)
        with silence(self.quiet), contextlib.ExitStack() as stack:
            wanted = named.dataset if named and named.dataset and self.dataset == "auto" else self.dataset
            name = data.resolve_auto(wanted, self.data_dir)
            folder = ROOT / "runs" / f"fit-{data.file_name(name)}"
            out = folder
            if not self.search_only:
                out = stack.enter_context(run_folder(folder, self.out, name, self.resume, self.overwrite))
            if self.resume:
                named = limits_of(out, named)
            dataset = data.load(name, self.data_dir, 0, self.skip_unreadable)
            place = self.study or str(out / STUDY)
            try:
                status = self._fit(dataset, named, config, out, place, began, ends)
            except KeyboardInterrupt as stop:
                if str(stop):
                    raise
                if not self.search_only and (out / "checkpoint.pt").exists():
                    raise KeyboardInterrupt("the same command with --resume goes on") from None
                raise KeyboardInterrupt(continued(place)) from None
        if self.quiet and not self.search_only:
            print(out)
        return status

    def _fit(
        self, dataset: ImageDataset, named: Assignment | None, config: TrainConfig, out: Path, place: str, began: float, ends: float
    ) -> int:
        from commands.trying import Candidates
        from learning.fitting import say_limits
        from limits.assignments import default

        candidates = Candidates(dataset, named or default(), config)
        if self.resume:
            return self._leave(candidates.resume(out), named, out)
        if self.overwrite and not self.study:
            remove(out, [STUDY])
        try:
            best = candidates.search(place, ends, 1 if self.search_only else SEARCH)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(continued(place)) from None  # a checkpoint in the folder is of the run to be replaced
        first = ", the default preset's, which no longest run beats by a standard error" if best.is_first else ""
        print(
            f"the best is network {best.number}{first}: {best.accuracy:.1%} on the validation images, "
            f"{best.parameters:,} parameters",
            flush=True,
        )
        if self.search_only:
            return 0
        if self.overwrite:  # not before there is something to replace it with
            remove(out, [name for name in ALL if name != STUDY])
        say_limits(dataset, candidates.val)
        write_json(out / LIMITS, {"named": bool(named), "assignment": (named or default()).without_course})
        run = candidates.train(best.net, ends - min(REPORT_SECONDS, (ends - began) / 10), out)
        return self._leave(run, named, out)

    def _leave(self, run: Run, named: Assignment | None, out: Path) -> int:
        """Write and print all that a training leaves; returns the exit status."""
        import torch

        from learning.last_epochs import evaluate_last_epochs
        from limits.assignments import default
        from limits.constraints import check, exit_status, format_demands
        from results.demands import Training, of_all

        rules = named or default()
        trainer, config, precision = run.trainer, run.trainer.config, torch.float32
        test_loss, test_accuracy = trainer.evaluate(trainer.dataset.test, precision)
        history, card = trainer.history, trainer.final_card(test_accuracy, precision)
        if rules.last_epochs or self.resume:
            history.last_test_accuracies = evaluate_last_epochs(out, trainer, precision)
        save_weights(out / "model.safetensors", trainer.trained_model.state_dict(), card)
        record = {"card": card, "config": dataclasses.asdict(config), "history": dataclasses.asdict(history)}
        write_json(out / "run.json", record)
        text = preset_text(trainer.dataset, rules, config, card["net"])
        write_atomically(out / "preset.txt", text.encode())
        print(
            f"test accuracy {test_accuracy:.2%} (loss {test_loss:.3f}), validation accuracy {history.val_accuracy:.2%}, "
            f"{history.evaluations[-1].epoch:g} epochs in {history.total_seconds:.1f} s, weights in {out / 'model.safetensors'}"
        )
        if named:
            demands = of_all(rules, trainer.trained_model, Training(card, record["config"], history))
        else:  # what the default one demands of a training on CIFAR-10 is not asked of other images
            demands = check(trainer.trained_model, trainer.dataset.image_size, trainer.dataset.num_channels, assignment=rules)
        print(f"\n{format_demands(rules.name, demands)}")
        print(f"\nthe preset, to paste into PRESETS in learning/presets.py, also in {out / 'preset.txt'}:\n{text}")
        shown, name = (demands, rules.name) if named else (None, "")
        write_report(out, "The network that fit found", trainer, precision, shown, name)
        return exit_status(demands) if named else 0


def limits_of(out: Path, named: Assignment | None) -> Assignment | None:
    """The assignment that the run in `out` was found for, None where it was the default one. Raises InputError where `named` has
    other limits."""
    from limits.assignments import parse

    path = out / LIMITS
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        before = parse(kept["assignment"], str(path))
    except FileNotFoundError:  # of an earlier version
        return named
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__} {error}") from error
    if named and named.limits != before.limits:
        raise InputError(f"{out} was found within the limits of {before.name}: leave out --assignment, or pass another --out")
    return before if kept.get("named") else None


def continued(place: str) -> str:
    """How a search that was interrupted goes on."""
    from learning.study import name_of

    return f"the same command with --study {name_of(place)} goes on with what was tried"


def seconds_of(text: str) -> float:
    """The seconds in `90s`, `10m`, `2h` or `1h30m`. Raises InputError where it is none of these, below 10 s or above 30 days."""
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([smh])", text)
    units = "".join(unit for _, unit in parts)
    if not parts or "".join(number + unit for number, unit in parts) != text or not re.fullmatch("h?m?s?", units):
        raise InputError(f"--budget is {text!r:.40}: write it as 90s, 10m, 2h or 1h30m")
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not 10 <= seconds <= 30 * 24 * 3600:
        raise InputError(f"--budget is {text:.40}: it must be from 10s to 720h")
    return seconds


def preset_text(dataset: ImageDataset, rules: Assignment, config: TrainConfig, net: dict[str, Any]) -> str:
    """The entry of PRESETS that trains the same network in the same way."""
    defaults = TrainConfig()
    changed = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(TrainConfig)
        if field.name not in ("epochs", "seed", "device", "image_size", "checkpoint_every")
        and getattr(config, field.name) != getattr(defaults, field.name)
    }
    name, about = _literal(f"fit-{dataset.file_name}"), _literal(f"found by fit for {dataset.file_name} within {rules.name}")
    lines = [f"    {name}: Preset(", f"        {about},", "        TrainConfig("]
    lines += [*(f"            {name}={_literal(value)}," for name, value in changed.items()), "        ),", "        {"]
    lines += [*(f'            "{name}": {_literal(value)},' for name, value in net.items()), "        },", "    ),"]
    return "\n".join(lines) + "\n"


def _literal(value: Any) -> str:
    """`value` as Python code; double quotes around texts, as in PRESETS."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return repr(value).replace("'", '"')


COMMANDS = {"fit": Fit}
