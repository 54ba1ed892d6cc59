"""The commands that use what a training leaves: evaluate, predict, report, export, serve."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from config import InputError
from utils import ASSIGNMENT, NOTES, ROOT, STATED

if TYPE_CHECKING:
    from learning.inference import TrainedNetwork

DEFAULT_WEIGHTS = ROOT / "weights" / "accurate.safetensors"


@dataclasses.dataclass
class Evaluate:
    """Print the accuracy of trained weights on the whole test split."""

    weights: Path
    """A .safetensors file or a checkpoint."""
    model: str = ""
    """For weights of a network of your own whose file has moved: FILE.py:CLASS."""
    dataset: Annotated[str | None, STATED] = None
    """Data set, as for sprint (default: the one the weights were trained on). All images of a folder without splits are evaluated,
    unless the weights were trained on that folder."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    skip_unreadable: bool = False
    """Leave unreadable image files out instead of refusing the folder."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""

    def run(self) -> int:
        from results import predictions

        network = load_network(self.weights, self.device, self.model)
        name = self.dataset or trained_on(network)
        return predictions.show_accuracy(network, name, self.data_dir, skip_unreadable=self.skip_unreadable)


@dataclasses.dataclass
class Predict:
    """Print the most probable classes of images; without images, the accuracy of the weights on their test split.

    Exit status: 0 all images predicted, 1 some images are missing or could not be read (the others are predicted), 2 bad input
    (paths that are all missing, for example), 130 interrupted.
    """

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files, and folders, which are searched recursively for images."""
    weights: Path = DEFAULT_WEIGHTS
    """A .safetensors file or a checkpoint."""
    model: str = ""
    """For weights of a network of your own whose file has moved: FILE.py:CLASS."""
    top: int = 5
    """Number of classes to print for each image, the most probable first."""
    json: bool = False
    """Print one JSON object instead of the table."""
    sheet: Path | None = None
    """Write a contact sheet to this PNG: the first 100 images, as the network receives them, with their predictions."""
    explain: bool = False
    """Write a picture of the evidence for the first class (Grad-CAM) beside each image: cat.jpg.grad-cam.png beside cat.jpg.
    Needs requirements-serve.txt."""
    overwrite: bool = False
    """Replace the pictures of an earlier --explain, and the file of --sheet."""
    dataset: Annotated[str | None, STATED] = None
    """Without images: the data set whose test split is evaluated (default: the one the weights were trained on)."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""

    def run(self) -> int:
        if self.top < 1:
            raise InputError(f"--top is {self.top}: it must be 1 or more")
        if self.images and self.dataset:
            raise InputError("--dataset is for evaluating without images: pass either images or --dataset")
        if self.explain and not self.images:
            raise InputError("--explain writes pictures beside images: pass some images")
        from images import data
        from results import predictions
        from utils import demand_new, demand_writable

        if self.sheet:
            for folder in self.images:
                if folder.is_dir() and self.sheet.resolve().is_relative_to(folder.resolve()):
                    raise InputError(
                        f"--sheet {self.sheet} lies in {folder}: it would be taken for an image there the next time; write it to "
                        "another folder"
                    )
            demand_new(self.sheet, self.overwrite)
            demand_writable(self.sheet.parent)
        network = load_network(self.weights, self.device, self.model)
        if self.images:
            return predictions.show_files(network, self.images, self.top, self.json, self.sheet, self.explain, self.overwrite)
        name = self.dataset or trained_on(network)
        if name == "cifar10" and not self.dataset and not data.has_cifar10(self.data_dir):
            return predictions.show_drawings(network, self.data_dir, self.json, self.sheet)
        return predictions.show_accuracy(network, name, self.data_dir, self.json, self.sheet)


@dataclasses.dataclass
class Report:
    """Compare runs of train, finished or not: a table, a plot of the validation accuracy (PNG), and a page with both.

    For one finished run, --page, --author and --notes write the page of train --report anew, from the weights: report.html, and
    report.md.

    Exit status: 0 done; with --assignment 1 if a run fails a demand, 3 if none fails one but one is unknown; 2 bad input.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders written by train, such as runs/baseline-cifar10."""
    out: Annotated[Path | None, STATED] = None
    """Folder to write the page and the PNG to (default: the run's own folder for one run, runs/comparison for several)."""
    assignment: Annotated[str, ASSIGNMENT] = ""
    page: bool = False
    """For one finished run, also write the page of train --report: report.html, and the same as report.md."""
    author: str = ""
    """Name of the author, for that page."""
    notes: Annotated[Path | None, NOTES] = None
    model: str = ""
    """Where your own network is now, FILE.py:CLASS, if it is not where the run's card says."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data set, whose test images that page shows."""
    skip_unreadable: bool = False
    """Leave unreadable image files out instead of refusing the folder."""
    device: str = "auto"
    """Where to compute it: auto, cpu, cuda, xpu or mps."""

    def run(self) -> int:
        wants_page = bool(self.page or self.author or self.notes)
        if wants_page and len(self.runs) > 1:
            raise InputError("--page, --author and --notes are for one run: name one")
        if not self.runs:
            raise InputError("no run given: pass one or more folders written by train, such as runs/baseline-cifar10")
        from results import comparison

        out = self.out or (self.runs[0] if len(self.runs) == 1 else ROOT / "runs" / "comparison")
        words = []
        if self.notes:
            from results import notes

            notes.demand_kept(self.notes, out)
            words = notes.read(self.notes)
        runs = comparison.load_runs(self.runs)
        if wants_page and not runs[0].is_finished:
            raise InputError(f"{runs[0].name} is not finished: go on with train --resume, then write its page")
        if self.assignment:
            from limits.assignments import load

            comparison.judge(runs, load(self.assignment), self.model)
        page = comparison.write(runs, out, self.assignment)
        print(comparison.format_table(runs))
        if self.assignment:
            from limits.constraints import exit_status, format_demands

            for run in runs:
                print(f"\n{run.name}: {format_demands(self.assignment, run.demands)}")
        print(f"page in {page}, plot in {page.with_name(comparison.PLOT)}")
        if wants_page:
            from images import data
            from results.hand_in import page_of_run

            network = load_network(self.runs[0] / "model.safetensors", self.device, self.model)
            card = runs[0].card
            side = card["image_size"][0]
            dataset = data.load(card["dataset"], self.data_dir, side, self.skip_unreadable, card["classes"])
            report = page_of_run(runs[0], network, dataset, out, self.assignment, self.author, words)
            print(f"report in {report}")
        return exit_status([one for run in runs for one in run.demands]) if self.assignment else 0


@dataclasses.dataclass
class Export:
    """Write trained weights as a file for other programs, with preprocessing and class names, and compare it with the original.

    The file takes uint8 images (N, H, W, C) of any size and gives probabilities. Exit status: 0 written, 2 bad input, or an fp32
    file that differs from the original by more than rounding.
    """

    weights: tyro.conf.Positional[Path]
    """A .safetensors file or a checkpoint."""
    format: Literal["onnx", "int8", "torch"] = "onnx"
    """onnx: ONNX in fp32. int8: ONNX with 8-bit integers, calibrated on training images. torch: torch.export (.pt2)."""
    out: Annotated[Path | None, STATED] = None
    """File to write (default: beside the weights, .onnx, .int8.onnx or .pt2)."""
    overwrite: bool = False
    """Replace an earlier export."""
    model: str = ""
    """For weights of a network of your own whose file has moved: FILE.py:CLASS."""
    dataset: Annotated[str | None, STATED] = None
    """Data set whose test split both are run on (default: the one the weights were trained on)."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""

    def run(self) -> int:
        from images import data
        from results import export
        from utils import demand_new, demand_writable

        path = self.out or self.weights.with_suffix(export.ENDINGS[self.format])
        if path.suffix in (".safetensors", ".pt", ".json", ".csv"):
            raise InputError(f"{path} has the ending of a run's own files: an export ends in .onnx or .pt2")
        demand_new(path, self.overwrite)
        network = load_network(self.weights, "cpu", self.model)
        demand_writable(path.parent)
        card = network.card
        dataset = data.load(self.dataset or trained_on(network), self.data_dir, card["image_size"][0], class_order=card["classes"])
        network.demand_fits(dataset)
        export.export(network, self.format, path, dataset.train.images[:: max(1, len(dataset.train.images) // 512)][:512])
        return export.show(export.compare(network, path, self.format, dataset), self.format, path)


@dataclasses.dataclass
class Serve:
    """Serve trained weights on this machine: a page to drop, paste or photograph images on, and POST /predict for programs.

    Requires requirements-serve.txt. The server answers this machine only (127.0.0.1). Ctrl-C ends it, with exit status 0.
    `curl -F file=@cat.jpg http://127.0.0.1:8000/predict` prints JSON: for each file the probability of every class, the best first.
    `/predict?explain=true` adds pictures by Grad-CAM.
    """

    weights: Path = DEFAULT_WEIGHTS
    """A .safetensors file or a checkpoint."""
    model: str = ""
    """For weights of a network of your own whose file has moved: FILE.py:CLASS."""
    port: int = 8000
    """Port to listen on; 0 takes any free one, which is printed."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""

    def run(self) -> int:
        network = load_network(self.weights, self.device, self.model)
        from results.explaining import INSTALL

        try:
            import pytorch_grad_cam  # noqa: F401 (else asked for only when the network is loaded, and only noted)

            from results import serving
        except ImportError as error:
            raise InputError(f"serve needs {error.name}, which is not installed: {INSTALL}") from error
        return serving.serve(network, self.weights, self.port)


COMMANDS = {"evaluate": Evaluate, "predict": Predict, "report": Report, "export": Export, "serve": Serve}


def trained_on(network: TrainedNetwork) -> str:
    """The data set that the weights were trained on. Raises InputError where it is not there any more, or was none with a name."""
    from images.sources import PUBLIC

    name = network.card["dataset"]
    kind, _, path = name.partition(":")
    if name in PUBLIC or kind in ("folder", "npz") and Path(path).exists():
        return name
    raise InputError(f"the weights were trained on {name}, which is not here: say what to evaluate on with --dataset")


def load_network(weights: Path, device: str, model: str = "") -> TrainedNetwork:
    """The network of a weights file on that device. Raises InputError that says what to do where there is none."""
    from learning.inference import TrainedNetwork
    from utils import resolve_device

    where = resolve_device(device)
    if weights == DEFAULT_WEIGHTS and not weights.exists():
        others = [path.relative_to(ROOT) for path in sorted(weights.parent.glob("*.safetensors"))]
        raise InputError(
            f"the default weights {weights} are missing: "
            + (
                f"pass others with --weights ({', '.join(map(str, others))})"
                if others
                else "`./run.sh sprint` trains some in seconds; pass them with --weights"
            )
        )
    return TrainedNetwork.load(weights, where, model)
