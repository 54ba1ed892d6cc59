"""Training a preset for its whole budget."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from commands.lr_find import KeepCurve, find
from commands.shared import network_class, silence, write_report
from config import InputError, TrainConfig
from learning.presets import PRESETS, Preset, get_preset
from learning.run_folder import Overwrite, data_place, remove_pages, run_folder
from learning.weights import save_weights
from utils import ASSIGNMENT, NOTES, ROOT, STATED, network_card, resolve_device, seed_everything, set_threads, summary, write_json

if TYPE_CHECKING:
    from torch import nn

    from images.data import ImageDataset
    from limits.assignments import Assignment
    from results.notes import Section

PRESETS_HELP = "Network and hyper-parameters to start from: " + "; ".join(f"{name}, {p.about}" for name, p in PRESETS.items()) + "."


@dataclasses.dataclass
class Train:
    """Train a preset for its whole budget. The validation images guide the training; the test split is evaluated once, at the end.

    Every hyper-parameter of the preset can be overridden; the defaults below are the preset's. On small data sets, options that you
    do not set (batch size, validation images, epochs, averaging, image size, flips) follow the data; a note says what was chosen.

    Exit status: 0 trained, 2 bad input, 130 interrupted; with --assignment 1 if a demand fails, 3 if none fails but one is unknown.
    """

    preset: Annotated[str, tyro.conf.arg(help=PRESETS_HELP)] = "baseline"
    model: str = ""
    """A network of your own instead of the preset's: FILE.py:CLASS, as for check."""
    dataset: str = "auto"
    """cifar10, cifar100, mnist, fashion_mnist, digits, shapes, folder:PATH, npz:FILE; auto is the assignment's, or else cifar10 if
    it is present or can be downloaded, otherwise shapes."""
    assignment: Annotated[str, ASSIGNMENT] = ""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    out: Annotated[Path | None, STATED] = None
    """Folder of the checkpoint, the weights and the report (default: runs/PRESET-DATASET, with -2, -3, ... where that holds a
    run)."""
    overwrite: bool = False
    """Remove the run in that folder first."""
    resume: bool = False
    """Continue from the checkpoint in that folder, exactly as if the run had not stopped; a larger --epochs extends the run."""
    init: Path | None = None
    """Start from these trained weights, with their network and normalisation; the last layer is new if the classes differ. A file,
    or efficientnet_lite0[:PIXELS]: trained on ImageNet, enlarges images to 128 or PIXELS a side (requirements-imagenet.txt)."""
    skip_unreadable: bool = False
    """Leave unreadable image files out instead of refusing the folder."""
    report: bool = False
    """Also write a page with curves, confusion matrix and mistakes to that folder."""
    author: str = ""
    """Name of the author, for the page, which this option writes too. `report RUN --author` adds it afterwards."""
    notes: Annotated[Path | None, NOTES] = None
    tensorboard: bool = False
    """Log curves, graph, histograms, images, confusion matrix and hyper-parameters to tensorboard/ in that folder."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print errors and, at the end, the folder of the run only."""
    threads: int = 0
    """Number of threads for torch; 0 uses torch's default (one per core)."""
    conv: Literal["torch", "by-hand"] = "torch"
    """Convolution that computes the network: torch's, or the one written by hand in lab/convolution/, which is slower and equal
    up to rounding."""
    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The fields of config that the user set: they are not fitted to the data."""
    finds_max_lr: tyro.conf.Suppress[bool] = False
    """--max-lr auto: a range test before the training chooses max_lr."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=lambda: PRESETS["baseline"].train)

    def run(self) -> int:
        preset = get_preset(self.preset, bool(self.init or self.resume or self.model))
        if self.conv == "by-hand" and self.model:
            raise InputError("--conv by-hand is for the project's network: leave out --model or --conv by-hand")
        if self.conv == "by-hand" and self.config.compile:
            raise InputError("torch.compile does not take the convolution by hand: leave out --compile or --conv by-hand")
        from images import data
        from learning import distributed
        from learning.fitting import demand_consistent

        words = []
        if self.notes:
            from results import notes

            words = notes.read(self.notes)
        rules = None
        if self.assignment:
            from limits.assignments import load

            rules = load(self.assignment)
        set_threads(self.threads)
        with silence(self.quiet), distributed.group(resolve_device(self.config.device)), contextlib.ExitStack() as stack:
            wanted = rules.dataset if rules and rules.dataset and self.dataset == "auto" else self.dataset
            name = data.resolve_auto(wanted, self.data_dir)
            demand_consistent(self.config, self.given, name)
            out = default = ROOT / "runs" / f"{self.called}-{data.file_name(name)}"
            inputs = [*([self.init] if self.init else []), *map(Path, self.config.teacher)]
            if distributed.is_main():
                out = stack.enter_context(run_folder(default, self.out, name, self.resume, self.overwrite, inputs))
                if self.notes:
                    from results.notes import demand_kept

                    demand_kept(self.notes, out)
            status = self._train(preset, name, Path(distributed.from_main(str(out))), rules, words)
            is_main = distributed.is_main()
        if self.quiet and is_main:
            print(out)
        return status

    @property
    def called(self) -> str:
        """What the run is called after: the class of the user's own network, or the preset."""
        return self.model.rpartition(":")[2] or self.preset

    def _train(self, preset: Preset, name: str, out: Path, rules: Assignment | None, words: list[Section]) -> int:
        import torch

        from images import data
        from learning import checkpoint, distributed, own
        from learning.checkpoint import BUDGET
        from learning.distillation import demand_teaches, load_teacher
        from learning.fitting import FITTED, demand_fits, fit_to_data, say_limits
        from learning.history import Observer, Observers
        from learning.last_epochs import LastEpochs, count_kept, evaluate_last_epochs
        from learning.log import Log
        from learning.starting import demand_same_start, load_start, take_weights
        from training import Trainer

        if self.config.freeze and not (self.init or self.resume):
            raise InputError("--freeze trains the last layer alone, on random features: name trained weights with --init")
        kept = checkpoint.read(out / "checkpoint.pt") if self.resume else None
        start = load_start(self.init, self.model) if self.init and not kept else None
        before = kept["card"] if kept else start.card if start else {}  # of the network that this training goes on with
        is_trained = bool(start) or "init" in before
        config = dataclasses.replace(self.config, whiten_images=0) if is_trained else self.config
        if kept:  # what was fitted to the data stays as it was, whatever the rules are now
            budget = () if {*BUDGET} & {*self.given} else BUDGET
            same = ({*FITTED} - {*BUDGET, *self.given} | {*budget}) & {*kept["config"]}
            same |= {"max_lr"} if self.finds_max_lr else set()  # as it was found then
            config = dataclasses.replace(config, **{field: kept["config"][field] for field in same})
            checkpoint.demand_same_config(out / "checkpoint.pt", kept, config)
            if self.init:
                demand_same_start(out / "checkpoint.pt", before, self.init)
        teachers = [load_teacher(Path(path), torch.device("cpu")) for path in config.teacher]
        spec = self.model or before.get("model")
        seed_everything(config.seed)  # the user's file may make weights when it is run
        found = own.find(spec) if spec else None
        side = before["image_size"][0] if before and "image_size" not in self.given else self.config.image_size
        with distributed.main_first():
            dataset = data.load(name, self.data_dir, side, self.skip_unreadable, before.get("classes", ()))
        for path, teacher in teachers:
            demand_teaches(path, teacher.card, dataset.classes, dataset.num_channels)
        if kept:
            checkpoint.demand_same_images(out / "checkpoint.pt", before, dataset.content())
            demand_fits(config, dataset)
        else:
            config = fit_to_data(config, dataset, self.given)
        seed_everything(config.seed)
        about = {"preset": self.preset}
        if spec and self.conv == "by-hand":
            raise InputError(f"--conv by-hand is for the project's network, and these weights are of {spec}: leave it out")
        if spec:
            net: dict[str, Any] = before.get("net") or {}
            model = own.build(spec, dataset, found, net)
            about |= own.card(spec)
        else:
            net = before["net"] if is_trained else preset.net
            model = network_class(self.conv)(dataset.num_channels, dataset.num_classes, **net)
        if start and self.init:
            take_weights(model, start, dataset, self.init)
        if is_trained:
            about |= {name: before[name] for name in ("init", "mean", "std")}
        try:
            table = summary(model, dataset.num_channels, dataset.image_size)
        except RuntimeError as error:  # of torchinfo, with a network of the user's own
            table = ""
            print(f"note: torchinfo has no table of this network: {str(error).splitlines()[0]}", file=sys.stderr)
        card = network_card(model, dataset.num_channels, dataset.image_size, net, **about)
        curve = None
        if self.finds_max_lr and not kept:
            curve = find(model, dataset, config, card=card)
            config = dataclasses.replace(config, max_lr=curve.suggestion)
        last_epochs = rules.last_epochs if rules else None
        if self.resume and not last_epochs:  # the assignment may be left out then
            last_epochs = count_kept(out)
        board, observer = None, Observer()
        if distributed.is_main():
            observers: list[Observer] = [Overwrite(out)] if self.overwrite else []
            if curve:
                observers.append(KeepCurve(curve, out))
            observers.append(Log(out))
            if last_epochs:
                observers.append(LastEpochs(out, last_epochs))
            if self.tensorboard:
                from results.tensorboard_log import TensorBoardLog

                board = TensorBoardLog(out / "tensorboard")
                observers.append(board)
            observer = Observers(*observers)
        trainer = Trainer(model, dataset, config, out, card=card, observer=observer)
        if kept:
            checkpoint.demand_same_data(out / "checkpoint.pt", kept, trainer.card)
        if table:
            print(table, flush=True)  # now that nothing is known to be wrong
        if rules and distributed.is_main():
            say_demands(rules, model, dataset, config)
        say_limits(dataset, trainer.val_split)
        precision = torch.float32  # in which every machine finds the same accuracy; bf16 is rounded differently by different ones
        with board or contextlib.nullcontext():
            history = trainer.fit(self.resume)
            test_loss, test_accuracy = trainer.evaluate(dataset.test, precision)
            if board:
                board.tested(trainer.step, test_loss, test_accuracy)
        if not distributed.is_main():
            return 0
        if last_epochs:
            history.last_test_accuracies = evaluate_last_epochs(out, trainer, precision)
        last = history.evaluations[-1]
        card = trainer.final_card(test_accuracy, precision)
        if kept and kept["step"] != trainer.step:
            remove_pages(out, self.report)
        save_weights(out / "model.safetensors", trainer.trained_model.state_dict(), card)
        record = {"card": card, "config": dataclasses.asdict(config), "history": dataclasses.asdict(history)}
        write_json(out / "run.json", record)
        if history.kept:
            print(f"note: kept {history.kept}: better on the validation images", file=sys.stderr)
        print(
            f"test accuracy {test_accuracy:.2%} (loss {test_loss:.3f}), validation accuracy {history.val_accuracy:.2%}, "
            f"{last.epoch:g} epochs in {history.total_seconds:.1f} s, weights in {out / 'model.safetensors'}"
        )
        demands = None
        if rules:
            from limits.constraints import format_demands
            from results.demands import Training, of_all

            demands = of_all(rules, trainer.trained_model, Training(card, record["config"], history))
            print(f"\n{format_demands(rules.name, demands)}")
        if self.report or self.author or self.notes:
            named = rules.name if rules else ""
            write_report(out, f"Training of {self.called}", trainer, precision, demands, named, self.author, words)
        if demands is None:
            return 0
        from limits.constraints import exit_status

        return exit_status(demands)


