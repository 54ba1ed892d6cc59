"""The report of a run: learning curves, confusion matrix, mistakes; as PNGs and as one self-contained HTML page."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from results.canvas import data_uri, png
from results.figures import MAX_NAMED_CLASSES, confident_mistakes, confusion_figure, curves_figure, mistakes_figure, run_figure
from results.notes import place
from results.report_markdown import as_markdown
from utils import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from images.data import Split
    from learning.history import History
    from limits.constraints import Constraint
    from results.explaining import Explainer
    from results.notes import Section

TITLES = (
    "Learning curves",
    "Confusion matrix",
    "Per-class accuracy",
    "Most confident mistakes",
    "Configuration",
    "Network",
    "Environment",
)
"""Of the sections that every page has."""
OF_THE_TRAINING = {
    *("command", "hardware", "versions", "precision", "seed"),
    *("test_accuracy", "val_accuracy", "epochs", "images_seen", "seconds"),
}
"""What a card says of a finished training, which is elsewhere on the page."""
NAMES = {"mult_adds": "mult_adds (torchinfo's, with normalisation)"}
"""Under which entries of a card are shown, where an assignment's demand of the same name counts something else."""
MAX_THUMBNAIL = 64  # longest side in pixels of an image inlined in the page, which must stay small
EXPLANATION_SIDE = 96  # of an explanation there, which is smooth


def write_report(
    folder: Path,
    *,
    title: str,
    command: str,
    history: History,
    test: Split,
    logits: Tensor,
    card: dict[str, Any],
    config: dict[str, Any],
    constraints: list[Constraint],
    environment: dict[str, Any],
    explainer: Explainer | None = None,
    assignment: str = "",
    layers: Sequence[tuple[str, str, str, str]] = (),
    augmented: bytes | None = None,
    author: str = "",
    notes: Sequence[Section] = (),
) -> Path:
    """Write the report of a run into `folder`: report.html, the same as report.md, and their pictures.

    These are curves.png, confusion.png, mistakes.png, augmented.png where there is such a one, and run.png, all in one.

    Args:
        folder: made where it is missing.
        title: heading of the page.
        command: the command line that gives the run again.
        history: may hold no evaluation.
        test: N images and labels that the run was not trained on.
        logits: (N, num_classes) float, of `test`.
        card: of the network; must have "classes", and "parameters" is among the headline figures where it is there.
        config: hyper-parameters; "early_exit_accuracy", where set, is drawn as the target.
        constraints: may be empty.
        environment: hardware and versions; may be nested.
        explainer: of the network, to show the evidence for each mistake beside it.
        assignment: the name of the one whose demands `constraints` are, where one was named.
        layers: name, operation, size of the result and receptive field of each layer.
        augmented: a PNG of training images, and below each what augmentation makes of it.
        author: whose work it is.
        notes: the author's own words. Those under the title of a section of the page go into it, others are sections of their own.

    Returns the path of the page, which loads nothing from outside and runs no script. Raises InputError where `folder` cannot
    be written.
    """
    from results.demands import Training  # with torch, for which the --help of the lab does not wait

    classes = card["classes"]
    probabilities = logits.double().softmax(1).numpy()
    predictions = probabilities.argmax(1)
    accuracy = float((predictions == test.labels).mean())
    target = config.get("early_exit_accuracy")

    mistaken = confident_mistakes(test.labels, probabilities)
    explanations = explainer.pictures(test.images[mistaken], predictions[mistaken], EXPLANATION_SIDE) if explainer else []
    curves = png(cast("Figure", curves_figure(history, target, accuracy)))
    confusion = png(cast("Figure", confusion_figure(test.labels, predictions, classes)))
    constraints_title = "What the assignment demands" if assignment else "Constraints"
    known = [*TITLES, constraints_title, *(["Layers"] if layers else []), *(["Augmented images"] if augmented else [])]
    values: dict[str, Any] = {
        "title": title,
        "author": author,
        "notes": place(notes, known),
        "command": command,
        "classes": classes,
        "accuracy": accuracy,
        "target": target,
        "history": history,
        "num_test": len(test.labels),
        "num_correct": int((predictions == test.labels).sum()),
        "parameters": card.get("parameters"),
        "curves": data_uri(curves),
        "curves_text": _describe_curves(history, Training(card, config, history).has_val_split),
        "augmented": augmented and data_uri(augmented),
        "augmented_text": "Training images, and below each its augmented versions, as the network receives them.",
        "confusion": data_uri(confusion),
        "confusion_text": _describe_confusion(test.labels, predictions, classes),
        "named": len(classes) <= MAX_NAMED_CLASSES,
        "per_class": per_class_scores(test.labels, predictions, len(classes)),
        "mistakes": [
            {
                "image": data_uri(_thumbnail(test.images[i])),
                "explanation": None if explanation is None else data_uri(_thumbnail(explanation, EXPLANATION_SIDE)),
                "index": i,
                "predicted": classes[predictions[i]],
                "probability": probabilities[i].max(),
                "true": classes[test.labels[i]],
            }
            for i, explanation in itertools.zip_longest(mistaken, explanations)
        ],
        "constraints": constraints,
        "constraints_title": constraints_title,
        "assignment": assignment,
        "layers": layers,
        "network": _rows({NAMES.get(key, key): value for key, value in card.items() if key not in {"classes", *OF_THE_TRAINING}}),
        "configuration": _rows({key: value for key, value in config.items() if not (key == "epochs" and config.get("steps"))}),
        "environment": _rows(environment),
    }
    page = render(Path(__file__).with_name("report.html.jinja"), **values)
    write_atomically(folder / "curves.png", curves)
    write_atomically(folder / "confusion.png", confusion)
    mistakes = cast("Figure", mistakes_figure(test.images, test.labels, probabilities, classes))
    write_atomically(folder / "mistakes.png", png(mistakes))
    write_atomically(folder / "run.png", png(run_figure(title, history, target, test, probabilities, classes), dpi=100))
    if augmented:
        write_atomically(folder / "augmented.png", augmented)
    write_atomically(folder / "report.md", as_markdown(values).encode("utf-8", "replace"))
    write_atomically(folder / "report.html", page.encode("utf-8", "replace"))
    return folder / "report.html"


