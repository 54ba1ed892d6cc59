"""ConvSprint's command line: `python main.py COMMAND --help`. Without a command it sprints; `lab` has commands of its own."""

import time

STARTED = time.perf_counter()  # before the imports: they are part of what a user waits for

import os  # noqa: E402

# GNU's OpenMP waits for other threads by spinning. With its default, a busy neighbour makes a sprint five times slower than
# with this limit, which costs nothing on a quiet machine (docs/sprint.md). It is read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# In a group of processes, what torch's C++ side would write of a lost or missing one in pages, distributed.py says in a line.
if "WORLD_SIZE" in os.environ:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

import signal  # noqa: E402

# Until the command runs, Ctrl-C ends the process at once: main() has a line to say for it, an import under way only a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib  # noqa: E402
import dataclasses  # noqa: E402
import io  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union  # noqa: E402

import tyro  # noqa: E402

from config import PRESETS, InputError, Preset, TrainConfig, get_preset  # noqa: E402
from course.commands import COMMANDS as COURSE_COMMANDS  # noqa: E402
from results.commands import COMMANDS as RESULT_COMMANDS  # noqa: E402

if TYPE_CHECKING:
    import torch

    from training import Trainer

ROOT = Path(__file__).resolve().parent


@dataclasses.dataclass
class Sprint:
    """Train the constrained network until it exceeds the target accuracy on the whole test split, on the clock.

    Exit status: 0 reached, 3 not reached, 2 bad input, 130 interrupted.
    """

    preset: str = "sprint"
    """Network and hyper-parameters: sprint, fast85 or fast90, or any other with --target."""
    dataset: str = "auto"
    """cifar10, cifar100, mnist, fashion_mnist, digits, shapes, folder:PATH, npz:FILE; auto is cifar10 where it can be had, else
    shapes."""
    data_dir: Path = ROOT / "data"
    """Where the data sets are, or are downloaded to."""
    seed: int = 0
    """Seeds the weights, the split and the order of the images."""
    seeds: int = 1
    """Run this many consecutive seeds, each in a fresh process."""
    target: float | None = None
    """Test accuracy to exceed, above 0 and below 1; default: the preset's."""
    threads: int = 0
    """Threads torch computes with; 0 leaves it to torch (one a core)."""
    conv: Literal["torch", "by-hand"] = "torch"
    """Whose convolution computes the network: torch's, or lab/conv2d.py's, which is slower and equal but for rounding."""
    json: Path | None = None
    """Write the record of the run or runs here."""
    report: bool = False
    """Write a page with curves, confusion matrix and mistakes to runs/."""

    def run(self) -> int:
        target = get_preset(self.preset).train.early_exit_accuracy if self.target is None else self.target
        if target is None:
            raise InputError(f"the preset {self.preset} has no target: say which test accuracy to exceed with --target")
        if not 0 < target < 1:
            raise InputError(f"--target is {target}: it must be above 0 and below 1 (0.55 is 55%)")
        if self.seeds < 1 or self.seed < 0 or self.threads < 0:
            raise InputError("--seeds must be 1 or more, --seed and --threads 0 or more")
        from commands import sprint
        from images import data
        from utils import demand_writable, write_json

        if self.json:
            demand_writable(self.json.parent)
        dataset = data.resolve_auto(self.dataset, self.data_dir)
        if self.seeds > 1:
            record = sprint.run_seeds(
                dataset, self.data_dir, self.preset, self.seed, self.seeds, target, self.threads, self.json, self.conv
            )
            return 3 if record["misses"] else 0
        set_threads(self.threads)
        run, trainer = sprint.run_once(data.load(dataset, self.data_dir), self.preset, self.seed, target, network_class(self.conv))
        if self.json:
            run["process_seconds"] = time.perf_counter() - STARTED
            write_json(self.json, sprint.make_record(dataset, self.preset, target, [run]))
        if self.report:
            write_report(ROOT / "runs" / f"{self.preset}-{trainer.dataset.file_name}", f"Sprint of {self.preset}", trainer)
        return 0 if run["reached"] else 3


