"""The trainings of the experiments: their images, what is known after each, and how they are kept."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import InputError, TrainConfig
from images.data import ImageDataset, Split, balanced_subset, normalise, stratified_split
from learning.history import History
from learning.inference import loss_and_accuracy
from learning.weights import load_weights, save_weights
from training import Trainer
from utils import count_mult_adds, count_parameters, hardware, seed_everything, versions, write_json

VERSION = 1  # of what is kept of a training: raise it when that changes
MAX_TRAIN_EVALUATED = 5000  # training images on which the accuracy after training is taken


@dataclass(frozen=True)
class Images:
    """The images of one training: three splits that share none, unless validation images stand in."""

    dataset: ImageDataset
    val: Split
    val_stands_in: bool = False
    """Whether the validation images are the training images, of which there are too few."""


def class_labels(dataset: ImageDataset, names: Sequence[str]) -> dict[str, int]:
    """Name -> label of `names`, all of the data set's where there are none. Raises InputError where they make no task."""
    names = [str(name) for name in names] or list(dataset.classes)
    missing = [name for name in names if name not in dataset.classes]
    if missing:
        raise InputError(f"{dataset.name} has no class {', '.join(map(repr, missing))}: there are {', '.join(dataset.classes)}")
    if len(set(names)) < len(names):
        raise InputError(f"a class is named twice: {', '.join(names)}")
    if len(names) < 2:
        raise InputError(f"only one class, '{names[0]}', is named: the experiment requires two or more")
    return {name: dataset.classes.index(name) for name in names}