def per_class_scores(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> list[tuple[float, float, float, int]]:
    """Precision, recall (the accuracy within the class), F1, each 0 to 1, and the number of images, of every class."""
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(labels, predictions, labels=range(num_classes), zero_division=0)
    return [(float(p), float(r), float(f1), int(support)) for p, r, f1, support in zip(*scores, strict=True)]


def _thumbnail(image: np.ndarray, side: int = MAX_THUMBNAIL) -> bytes:
    """(H, W, C) uint8 as a small PNG file."""
    from PIL import Image

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _describe_curves(history: History, has_val_split: bool) -> str:
    """The curves in words, for those who cannot see them."""
    if not history.evaluations:
        return "The run made no evaluation: there are no curves."
    last = history.evaluations[-1]
    stand_in = "" if has_val_split else " There were no validation images: the training images, not augmented, stand in for them."
    kept = f" Kept were {history.kept}: validation accuracy {history.val_accuracy:.1%}." if history.kept else ""
    return (
        f"At the last of {len(history.evaluations)} evaluations, after {last.images_seen:,} images: training loss "
        f"{last.train_loss:.3f}, accuracy {last.train_accuracy:.1%}; validation loss {last.val_loss:.3f}, accuracy "
        f"{last.val_accuracy:.1%}.{kept}{stand_in}"
    )


def _describe_confusion(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]) -> str:
    """The most frequent confusions in words."""
    wrong = predictions != labels
    if not wrong.any():
        return "No image was taken for one of another class."
    pairs, counts = np.unique(np.stack([labels[wrong], predictions[wrong]]), axis=1, return_counts=True)
    worst = np.argsort(-counts, kind="stable")[:3]
    return (
        "Most frequent: "
        + "; ".join(
            f"{classes[pairs[0, k]]} taken for {classes[pairs[1, k]]}, {counts[k]:,} of {(labels == pairs[0, k]).sum():,}"
            for k in worst
        )
        + "."
    )


def _rows(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of each entry as text, entries of nested dicts under dotted names."""
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(value)))
    return rows


def _text(value: Any) -> str:
    """`value` in a table; of lists in a list, semicolons part the outer one."""
    if isinstance(value, (list, tuple)):
        return ("; " if any(isinstance(item, (list, tuple)) for item in value) else ", ").join(map(_text, value))
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def render(template: Path, **values: Any) -> str:
    """A page from a template, which may extend one beside it or one of this folder; every value HTML-escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["duration"] = _duration
    environment.filters["percent"] = lambda share, digits=1: f"{share:.{digits}%}"
    return environment.get_template(template.name).render(values)
