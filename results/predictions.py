"""What `predict` and `evaluate` show: the classes of image files, the accuracy on a test set, a contact sheet."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.utils import disp_len

from config import InputError
from images import data, drawings
from images.files import EXPLANATION, IMAGE_ENDINGS, printable, say_left_out, some_of, walk_images
from images.loading import say_copies
from images.own_images import cut_test_split
from learning.inference import Prediction, TrainedNetwork
from results.explaining import Explainer, enlarged, png
from utils import write_atomically

SHEET_IMAGES = 100
"""Images on a contact sheet, at most."""
CELL, PICTURE, LINE = 128, 112, 16
"""Pixels on a contact sheet: width of a cell, side of the picture in it, height of a line of text."""
RED, GREY = "#b3261e", "#5f6368"

Top = list[tuple[str, float]]  # classes and their probabilities, the best first


def show_files(
    network: TrainedNetwork,
    named: Sequence[Path],
    top: int,
    as_json: bool,
    sheet: Path | None,
    explain: bool = False,
    overwrite: bool = False,
) -> int:
    """Print the `top` most probable classes of the image files and folders `named`; 1 if any gave no prediction, 2 if they hold no
    file to predict, else 0.

    Each fault is named on stderr, and what was changed in images is summed up there. With `explain`, a picture of the evidence
    for the first class is written beside each image. Raises InputError where the network cannot be explained, or there is such a
    picture already and it is not to be overwritten.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of oddities in files that it can read
    explainer = Explainer(network.model, network.card, network.device) if explain else None
    paths, faults = find_images(named)
    if explainer and not overwrite:
        _demand_new([_explanation_of(path) for path in paths])
    table = Table([printable(path) for path in paths], network.card["classes"])
    predicted: list[dict[str, Any] | None] = []  # None for one that is in a printed row
    on_sheet: list[tuple[np.ndarray, Top, str, bool]] = []
    changed: dict[str, list[tuple[str, str]]] = {}
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if paths and not as_json:
        print(table.head(min(top, len(network.card["classes"]))))
    started = time.perf_counter()
    # Rows that scroll by show the progress where they can be seen.
    for prediction in tqdm(
        network.predict_files(paths, top),
        total=len(paths),
        unit=" images",
        leave=False,
        disable=True if sys.stdout.isatty() and not as_json else None,
    ):
        name = printable(prediction.path)
        if prediction.fault:
            faults.append(prediction.fault)
            tqdm.write(f"error: {prediction.fault}", file=sys.stderr)
            continue
        if explainer:
            _write_explanation(explainer, prediction)
        if as_json:
            entry = {"path": name, "top": as_json_list(prediction.top), "changes": prediction.changes}
            predicted.append(entry | ({"explanation": f"{name}{EXPLANATION}"} if explainer else {}))
        else:
            print(table.row(name, prediction.top))
            predicted.append(None)
        if sheet and len(on_sheet) < SHEET_IMAGES:
            assert prediction.image is not None  # as there is no fault
            on_sheet.append((prediction.image, prediction.top, printable(prediction.path.name), False))
        for change in prediction.changes:
            changed.setdefault(change.split(" from ")[0], []).append((name, change))
    seconds = time.perf_counter() - started
    for examples in changed.values():
        (name, change), count = examples[0], len(examples)
        print(f"note: {name}: {change}" + (f"; likewise {count - 1:,} more" if count > 1 else ""), file=sys.stderr)
    if as_json:
        print(json.dumps({"predictions": predicted, "faults": faults, "seconds": seconds}, indent=1))
    elif len(predicted) > 1:
        print(f"note: {len(predicted):,} images in {seconds:.2f} s, {len(predicted) / seconds:,.0f} a second", file=sys.stderr)
    if explainer and predicted:
        pictures = f"{len(predicted):,} picture{'s' * (len(predicted) > 1)} by Grad-CAM"
        print(f"note: {pictures} written beside the images, with {EXPLANATION} after their names", file=sys.stderr)
    if sheet and on_sheet:
        write_sheet(sheet, on_sheet)
    return (1 if paths else 2) if faults else 0


def _explanation_of(path: Path) -> Path:
    return path.with_name(path.name + EXPLANATION)


def _demand_new(paths: Sequence[Path]) -> None:
    if present := [printable(path) for path in paths if os.path.lexists(path)]:
        raise InputError(f"{some_of(present)} written by an earlier --explain would be replaced: pass --overwrite to allow it")