@dataclasses.dataclass
class Train:
    """Train a preset for its whole budget; the held-out images guide it, the test split is looked at once, at the end.

    Every field of the preset's configuration can be overridden; the defaults below are the preset's.
    """

    preset: str = "baseline"
    """Network and hyper-parameters to start from."""
    dataset: str = "auto"
    """As for sprint."""
    data_dir: Path = ROOT / "data"
    """Where the data sets are, or are downloaded to."""
    out: Path | None = None
    """Folder of the checkpoint, the weights and the report (default: runs/PRESET-DATASET)."""
    resume: bool = False
    """Go on from the checkpoint in that folder, exactly as if the run had not stopped."""
    report: bool = False
    """Write a page with curves, confusion matrix and mistakes there."""
    tensorboard: bool = False
    """Log curves, graph, histograms, images, confusion matrix and hyper-parameters to tensorboard/ there."""
    threads: int = 0
    """Threads torch computes with; 0 leaves it to torch (one a core)."""
    conv: Literal["torch", "by-hand"] = "torch"
    """As for sprint."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=lambda: PRESETS["baseline"].train)

    def run(self) -> int:
        preset = get_preset(self.preset)
        if self.conv == "by-hand" and self.config.compile:
            raise InputError("torch.compile does not take the convolution by hand: leave out --compile or --conv by-hand")
        from learning import distributed
        from utils import resolve_device

        set_threads(self.threads)
        with distributed.group(resolve_device(self.config.device)):
            return self._train(preset)

    def _train(self, preset: Preset) -> int:
        from images import data
        from learning import distributed
        from training import Trainer
        from utils import (
            PRECISIONS,
            count_mult_adds,
            count_parameters,
            provenance,
            save_weights,
            seed_everything,
            summary,
            write_json,
        )

        with distributed.main_first():
            dataset = data.load(data.resolve_auto(self.dataset, self.data_dir), self.data_dir, self.config.image_size)
        out = self.out or ROOT / "runs" / f"{self.preset}-{dataset.file_name}"
        seed_everything(self.config.seed)
        model = network_class(self.conv)(dataset.num_channels, dataset.num_classes, **preset.net)
        print(summary(model, dataset.num_channels, dataset.image_size), flush=True)
        log = None
        if self.tensorboard and distributed.is_main():
            from results.tensorboard_log import TensorBoardLog

            log = TensorBoardLog(out / "tensorboard")
        trainer = Trainer(
            model,
            dataset,
            self.config,
            out,
            card={
                "preset": self.preset,
                "net": preset.net,
                "parameters": count_parameters(model),
                "mult_adds": count_mult_adds(model, dataset.num_channels, dataset.image_size),
            },
            observer=log,
        )
        # In fp32 every machine finds the same accuracy; bf16 is rounded differently by different processors.
        precision = "fp32"
        with log or contextlib.nullcontext():
            history = trainer.fit(self.resume)
            test_loss, test_accuracy = trainer.evaluate(dataset.test, PRECISIONS[precision])
            if log:
                log.tested(trainer.step, test_loss, test_accuracy)
        if not distributed.is_main():
            return 0
        last = history.evaluations[-1]
        card = trainer.card | {
            "test_accuracy": test_accuracy,
            "val_accuracy": last.val_accuracy,
            "precision": precision,
            "epochs": last.epoch,
            "seconds": history.total_seconds,
            "seed": self.config.seed,
            **provenance(),
        }
        save_weights(out / "model.safetensors", trainer.trained_model.state_dict(), card)
        write_json(
            out / "run.json", {"card": card, "config": dataclasses.asdict(self.config), "history": dataclasses.asdict(history)}
        )
        print(
            f"test accuracy {test_accuracy:.2%} (loss {test_loss:.3f}), held-out accuracy {last.val_accuracy:.2%}, "
            f"{last.epoch:g} epochs in {history.total_seconds:.1f} s, weights in {out / 'model.safetensors'}"
        )
        if self.report:
            write_report(out, f"Training of {self.preset}", trainer, PRECISIONS[precision])
        return 0


@dataclasses.dataclass
class Summary:
    """The torchinfo table of a preset's network, and the table of its constraints."""

    preset: str = "sprint"
    """Whose network."""
    channels: int = 3
    """Channels of the images."""
    classes: int = 10
    """Number of classes."""

    def run(self) -> int:
        preset = get_preset(self.preset)
        if self.channels < 1 or self.classes < 2:
            raise InputError("--channels must be 1 or more, --classes 2 or more")
        from limits.showing import show
        from model import Net

        return show(Net(self.channels, self.classes, **preset.net), self.channels)


