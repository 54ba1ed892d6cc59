"""The lab: exact subsets, trainings that are kept, statements that are true of the numbers, pages, and bad input."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import main
from config import InputError, TrainConfig
from conftest import ROOT, Tags, random_split
from images import data
from images.data import ImageDataset, Split, balanced_subset
from lab.experiments import digits_fc, figures, models, pretrained, transfer
from lab.experiments import page as page_module
from lab.experiments.command import EXPERIMENTS
from lab.experiments.digits_conv import size_rows
from lab.experiments.page import Figure, Page, Table
from lab.experiments.trainings import Images, Outcome, Part, compare, difference, run_parts, take_images
from learning.history import Evaluation, History
from training import Trainer
from utils import load_weights

NAMES = ("ant", "bee", "cat", "dog")


def numbered(count: int, first: int = 0) -> Split:
    """Images that tell which they are: each holds its own number, and its label is that number modulo 4."""
    numbers = np.arange(first, first + count)
    images = np.zeros((count, 28, 28, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = numbers % 256, numbers // 256
    return Split(images, numbers % 4)


def numbers_of(split: Split) -> np.ndarray:
    return split.images[:, 0, 0, 0].astype(int) + 256 * split.images[:, 0, 1, 0].astype(int)


@pytest.fixture(scope="module")
def numbered_set() -> ImageDataset:
    return ImageDataset("numbered", numbered(2000), numbered(400, first=4000), NAMES)


@pytest.fixture(scope="module")
def noise() -> ImageDataset:
    """Noise of 1 channel, of two classes one brighter than the other."""
    splits = [random_split(count, 2, 28, 28, 1) for count in (200, 60)]
    for split in splits:
        split.images[split.labels == 1] //= 2
    return ImageDataset("noise", *splits, ("ant", "bee"))


# Subsets


@pytest.mark.parametrize("seed", range(3))
def test_balanced_subset_has_exact_counts_and_new_labels(seed):
    split = numbered(2000)
    subset = balanced_subset(split, {"dog": 3, "ant": 0}, 16, seed)
    assert np.bincount(subset.labels).tolist() == [16, 16]
    assert (numbers_of(subset) % 4 == np.where(subset.labels == 0, 3, 0)).all()  # dog is 0 now, ant 1
    assert len(set(numbers_of(subset))) == 32
    assert set(numbers_of(subset)) < set(numbers_of(balanced_subset(split, {"dog": 3, "ant": 0}, 64, seed)))
    assert (numbers_of(subset) == numbers_of(balanced_subset(split, {"dog": 3, "ant": 0}, 16, seed))).all()
    assert set(numbers_of(subset)) != set(numbers_of(balanced_subset(split, {"dog": 3, "ant": 0}, 16, seed + 1)))
    assert len(balanced_subset(split, {"dog": 3, "ant": 0}, None, seed).labels) == 1000


def test_balanced_subset_says_how_many_there_are():
    with pytest.raises(InputError, match="'cat': 501 images were asked for, and there are 500"):
        balanced_subset(numbered(2001), {"ant": 0, "cat": 2}, 501, 0)


@pytest.mark.parametrize("seed", range(3))
def test_no_image_is_in_two_splits(numbered_set, seed):
    few, many, everything = (take_images(numbered_set, ("bee", "cat", "dog"), count, seed) for count in (16, 64, None))
    for images in (few, many, everything):
        train, val, test = (set(numbers_of(split)) for split in (images.dataset.train, images.val, images.dataset.test))
        assert not train & val and not train & test and not val & test
        assert val == set(numbers_of(few.val)) and test == set(range(4000, 4400)) - set(range(4000, 4400, 4))
        assert images.dataset.classes == ("bee", "cat", "dog")
        assert (numbers_of(images.dataset.test) % 4 == images.dataset.test.labels + 1).all()
    assert len(few.dataset.train.labels) == 48 and np.bincount(few.val.labels).tolist() == [100] * 3
    assert set(numbers_of(few.dataset.train)) < set(numbers_of(many.dataset.train)) < set(numbers_of(everything.dataset.train))
    assert len(everything.dataset.train.labels) == 3 * 400
    other = take_images(numbered_set, ("bee", "cat", "dog"), 16, seed + 1)
    assert (numbers_of(other.dataset.test) == numbers_of(few.dataset.test)).all()


def test_splits_of_a_seed_share_no_image(numbered_set):
    splits = [transfer.resplit(numbered_set, seed) for seed in range(3)]
    for dataset in splits:
        assert not set(numbers_of(dataset.train)) & set(numbers_of(dataset.test))
        assert np.bincount(dataset.test.labels).tolist() == [100] * 4
    assert set(numbers_of(splits[0].test)) != set(numbers_of(splits[1].test))


# Networks


@pytest.mark.parametrize("side", [28, 29, 32])
def test_arithmetic_of_the_sizes_is_that_of_the_network(side):
    model = models.Grayscale1Convolution(1, (side, side), 3)
    outputs: dict[str, list[int]] = {"input": [1, side, side]}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: list(out.shape[1:])}))
    model(torch.zeros(1, 1, side, side))
    for row, (name, size) in zip(size_rows(model, (side, side)), outputs.items(), strict=True):
        assert row[0].startswith(name)
        assert [int(part.replace(",", "")) for part in row[2].split(" x ")] == size
        parameters = int(row[3].split("= ")[-1].replace(",", ""))
        assert parameters == sum(p.numel() for p in getattr(model, name, nn.Identity()).parameters())


def test_gradient_norms_are_those_of_the_loss():
    torch.manual_seed(0)
    model, x, y = models.FC_only(1, (4, 4), 3), torch.randn(8, 1, 4, 4), torch.arange(8) % 3
    norms = models.gradient_norms(model, x, y)
    nn.functional.cross_entropy(model(x), y).backward()
    assert norms == {
        "linear 1": pytest.approx(model.fc1.weight.grad.norm().item()),
        "linear 2": pytest.approx(model.fc2.weight.grad.norm().item()),
    }


@pytest.mark.parametrize(
    ("name", "bias", "dead"),
    [
        ("relu", -100, True),
        ("relu", 100, False),
        ("tanh", 100, True),
        ("sigmoid", -100, True),
        ("leaky_relu", -100, False),
        ("gelu", -100, True),
        ("tanh", 0, False),
    ],
)
def test_dead_units(name, bias, dead):
    model = nn.Sequential(nn.Linear(4, 6), models.activation_layer(name), nn.Linear(6, 2))
    nn.init.zeros_(model[0].bias)
    model[0].bias.data[:2] = bias
    assert models.dead_units(model, torch.randn(50, 4)) == [(2 if dead else 0, 6)]


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_features_stay_as_they_are(noise, frozen):
    images = take_images(noise, (), 20, 0)
    config = TrainConfig(steps=5, batch_size=20, whiten_images=20, precision="fp32")
    torch.manual_seed(0)
    features, width = models.net_features(models.Net(1, 5))
    model = models.Transferred(features, width, 2, frozen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, images.dataset, config, val_split=images.val).fit()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"head.weight", "head.bias"} <= changed
    assert "features.0.0.weight" not in changed  # the whitened stem is part of what was learned
    assert any(name.startswith("features") for name in changed) == (not frozen)


# Trainings that are kept


def make_part(noise: ImageDataset, seed: int = 0, steps: int = 3, keep_weights: bool = False) -> Part:
    images = take_images(noise, (), 20, seed)
    config = TrainConfig(steps=steps, batch_size=20, eval_every=1, precision="fp32", seed=seed)
    return Part(
        {"model": "FC_only", "seed": seed}, partial(models.FC_only, 1, (28, 28), 2), images, config, keep_weights=keep_weights
    )


@pytest.fixture
def fits(monkeypatch) -> list[int]:
    """The seed of every training that is really made."""
    made, fit = [], Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self: made.append(self.config.seed) or fit(self))
    return made


def test_second_run_trains_only_what_is_missing_or_changed(noise, tmp_path, fits):
    first = run_parts([make_part(noise, seed) for seed in (0, 1)], tmp_path)
    assert fits == [0, 1]
    again = run_parts([make_part(noise, seed) for seed in (0, 1, 2)], tmp_path)
    assert fits == [0, 1, 2]
    assert again[:2] == first
    run_parts([make_part(noise, 0, steps=4), make_part(noise, 1)], tmp_path)
    assert fits == [0, 1, 2, 0]  # another configuration
    other = replace(noise, train=Split(255 - noise.train.images, noise.train.labels))
    run_parts([make_part(other, 1)], tmp_path)
    assert fits == [0, 1, 2, 0, 1]  # other images
    kept = next(path for path in tmp_path.iterdir() if json.loads(path.read_text())["facts"]["seed"] == 2)
    kept.write_text(kept.read_text()[:100])
    run_parts([make_part(noise, 2)], tmp_path)
    assert fits == [0, 1, 2, 0, 1, 2]  # a damaged file


def test_kept_weights_are_the_trained_network(noise, tmp_path):
    part = make_part(noise, keep_weights=True)
    (outcome,) = run_parts([part], tmp_path)
    (again,) = run_parts([part], tmp_path)
    model = again.model(part)
    test = part.images.dataset.test
    with torch.no_grad():
        logits = model(data.normalise(torch.from_numpy(test.images), tuple(again.mean), tuple(again.std)))
    assert logits.argmax(1).tolist() == outcome.predictions == again.predictions
    assert (np.array(outcome.predictions) == test.labels).mean() == pytest.approx(outcome.test_accuracy)
    again.weights.unlink()
    assert run_parts([part], tmp_path)[0].weights.exists()


def test_ctrl_c_keeps_what_is_done(tmp_path):
    command = [
        sys.executable,
        ROOT / "main.py",
        "lab",
        "activations",
        "--quick",
        "--steps",
        "100",
        "--seeds",
        "15",
        "--activations",
        "relu",
        "tanh",
        "--per-class",
        "8",
        "--out",
        tmp_path,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("parts/*.json"))) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    kept = len(list(tmp_path.glob("parts/*.json")))
    assert process.returncode == 130
    assert re.fullmatch(
        rf"interrupted: {kept} of 30 trainings are done and kept in .*: the same command goes on with the others\n", errors
    ), errors
    assert 2 <= kept < 30
    seeds = kept // 2
    done = subprocess.run([*command, "--seeds", str(seeds)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{2 * seeds} of {2 * seeds} trainings are already in" in done.stdout
    assert (tmp_path / "activations.html").exists()


# Statements


def make_outcome(
    train_loss: list[float], val_loss: list[float], train_accuracy: float, test_accuracy: float, predictions: list[int], seed: int
) -> Outcome:
    looks = [
        Evaluation(i + 1, i + 1, 10 * (i + 1), 0.1, a, 0.9, b, 0.9)
        for i, (a, b) in enumerate(zip(train_loss, val_loss, strict=True))
    ]
    return Outcome(
        {"model": "FC_only", "seed": seed},
        History(looks, list(range(1, len(looks) + 1))),
        train_accuracy,
        0.3,
        test_accuracy,
        test_accuracy,
        predictions,
        100,
        1000,
        [0.5],
        [0.2],
        {},
    )


def test_overfitting_is_stated_where_it_is_and_only_there(numbered_set):
    test = Split(numbered_set.test.images[:6], np.array([0, 0, 1, 1, 2, 2]))
    images = Images(ImageDataset("numbered", numbered_set.train, test, ("ant", "bee", "cat")), numbered_set.train)
    overfitted = [
        make_outcome([1, 0.1, 0.001], [1, 0.5, 0.8], 1.0, 0.6 + 0.01 * seed, [0, 1, 1, 1, 2, 1], seed) for seed in range(3)
    ]
    says = " ".join(digits_fc.observations(overfitted, images))
    assert "It overfits in 3 of 3 runs: there the held-out loss was lowest after 2 epochs and then rose by 60%" in says
    assert "better by 39.0 points" in says
    assert "take ant for bee: 3 of the 6 mistakes" in says or "take cat for bee: 3 of the 6 mistakes" in says
    fine = [make_outcome([1, 0.5, 0.4], [1, 0.5, 0.45], 0.9 + 0.02 * seed, 0.92, [0, 0, 1, 1, 2, 2], seed) for seed in range(3)]
    says = " ".join(digits_fc.observations(fine, images))
    assert "overfits" not in says and "no gap beyond the spread" in says
    assert "in any run" in says
    mixed = " ".join(digits_fc.observations([overfitted[0], fine[1], fine[2]], images))
    assert "overfits in 1 of 3 runs" in mixed and "In 2 of 3 runs the held-out loss ended within 1%" in mixed


def test_comparison_tells_a_difference_from_the_spread():
    mean, half = difference([0.9, 0.92, 0.91], [0.8, 0.82, 0.84])
    assert mean == pytest.approx(0.09)
    assert half == pytest.approx(4.3027 * np.std([0.1, 0.1, 0.07], ddof=1) / 3**0.5, rel=1e-4)
    assert compare("a", [0.9, 0.92, 0.91], "b", [0.8, 0.82, 0.84], "accuracy").startswith(
        "a is better than b in accuracy by 9.0 points"
    )
    assert compare("b", [0.8, 0.82, 0.84], "a", [0.9, 0.92, 0.91], "accuracy").startswith("b is worse than a")
    assert "no difference in accuracy beyond the spread" in compare("a", [0.9, 0.7, 0.8], "b", [0.8, 0.8, 0.81], "accuracy")
    assert "do not tell" in compare("a", [0.9, 0.9], "b", [0.8, 0.8], "accuracy")  # two seeds


# Pages


def make_page(dataset: str) -> Page:
    hostile = "<script>alert(1)</script> | *x*"
    page = Page("test", f"Title {hostile}", "Question?", dataset, [("data", hostile)], 12.3, [f"Observed {hostile}"])
    png = figures.confusion(np.array([0, 1]), [0, 1], ["ant", "bee"])
    page.add(
        "Section",
        "Text",
        Table(("a", "b"), [("1", hostile)], "caption"),
        Figure("curves", png, "Some curves."),
        Figure("pictures", png, "Some images.", shows_images=True),
    )
    return page


def test_page_needs_nothing_and_lets_nothing_in(tmp_path):
    path = make_page("mnist").write(tmp_path)
    text = path.read_text()
    for tag, attributes in Tags(text).tags:
        assert tag != "script"
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "data:").startswith("data:")
    assert {p.name for p in tmp_path.iterdir()} == {"test.html", "test-curves.png", "test-pictures.png"}
    for words in ("Question?", "Observed", "caption", "Some curves.", "12 s", "threads"):
        assert words in text


@pytest.mark.parametrize(("dataset", "shown"), [("mnist", False), ("cifar10", False), ("digits", True), ("shapes", True)])
def test_docs_hold_images_only_of_sets_that_may_be_shown(tmp_path, monkeypatch, dataset, shown):
    monkeypatch.setattr(page_module, "DOCS", tmp_path)
    text = make_page(dataset).write_docs().read_text()
    assert (tmp_path / "test-pictures.png").exists() == shown == ("test-pictures.png" in text)
    assert "![Some curves.](test-curves.png)" in text and (tmp_path / "test-curves.png").exists()
    assert "<script" not in text and "\\|" in text
    assert text.startswith("# Title") and "| data |" in text


def test_figures_of_the_docs_are_there_and_no_others():
    pages = list((ROOT / "docs" / "lab").glob("*.md"))
    assert {"digits-fc.md", "digits-conv.md", "activations.md", "more-data.md"} <= {path.name for path in pages}
    shown = {name for path in pages for name in re.findall(rf"\]\(({path.stem}-[\w-]+\.png)\)", path.read_text())}
    ours = {path.name for page in pages if page.stem in EXPERIMENTS for path in page.parent.glob(f"{page.stem}-*.png")}
    assert shown == ours


# The commands


def run_lab(*arguments: object) -> int:
    return main.main(["lab", *map(str, arguments)])


def accuracies(folder: Path) -> list[float]:
    return [json.loads(path.read_text())["test_accuracy"] for path in folder.glob("parts/*.json") if "weights" not in path.name]


@pytest.mark.parametrize("name", ["digits-fc", "digits-conv"])
def test_digits(tmp_path, capsys, name):
    assert run_lab(name, "--quick", "--seeds", 1, "--lr", 0.01, "--out", tmp_path) == 0
    out, page = capsys.readouterr().out, (tmp_path / f"{name}.html").read_text()
    (accuracy,) = accuracies(tmp_path)
    assert accuracy > 0.85  # of three digits
    assert f"<td>{accuracy:.2%}</td>" in page
    assert "the training loss became flat" in out and "the training loss became flat" in page
    assert "16 a class" in page and "classes 0, 4, 6" in page
    own = {"weights", "evidence"} if name == "digits-fc" else {"filters", "activations", "gradients"}
    figures = {"curves", "confusion", *own}
    assert {path.stem.removeprefix(f"{name}-") for path in tmp_path.glob("*.png")} == figures
    Tags(page)


def test_activations_and_more_data(tmp_path, capsys):
    assert (
        run_lab(
            "activations",
            "--quick",
            "--activations",
            "relu",
            "sigmoid",
            "elu",
            "--steps",
            20,
            "--seeds",
            1,
            "--classes",
            0,
            1,
            "--out",
            tmp_path / "a",
        )
        == 0
    )
    assert len(accuracies(tmp_path / "a")) == 3
    page = (tmp_path / "a" / "activations.html").read_text()
    for name in ("relu", "sigmoid", "elu"):
        assert f'<th scope="row">{name}</th>' in page
    assert run_lab("more-data", "--quick", "--per-class", 8, 0, "--steps", 30, "--seeds", 3, "--out", tmp_path / "m") == 0
    kept = [json.loads(path.read_text()) for path in (tmp_path / "m").glob("parts/*.json")]
    assert len(kept) == 12

    def mean(few: bool) -> float:
        return float(np.mean([k["test_accuracy"] for k in kept if (k["facts"]["images"] == 80) == few]))

    assert mean(few=False) > mean(few=True) + 0.02  # more data help
    out = capsys.readouterr().out
    assert "from 80 to" in out and "The gap" in out


def test_ladder(tmp_path, shapes_npz):
    with np.load(shapes_npz) as arrays:
        np.savez(tmp_path / "few.npz", **{name: arrays[name][:400] for name in arrays.files})
    assert run_lab("cifar-ladder", "--dataset", f"npz:{tmp_path / 'few.npz'}", "--epochs", 1, "--seeds", 1, "--out", tmp_path) == 0
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("parts/*.json")]
    assert {k["facts"]["model"] for k in kept} == {
        "one convolution",
        "three convolutions",
        "six, BatchNorm, dropout",
        "constrained Net",
    }
    assert len({k["history"]["images_seen"] for k in kept}) == 1  # the same budget
    Tags((tmp_path / "cifar-ladder.html").read_text())


@pytest.fixture
def short_pretraining(monkeypatch) -> None:
    monkeypatch.setattr(pretrained, "PRETRAINING", replace(pretrained.PRETRAINING, steps=3, augment=0.0))


def test_transfer_trains_a_source_on_the_other_classes_once(tmp_path, shapes_npz, short_pretraining, fits, capsys):
    arguments = (
        "transfer",
        "--target",
        f"npz:{shapes_npz}",
        "--classes",
        3,
        8,
        "--per-class",
        8,
        "--epochs",
        1,
        "--seeds",
        1,
        "--out",
        tmp_path,
    )
    assert run_lab(*arguments) == 0
    assert len(fits) == 4  # the source and three methods
    (source,) = tmp_path.glob("source-*.safetensors")
    assert load_weights(source)[1]["classes"] == ["0", "1", "2", "4", "5", "6", "7", "9"]
    assert run_lab(*arguments) == 0
    assert len(fits) == 4
    page = (tmp_path / "transfer.html").read_text()
    for method in transfer.METHODS:
        assert method in page
    capsys.readouterr()
    assert run_lab(*arguments[:3], "--classes", 3, 4, "--source", source, "--out", tmp_path) == 2
    assert "was trained on 4 of" in capsys.readouterr().err


def photographs(folder: Path, count: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for number, name in enumerate(("cake", "pie")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(100 * number, 100 * number + 100, (40 + i, 61, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")
    return folder


def test_transfer_to_a_folder_leaves_out_unreadable_images(tmp_path, capsys):
    folder = photographs(tmp_path / "desserts")
    (folder / "pie" / "bad.jpg").write_bytes(b"no image")
    (folder / "cake" / "notes.txt").write_text("sugar")
    assert run_lab("transfer", "--target", f"folder:{folder}", "--epochs", 1, "--seeds", 1, "--out", tmp_path / "out") == 0
    errors = capsys.readouterr().err
    assert f"2 of 42 files in {folder} are not readable images and are left out: cake/notes.txt, pie/bad.jpg" in errors
    page = (tmp_path / "out" / "transfer.html").read_text()
    assert "cake, pie" in page and "cifar8" in page
    assert "<td>8, all 12 a class" in page  # 20, without 4 for the test and 4 held out; 32 and 128 are not there
    (tmp_path / "one").mkdir()
    shutil.copytree(folder / "cake", tmp_path / "one" / "cake")
    (tmp_path / "one" / "pie").mkdir()
    (tmp_path / "one" / "pie" / "bad.jpg").write_bytes(b"no image")
    assert run_lab("transfer", "--target", f"folder:{tmp_path / 'one'}", "--out", tmp_path / "out") == 2
    assert "none of its 1 files can be read" in capsys.readouterr().err


def test_transfer_digits_from_mnist_without_either_network_or_data(tmp_path):
    assert (
        run_lab(
            "transfer", "--quick", "--per-class", 8, "--epochs", 5, "--seeds", 1, "--data-dir", tmp_path / "none", "--out", tmp_path
        )
        == 0
    )
    kept = {(k := json.loads(path.read_text()))["facts"]["method"]: k["test_accuracy"] for path in tmp_path.glob("parts/*.json")}
    assert kept["frozen features"] > kept["from scratch"]


@pytest.mark.parametrize(("name", "left_out"), [("cifar8", ("cat", "dog")), ("mnist", ())])
def test_sources_that_ship(name, left_out):
    path = ROOT / "weights" / f"{name}.safetensors"
    card = load_weights(path)[1]
    assert path.stat().st_size < 1_000_000
    assert not set(left_out) & set(card["classes"]) and len(card["classes"]) + len(left_out) == 10
    assert card["parameters"] < 200_000
    assert json.loads(path.with_suffix(".json").read_text()) == card


def test_torchvision_weights_that_cannot_be_had(tmp_path, monkeypatch, capsys):
    import torchvision

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", no_network)
    assert run_lab("transfer", "--target", "digits", "--source", "torchvision:resnet18", "--out", tmp_path) == 2
    assert "resnet18 are not here and cannot be downloaded (no route to host)" in one_line(capsys)
    assert run_lab("transfer", "--target", "digits", "--source", "torchvision:renset", "--out", tmp_path) == 2
    assert "no classifier 'renset'" in one_line(capsys)


def one_line(capsys) -> str:
    """The error line, which must be the only one."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits-fc", "--classes", "0", "x"), "digits has no class 'x': there are 0, 1, 2"),
        (("digits-fc", "--classes", "4"), "only one class, '4'"),
        (("digits-fc", "--classes", "4", "4"), "named twice"),
        (("digits-fc", "--per-class", 1000), "1000 images of class '0' were asked for: digits has 142 for training, of which 35"),
        (("digits-fc", "--per-class", 0), "0 images of class '0'"),
        (("digits-fc", "--seeds", 0), "--seeds is 0: it must be 1 or more"),
        (("digits-fc", "--lr", 0), "max_lr is 0"),
        (("activations", "--activations", "relu", "relo"), "unknown activation 'relo': there are relu, gelu"),
        (("activations", "--steps", 0), "--steps is 0: it must be 1 or more"),
        (("more-data", "--per-class", -1), "-1 images of class"),
        (("more-data", "--dataset", "nothing"), "unknown data set 'nothing'"),
        (("transfer", "--classes", "0", "x"), "digits has no class 'x'"),
        (("transfer", "--source", "cifar8"), "takes images of 3 channels, those of digits have 1"),
        (("transfer", "--source", "nothing"), "unknown source 'nothing'"),
        (("transfer", "--epochs", 0), "--epochs 1 or more"),
        (("transfer", "--target", "folder:/nowhere"), "there is no folder /nowhere"),
        (("nothing",), "unknown command 'nothing'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, words):
    assert run_lab(arguments[0], *(("--quick", "--out", tmp_path) if len(arguments) > 1 else ()), *arguments[1:]) == 2
    assert words in one_line(capsys)
    assert not list(tmp_path.glob("parts/*.json"))


def test_models_for_grey_images_refuse_colour(shapes_npz, tmp_path, capsys):
    for name in ("digits-conv", "more-data"):
        assert run_lab(name, "--quick", "--dataset", f"npz:{shapes_npz}", "--classes", 0, 4, "--out", tmp_path) == 2
        assert "grey images of 1 channel, these have 3" in one_line(capsys)


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert run_lab("digits-fc", "--quick", "--out", tmp_path / "file") == 2
    assert "cannot write" in one_line(capsys)
    assert (tmp_path / "file").read_text() == "kept"