def _write_explanation(explainer: Explainer, prediction: Prediction) -> None:
    """The image as the network receives it, and to the right with the evidence for its most probable class."""
    assert prediction.image is not None  # as there is no fault
    images = prediction.image[None]
    explained = explainer.pictures(images, [explainer.card["classes"].index(prediction.top[0][0])])
    write_atomically(_explanation_of(prediction.path), png(np.hstack([*enlarged(images), *explained])))


def load_test_images(network: TrainedNetwork, name: str, data_dir: Path, skip_unreadable: bool = False) -> data.ImageDataset:
    """The data set of that name, whose test split the network is to be evaluated on.

    Of a folder of classes without splits these are all images, unless the network was trained on a part of them: then it is the
    part that it was not trained on. Which it is, is said on stderr.
    """
    card = network.card
    dataset = data.load(name, data_dir, card["image_size"][0], skip_unreadable, card["classes"], only_test=True)
    if len(dataset.train.labels):
        _say_copies_of_training(network, dataset, data_dir)
        return dataset
    whole, known = len(dataset.test.labels), card.get("data")
    if known and sum(known[part] for part in ("train", "val", "test")) == whole or name == card["dataset"]:
        train, test = cut_test_split(dataset.test)
        split = replace(dataset, train=train, test=test)
        if not known or split.content() == known:
            print(
                f"note: the network was trained on images of this folder: only the {len(test.labels):,} others are evaluated",
                file=sys.stderr,
            )
            return split
    print(f"note: all {whole:,} images of the folder are evaluated", file=sys.stderr)
    _say_copies_of_training(network, dataset, data_dir)
    return dataset


def _say_copies_of_training(network: TrainedNetwork, dataset: data.ImageDataset, data_dir: Path) -> None:
    """Say on stderr how many test images of other data are images that the network was trained on, where those are still there."""
    card = network.card
    if ":" not in dataset.name or ":" not in card["dataset"] or dataset.name == card["dataset"] or not card.get("data"):
        return
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            trained = data.load(card["dataset"], data_dir, card["image_size"][0], True, card["classes"])
    except InputError:  # moved or changed since
        return
    if trained.content() == card["data"]:
        say_copies(replace(dataset, train=trained.train, val=None))


def show_accuracy(
    network: TrainedNetwork,
    dataset_name: str,
    data_dir: Path,
    as_json: bool = False,
    sheet: Path | None = None,
    skip_unreadable: bool = False,
) -> int:
    """Print accuracy and loss on the test split of a data set; its first images are those of the contact sheet."""
    card = network.card
    dataset = load_test_images(network, dataset_name, data_dir, skip_unreadable)
    loss, accuracy = network.evaluate(dataset)
    count = len(dataset.test.labels)
    card_accuracy = card.get("test_accuracy") if dataset.name == card["dataset"] else None
    if as_json:
        print(
            json.dumps(
                {"dataset": dataset.name, "images": count, "accuracy": accuracy, "loss": loss, "card_accuracy": card_accuracy},
                indent=1,
            )
        )
    else:
        print(
            f"accuracy {accuracy:.2%}, loss {loss:.4f} on the {count:,} test images of {dataset.name}"
            + (f"; the weights' card says {card_accuracy:.2%}" if card_accuracy is not None else "")
        )
    if sheet:
        _sheet_of_known(sheet, network, dataset.test.images[:SHEET_IMAGES], dataset.test.labels[:SHEET_IMAGES])
    return 0


def show_drawings(network: TrainedNetwork, data_dir: Path, as_json: bool, sheet: Path | None) -> int:
    """What can be shown of weights for CIFAR-10 where that data set is not: predictions of the project's own drawings."""
    classes = network.card["classes"]
    if tuple(classes) != drawings.CLASSES:
        raise InputError(f"CIFAR-10 is not in {data_dir} and cannot be downloaded, and the weights have other classes")
    images, labels = drawings.render()
    tops = network.most_probable(network.logits(images), top=5)
    correct = sum(top[0][0] == classes[label] for top, label in zip(tops, labels, strict=True))
    accuracy = network.card.get("test_accuracy")
    print(
        f"note: CIFAR-10 is not in {data_dir} and cannot be downloaded: here are {len(labels)} drawings of the project's own. "
        "They show that the weights work on this machine, not how accurate they are on photographs"
        + (f"; their card says {accuracy:.2%} for the test split" if accuracy is not None else ""),
        file=sys.stderr,
    )
    if as_json:
        print(
            json.dumps(
                {
                    "dataset": "drawings",
                    "images": len(labels),
                    "correct": correct,
                    "card_accuracy": accuracy,
                    "predictions": [
                        {"true": classes[label], "top": as_json_list(top)} for top, label in zip(tops, labels, strict=True)
                    ],
                },
                indent=1,
            )
        )
    else:
        names = [f"drawing of {classes[label]}" for label in labels]
        table = Table(names, classes)
        print(table.head(3), *(table.row(name, top[:3]) for name, top in zip(names, tops, strict=True)), sep="\n")
        print(f"{correct} of {len(labels)} drawings recognised")
    if sheet:
        _sheet_of_known(sheet, network, images, labels)
    return 0