@dataclasses.dataclass
class Check:
    """The same tables for anybody's network. The class's code is run.

    Exit status: 0 every constraint is met, 1 any fails, 3 none fails but not all can be known, 2 bad input.
    """

    network: tyro.conf.Positional[str]
    """FILE.py:CLASS, NOTEBOOK.ipynb:CLASS or MODULE:CLASS; it is built as CLASS(num_channels=3, num_classes=10)."""
    blocks: str = ""
    """The blocks' modules where they are not named C1, C2, C3, C4, O and not found: layer1,layer2,layer3,layer4 or five with the
    output block."""

    def run(self) -> int:
        from limits.loading import load_network
        from limits.showing import show

        return show(load_network(self.network), 3, [name.strip() for name in self.blocks.split(",")] if self.blocks else ())


COMMANDS = {"sprint": Sprint, "train": Train, **RESULT_COMMANDS, "summary": Summary, "check": Check, **COURSE_COMMANDS}


def set_threads(threads: int) -> None:
    """Limit torch to `threads`; 0 leaves its own choice."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def network_class(conv: str) -> type:
    """`Net`, or where `conv` is by-hand the one of lab/conv2d.py."""
    if conv == "by-hand":
        from lab.conv2d import ByHandNet

        return ByHandNet
    from model import Net

    return Net


def write_report(folder: Path, title: str, trainer: "Trainer", precision: "torch.dtype | None" = None) -> None:
    """Write the page of a finished training to `folder` and say where it is; `precision` as for Trainer.predict."""
    from limits.constraints import check
    from results import report
    from utils import command_line, hardware, versions

    dataset = trainer.dataset
    page = report.write_report(
        folder,
        title=f"{title} on {dataset.name}",
        command=command_line(),
        history=trainer.history,
        test=dataset.test,
        logits=trainer.predict(dataset.test, precision),
        card=trainer.card,
        config=dataclasses.asdict(trainer.config),
        constraints=check(trainer.trained_model, dataset.image_size, dataset.num_channels),
        environment={**hardware(), **versions()},
    )
    print(f"report in {page}")


def parse(arguments: list[str]) -> Any:
    """The command of `arguments`, filled in. Raises InputError, in one line, where they are wrong."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["sprint", *arguments]
    if arguments[0] == "lab":
        import lab.commands

        return parse_one_of(lab.commands.COMMANDS, arguments[1:] or ["--help"], "main.py lab", lab.commands.__doc__)
    # The defaults that `train --help` shows, and that the other fields override, are the chosen preset's.
    flags = [text for argument in arguments for text in argument.split("=", 1)]
    preset = flags[flags.index("--preset") + 1] if "--preset" in flags[:-1] and arguments[0] == "train" else "baseline"
    return parse_one_of(COMMANDS, arguments, "main.py", __doc__, {"train": Train(preset=preset, config=get_preset(preset).train)})


def parse_one_of(
    commands: dict[str, type],
    arguments: list[str],
    program: str,
    description: str | None,
    defaults: dict[str, object] | None = None,
) -> Any:
    """The command among `commands` that `arguments` begin with, filled in; `defaults` of some of them may come ready-made."""
    if arguments[0] not in (*commands, "-h", "--help"):
        raise InputError(f"unknown command '{arguments[0]}': there are {', '.join(commands)}")
    defaults = defaults or {}
    choices = tuple(
        Annotated[command, tyro.conf.subcommand(name, **({"default": defaults[name]} if name in defaults else {}))]
        for name, command in commands.items()
    )
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Union[choices], args=arguments, prog=program, description=description)  # noqa: UP007 (made at run time)
    except SystemExit as stop:
        if stop.code:  # tyro frames its complaint in a box: the lines above the first rule say what is wrong
            text = [line.strip("│ ") for line in complaint.getvalue().splitlines()[1:]]
            end = next((i for i, line in enumerate(text) if line.startswith(("─", "╰"))), len(text))
            raise InputError(" ".join(text[:end])) from None
        raise


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit status."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        command = parse(arguments)
        if os.environ.get("WORLD_SIZE", "1") != "1" and not isinstance(command, Train):
            raise InputError("only train runs in several processes: start the other commands without torchrun")
        status = command.run()
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as by `| head`, which has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as error:
        print(f"interrupted{f': {error}' if str(error) else ''}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