def take_images(dataset: ImageDataset, names: Sequence[str], per_class: int | None, seed: int) -> Images:
    """`per_class` training images (None for all) of each named class, validation images, and all the test images of the classes.

    A fourth of the training images, at most 100 a class, are the validation images, whatever `per_class` is; no class gives its
    last one, and where each has one only, the training images stand in, as for `train`. With the same seed
    they are the same, and fewer training images are a part of more. The test images are the same for all seeds, in the same
    order. Raises InputError where there are not so many.
    """
    labels = class_labels(dataset, names)
    everything = balanced_subset(dataset.train, labels, None, seed)
    smallest = int(np.bincount(everything.labels).min())
    held_out = min(min(100, max(1, smallest // 4)) * len(labels), len(everything.labels) - len(labels))
    rest, val = stratified_split(everything, held_out, seed) if held_out else (everything, everything)
    if per_class is not None:
        counts = np.bincount(rest.labels, minlength=len(labels))
        for_val = np.bincount(val.labels, minlength=len(labels)) * bool(held_out)
        for name, count, held in zip(labels, counts, for_val, strict=True):
            if not 1 <= per_class <= count:
                raise InputError(
                    f"{per_class} images of class '{name}' were asked for: {dataset.name} has {count + held} for "
                    f"training, of which {held} are for validation and {count} are left"
                )
    train = balanced_subset(rest, {name: i for i, name in enumerate(labels)}, per_class, seed)
    test = balanced_subset(dataset.test, labels, None, seed=0)
    return Images(ImageDataset(dataset.name, train, test, tuple(labels)), val, val_stands_in=not held_out)


def as_tensors(split: Split, mean: Sequence[float], std: Sequence[float], most: int | None = None) -> tuple[Tensor, Tensor]:
    """Normalised images (N, C, H, W) and labels (N,) of `split`, of its first `most` where that is given."""
    return normalise(torch.from_numpy(split.images[:most]), tuple(mean), tuple(std)), torch.from_numpy(split.labels[:most])


def sizes_that_fit(sizes: Sequence[int], dataset: ImageDataset, names: Sequence[str], seed: int) -> list[int]:
    """Those of `sizes` (images a class, 0 for all) for which there are images; all of them where none is small enough."""
    most = int(np.bincount(take_images(dataset, names, None, seed).dataset.train.labels).min())
    return [size for size in sizes if size < most] or [0]


@dataclass(frozen=True)
class Part:
    """One training of an experiment."""

    facts: dict[str, Any]
    """What tells it from the others, as its page says it: {"model": "FC_only", "seed": 0}."""
    build: Callable[[], nn.Module]
    """The network before training; called with the generators seeded."""
    images: Images
    config: TrainConfig
    measure: Callable[[Trainer], dict[str, Any]] | None = None
    """What else to keep of it: plain values."""
    card: dict[str, Any] = field(default_factory=dict)
    """What the Trainer is told of the network: "mean" and "std" where images are normalised with those instead of their own."""
    keep_weights: bool = False
    whole: Callable[[nn.Module], tuple[dict[str, Tensor], dict[str, Any]]] | None = None
    """State dict and card of the trained network as other commands load it: a part that has this may be kept as the best one."""

    def fresh_model(self) -> nn.Module:
        """The network before training, the same each time."""
        seed_everything(self.config.seed)
        return self.build()

    def key(self) -> str:
        """Of everything that the result depends on: initial weights, images, configuration, machine and versions."""
        model, digest = self.fresh_model(), zlib.crc32
        state = {name: digest(tensor.detach().cpu().contiguous().numpy().tobytes()) for name, tensor in model.state_dict().items()}
        splits = (self.images.dataset.train, self.images.val, self.images.dataset.test)
        known = {
            "version": VERSION,
            "facts": self.facts,
            "config": asdict(self.config),
            "model": repr(model),
            "state": state,
            "trainable": [name for name, p in model.named_parameters() if p.requires_grad],
            "images": [[digest(np.ascontiguousarray(array).data) for array in split] for split in splits],
            "classes": self.images.dataset.classes,
            "hardware": hardware(),
            "versions": versions(),
            **({"card": self.card} if self.card else {}),
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def budget(self) -> int:
        """Images that the training sees at most."""
        batch = self.config.batch_size
        steps_per_epoch = len(self.images.dataset.train.labels) // batch
        return batch * (self.config.steps or max(1, round(self.config.epochs * steps_per_epoch)))


@dataclass
class Outcome:
    """What is known of a part after its training."""

    facts: dict[str, Any]
    history: History
    train_accuracy: float
    """Of the trained network on the training images (the first 5,000 at most), 0 to 1."""
    test_loss: float
    test_accuracy: float
    f1: float
    """F1 of the classes on the test split, weighted by their images."""
    predictions: list[int]
    """Class of each test image."""
    parameters: int
    mult_adds: int
    mean: list[float]
    std: list[float]
    measured: dict[str, Any]
    weights: Path | None = None

    def model(self, part: Part) -> nn.Module:
        """The trained network, on the CPU, in evaluation mode."""
        model = part.fresh_model()
        assert self.weights is not None, "the part has keep_weights"
        model.load_state_dict(load_weights(self.weights)[0])
        return model.eval()


def run_parts(parts: Sequence[Part], folder: Path, best: Path | None = None) -> list[Outcome]:
    """Train all `parts` that `folder` does not hold yet, with one progress bar; their outcomes in order.

    Each is kept as soon as it is done. The weights of the one with the best validation, among those that say how (`Part.whole`), go
    to the file `best`. Raises KeyboardInterrupt, which says how far it came, at Ctrl-C.
    """
    paths = [folder / f"{part.key()}.json" for part in parts]
    done = {i: outcome for i, part in enumerate(parts) if (outcome := _read(paths[i], part))}
    missing = [i for i in range(len(parts)) if i not in done]
    if done:
        print(f"{len(done)} of {len(parts)} trainings are already in {folder}", flush=True)
    total = sum(parts[i].budget for i in missing)
    bar = tqdm(total=total, unit=" images", unit_scale=True, disable=None, leave=False)

    def train(i: int) -> None:
        before = bar.n
        outcome, trainer = _train(parts[i], paths[i], bar)
        done[i] = outcome
        if best and i == _best(parts, done):
            _keep(best, parts[i], paths[i], outcome, trainer)
        write_json(paths[i], asdict(outcome) | {"weights": None})
        bar.update(before + parts[i].budget - bar.n)  # it may have stopped early

    with bar:
        try:
            for number, i in enumerate(missing, 1):
                bar.set_description(f"{number} of {len(missing)}: {describe(parts[i].facts)}")
                train(i)
            if best and (winner := _best(parts, done)) is not None and _kept(best) != paths[winner].stem:
                bar.set_description(f"once more, for its weights: {describe(parts[winner].facts)}")
                bar.total = total + parts[winner].budget
                train(winner)
        except KeyboardInterrupt:
            kept = sum(_read(path, part) is not None for path, part in zip(paths, parts, strict=True))
            raise KeyboardInterrupt(
                f"{kept} of {len(parts)} trainings are done and kept in {folder}: the same command goes on with the others"
            ) from None
    return [done[i] for i in range(len(parts))]


def best_of(parts: Sequence[Part], outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome whose weights `run_parts` keeps as the best; at least one part must have `whole`."""
    winner = _best(parts, dict(enumerate(outcomes)))
    assert winner is not None
    return outcomes[winner]


def _best(parts: Sequence[Part], outcomes: Mapping[int, Outcome]) -> int | None:
    """The number of the part with the best validation, the first of equal ones."""
    winner = None
    for i in sorted(i for i in outcomes if parts[i].whole):
        if winner is None or outcomes[i].history.evaluations[-1].is_better_than(outcomes[winner].history.evaluations[-1]):
            winner = i
    return winner


def _keep(best: Path, part: Part, path: Path, outcome: Outcome, trainer: Trainer) -> None:
    assert part.whole is not None  # else it is not the best
    state, card = part.whole(trainer.trained_model)
    save_weights(best, state, trainer.final_card(outcome.test_accuracy, torch.float32) | card | {"part": path.stem})


def _kept(best: Path) -> str | None:
    """Of which part the weights in that file are; None where there are none that can be read."""
    try:
        return load_weights(best)[1].get("part")
    except InputError:
        return None


def _train(part: Part, path: Path, bar: tqdm) -> tuple[Outcome, Trainer]:
    from sklearn.metrics import f1_score

    model, dataset = part.fresh_model(), part.images.dataset
    mult_adds = count_mult_adds(model, dataset.num_channels, dataset.image_size)
    trainer = Trainer(model, dataset, part.config, card=part.card, val_split=part.images.val, progress=bar)
    history = trainer.fit()
    few = Split(*(array[:MAX_TRAIN_EVALUATED] for array in dataset.train))
    _, train_accuracy = trainer.evaluate(few, torch.float32)
    logits = trainer.predict(dataset.test, torch.float32)
    test_loss, test_accuracy = loss_and_accuracy(logits, dataset.test.labels)
    predictions = logits.argmax(1).numpy()
    weights = path.with_name(f"{path.stem}-weights.safetensors") if part.keep_weights else None
    if weights:
        save_weights(weights, trainer.trained_model.state_dict(), trainer.card | {"facts": part.facts})
    outcome = Outcome(
        part.facts,
        history,
        train_accuracy,
        test_loss,
        test_accuracy,
        float(f1_score(dataset.test.labels, predictions, average="weighted", zero_division=0)),
        predictions.tolist(),
        count_parameters(model),
        mult_adds,
        list(trainer.mean),
        list(trainer.std),
        part.measure(trainer) if part.measure else {},
    )
    return replace(outcome, weights=weights), trainer


def _read(path: Path, part: Part) -> Outcome | None:
    weights = path.with_name(f"{path.stem}-weights.safetensors") if part.keep_weights else None
    if weights and not weights.exists():
        return None
    try:
        kept = json.loads(path.read_text())
        return Outcome(**kept | {"history": History.from_dict(kept["history"]), "weights": weights})
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is trained again
        return None


def describe(facts: dict[str, Any]) -> str:
    """Facts in a few words."""
    return ", ".join(str(value) if isinstance(value, str) else f"{name} {value}" for name, value in facts.items())