def find_images(named: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The image files of `named`: files as they are, of folders and the folders within all files with an image's ending.

    Sorted within a folder; other files and what begins with a dot are left out, with a note. The second list names, each in one
    line, what is not there, cannot be entered or holds no image.
    """
    found, faults = [], []
    for path in named:
        if os.path.isdir(path):
            images, others = walk_images(
                path, lambda error: faults.append(f"cannot read the folder {printable(error.filename)}: {error.strerror}")
            )
            say_left_out(path, others)
            if not images:
                faults.append(f"{printable(path)} holds no image: none of its files ends in {', '.join(IMAGE_ENDINGS)}")
            found += images
        elif os.path.isfile(path):
            found.append(path)
        else:
            what = "is not a regular file or folder" if os.path.exists(path) else "does not exist"
            faults.append(f"{printable(path)} {what}")
    return found, faults


class Table:
    """Rows of aligned plain text, which can be printed one by one: `names`, and beside each some of `classes`."""

    def __init__(self, names: Sequence[str], classes: Sequence[str]) -> None:
        self.name_width = max(map(disp_len, ["image", *names]))
        self.class_width = max(map(disp_len, classes))

    def head(self, top: int) -> str:
        return f"{'image':<{self.name_width}}" + "".join(f"  {rank:<{self.class_width + 7}}" for rank in range(1, top + 1)).rstrip()

    def row(self, name: str, top: Top) -> str:
        return _padded(name, self.name_width) + "".join(f"  {_padded(name, self.class_width)} {p:6.1%}" for name, p in top)


def _padded(text: str, width: int) -> str:
    """`text` with spaces up to `width` columns of a terminal, of which Chinese characters and emoji take two each."""
    return text + " " * (width - disp_len(text))


def write_sheet(path: Path, cells: Sequence[tuple[np.ndarray, Top, str, bool]]) -> None:
    """Write a contact sheet as a PNG and say where it is. Raises InputError where it cannot be written.

    `cells` are (image (H, W, C) uint8, its most probable classes, a line about it, whether that line is to be red).
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 12)
    columns = min(10, math.ceil(math.sqrt(len(cells))))
    height = PICTURE + 3 * LINE + 8
    sheet = Image.new("RGB", (columns * CELL + CELL - PICTURE, math.ceil(len(cells) / columns) * height + 8), "white")
    draw = ImageDraw.Draw(sheet)

    def write(x: int, y: int, text: str, color: str) -> None:
        while draw.textlength(text, font) > CELL - 6:
            text = text[:-2] + "…"
        draw.text((x, y), text, color, font)

    for i, (image, top, line, in_red) in enumerate(cells):
        x, y = CELL - PICTURE + i % columns * CELL, CELL - PICTURE + i // columns * height
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        sheet.paste(picture.resize((PICTURE, PICTURE), Image.Resampling.NEAREST), (x, y))
        for k, (name, probability) in enumerate(top[:2]):
            write(x, y + PICTURE + 2 + k * LINE, f"{name} {probability:.0%}", GREY if k else "black")
        write(x, y + PICTURE + 2 + 2 * LINE, line, RED if in_red else GREY)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    write_atomically(path, buffer.getvalue())
    print(f"note: contact sheet of {len(cells)} images in {path}", file=sys.stderr)


def _sheet_of_known(path: Path, network: TrainedNetwork, images: np.ndarray, labels: np.ndarray) -> None:
    truth = [network.card["classes"][label] for label in labels]
    tops = network.most_probable(network.logits(images), top=2)
    write_sheet(
        path, [(image, top, f"true: {name}", name != top[0][0]) for image, top, name in zip(images, tops, truth, strict=True)]
    )


def as_json_list(top: Top) -> list[dict[str, Any]]:
    """Classes and their probabilities as `predict --json` prints them."""
    return [{"class": name, "probability": probability} for name, probability in top]