def without_auto(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The command line without --max-lr auto, and whether that is the last --max-lr, which counts: the field is a number."""
    left: list[str] = []
    is_auto, i = False, 0
    while i < len(arguments):
        name, equals, value = arguments[i].partition("=")
        length = 1
        if is_rate := name.replace("_", "-") == "--max-lr":
            length = 1 if equals else 2
            is_auto = (value if equals else "".join(arguments[i + 1 : i + 2])).lower() == "auto"
        if not (is_rate and is_auto):
            left += arguments[i : i + length]
        i += length
    return left, is_auto


def train_defaults(arguments: Sequence[str]) -> Train:
    """What the fields of `train` are before the command line `arguments` is read: the chosen preset's own values.

    Where no preset is chosen but an assignment, the preset is the one that the assignment names.

    Raises InputError where both budgets are named; one alone replaces the preset's, whichever that has.
    """
    flags = [text for argument in arguments for text in (argument.split("=", 1) if argument.startswith("--") else [argument])]
    preset = flags[flags.index("--preset") + 1] if "--preset" in flags[:-1] else ""
    if not preset and "--assignment" in flags[:-1]:
        from limits.assignments import load

        preset = load(flags[flags.index("--assignment") + 1]).preset
    preset = preset or "baseline"
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    named = {flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")}
    given = fields & (named | {name.removeprefix("no_") for name in named})
    config = get_preset(preset, has_weights=True).train
    if {"epochs", "steps"} <= given:
        raise InputError("--epochs and --steps are two ways to say the budget: name one of them")
    if "epochs" in given:
        config = dataclasses.replace(config, steps=0)
    return Train(preset=preset, config=config, given=tuple(sorted(given)))


def say_demands(rules: Assignment, model: nn.Module, dataset: ImageDataset, config: TrainConfig) -> None:
    """Print what the assignment demands of the network, before it is trained; what fails, or will, is said on stderr, too."""
    from limits.constraints import check, format_table
    from results.demands import settings_that_fail

    found = check(model, dataset.image_size, dataset.num_channels, assignment=rules)
    if found:
        print(format_table(found), flush=True)
    failed = [one.name for one in found if one.passed is False and not one.is_bonus]
    if failed:
        print(f"note: the network fails demands of the assignment {rules.name}: {', '.join(failed)}", file=sys.stderr)
    if rules.dataset and data_place(dataset.name) != data_place(rules.dataset):
        print(f"note: the assignment {rules.name} demands the data set {rules.dataset}, not {dataset.name}", file=sys.stderr)
    if failing := settings_that_fail(rules, dataset, config):
        wrong = ", ".join(f"{one.name} {one.value} (demanded: {one.limit})" for one in failing)
        print(f"note: the settings fail demands of the assignment {rules.name}: {wrong}", file=sys.stderr)
    if rules.last_epochs and not config.steps and config.epochs < rules.last_epochs:
        print(
            f"note: the training lasts {config.epochs:g} epochs, but the assignment {rules.name} judges {rules.last_epochs}",
            file=sys.stderr,
        )
    if rules.last_epochs and config.eval_every:
        print(
            f"note: the assignment {rules.name} judges the weights after whole epochs: --eval-every must divide the steps of one",
            file=sys.stderr,
        )
    if rules.max_epochs and not config.steps and config.epochs > rules.max_epochs:
        print(
            f"note: the training lasts {config.epochs:g} epochs, but the assignment {rules.name} allows {rules.max_epochs:g}",
            file=sys.stderr,
        )
