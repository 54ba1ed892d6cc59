"""Training on arrays."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from config import InputError, TrainConfig
from convsprint.network import Network
from images.data import ImageDataset, Split
from learning import own
from learning.fitting import demand_consistent, fit_to_data, say_limits
from learning.history import Observer, Observers
from learning.inference import TrainedNetwork
from learning.log import Log
from learning.presets import get_preset
from learning.run_folder import Overwrite, run_folder
from learning.starting import load_start, take_weights
from model import Net
from training import Trainer
from utils import network_card, random_states, restore_random_states, seed_everything

MIN_SIDE = 28  # pixels


def fit(
    images: np.ndarray,
    labels: np.ndarray | Sequence[int],
    *,
    classes: Sequence[str] | None = None,
    test: tuple[np.ndarray, np.ndarray | Sequence[int]] | None = None,
    preset: str = "baseline",
    model: nn.Module | str | None = None,
    init: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    verbose: bool = False,
    **settings: Any,
) -> Network:
    """Train on arrays as ``./run.sh train`` does, and return the trained network.

    Args:
        images: (N, H, W) or (N, H, W, C) uint8, 28 pixels or more a side; RGB where C is 3.
        labels: (N,) integers from 0.
        classes: their names; numbers where there are none.
        test: images and labels that are not trained on: the card then has the accuracy on them.
        preset: network and settings to start from; what few images need otherwise is chosen by their number, and said on stderr.
        model: your own network instead of the preset's: a module, which is trained in place as a new one, or FILE.py:CLASS.
        init: trained weights to start from, in the network that they are of: a file, or efficientnet_lite0. Where their classes are
            others, the last layer is new.
        out: folder for checkpoint.pt and log.csv, which no other training may write to meanwhile; none where it is None.
        overwrite: remove the run that is in that folder, once the training starts. Without it, such a folder is refused.
        seed: seeds weights, order, augmentation and the validation split: on a CPU, the same seed gives the same network. Python's,
            NumPy's and torch's own generators are afterwards in the state that they were in before.
        verbose: print a line for each epoch.
        settings: fields of TrainConfig, the options of ``train``: ``epochs=5, max_lr=0.01, augment=0.0``.

    Raises InputError, in one line, where the arrays or the settings do not fit.
    """
    if unknown := set(settings) - {each.name for each in fields(TrainConfig)}:
        raise InputError(f"unknown setting {', '.join(sorted(unknown))}: fit takes the fields of TrainConfig")
    if test is not None and len(test) != 2:
        raise InputError("test must be a pair: images and labels")
    if not isinstance(init, str | Path | None):
        raise InputError("init must be the path of trained weights, which save and train write, or efficientnet_lite0")
    if init is not None and isinstance(model, nn.Module):
        raise InputError("init names weights for the network that they are of, or for a FILE.py:CLASS: leave out the module")
    if settings.get("freeze") and init is None:
        raise InputError("freeze trains the last layer alone, on random features: name trained weights with init")
    dataset = _dataset(images, labels, classes, test)
    known = get_preset(preset, model is not None or init is not None)
    start = load_start(Path(init), model if isinstance(model, str) else "") if init is not None else None
    given = tuple(settings)
    if "epochs" in settings and "steps" not in settings:
        settings["steps"] = 0
    base = replace(known.train, early_exit_accuracy=None, cycles=1, workers=0)
    config = replace(base, seed=seed, **settings)
    if start:
        config = replace(config, whiten_images=0)
    demand_consistent(config, given, dataset.name)
    config = fit_to_data(config, dataset, given)
    states = random_states()
    with contextlib.ExitStack() as stack:
        stack.callback(restore_random_states, states)
        seed_everything(seed)
        about: dict[str, Any] = {"preset": preset}
        net: dict[str, Any] = {}
        spec = model if isinstance(model, str) else start.card.get("model") if start else None
        if spec:
            net = start.card.get("net") or {} if start else {}
            about |= own.card(spec)
            model = own.build(spec, dataset, None, net)
        elif not isinstance(model, nn.Module):
            net = start.card["net"] if start else known.net
            model = Net(dataset.num_channels, dataset.num_classes, **net)
        else:
            name = type(model).__name__
            own.demand_trainable(model, name, dataset)
            try:
                about |= own.card(f"{inspect.getfile(type(model))}:{name}")
            except (TypeError, OSError) as error:  # a class of an interactive session
                raise InputError(
                    f"{name} is not defined in a file, so its weights could not be loaded again: move it to a file"
                ) from error
        assert isinstance(model, nn.Module)
        if start:
            take_weights(model, start, dataset, Path(str(init)))
            about |= {name: start.card[name] for name in ("init", "mean", "std")}
        card = network_card(model, dataset.num_channels, dataset.image_size, net, **about)
        folder, observers = Path(out) if out else None, list[Observer]()
        if folder:
            inputs = [*([Path(init)] if init is not None else []), *map(Path, config.teacher)]
            stack.enter_context(run_folder(folder, folder, dataset.name, False, overwrite, inputs, "overwrite=True or another out"))
            observers += [Overwrite(folder)] if overwrite else []
        observers += [Log(folder)] if verbose or folder else []
        trainer = Trainer(model, dataset, config, folder, card=card, observer=Observers(*observers))
        say_limits(dataset, trainer.val_split)
        trainer.fit()
        accuracy = trainer.evaluate(dataset.test, torch.float32)[1] if test else None
        trained = TrainedNetwork(
            trainer.trained_model, trainer.final_card(accuracy, torch.float32), trainer.device, trainer.precision
        )
        return Network(trained)


def _dataset(
    images: np.ndarray,
    labels: np.ndarray | Sequence[int],
    classes: Sequence[str] | None,
    test: tuple[np.ndarray, np.ndarray | Sequence[int]] | None,
) -> ImageDataset:
    train = _split("images", images, labels)
    if classes is not None and len(set(classes)) != len(classes):
        raise InputError("two classes have the same name")
    count = len(classes) if classes is not None else len(np.unique(train.labels))
    held = _split("the test images", *test) if test else Split(train.images[:0], train.labels[:0])
    if held.images.shape[1:] != train.images.shape[1:]:
        raise InputError(f"the test images have shape {held.images.shape[1:]}, the others {train.images.shape[1:]}")
    for split in (train, held):
        if len(split.labels) and not 0 <= split.labels.min() <= split.labels.max() < count:
            mend = "; pass np.unique(labels, return_inverse=True)[1]" if split is train and classes is None else ""
            raise InputError(f"labels go from {split.labels.min()} to {split.labels.max()}: they must be 0 to {count - 1}{mend}")
    if count < 2 or len(np.unique(train.labels)) < 2:
        raise InputError("there is one class only: a data set requires two or more")
    names = tuple(map(str, classes if classes is not None else range(count)))
    return ImageDataset("arrays", train, held, names)


def _split(what: str, images: np.ndarray, labels: np.ndarray | Sequence[int]) -> Split:
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or min(images.shape[1:3], default=0) < MIN_SIDE or not len(images):
        raise InputError(
            f"{what} of shape {images.shape} and type {images.dtype}: they must be (N, H, W) or (N, H, W, C), uint8, of {MIN_SIDE} "
            "pixels or more a side"
            + ("; pass images.transpose(0, 2, 3, 1)" if images.ndim == 4 and images.shape[1] in (1, 3, 4) else "")
        )
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        mend = ""
        if labels.shape == (len(images),) and labels.dtype.kind in "OUS":
            mend = "; fix them with classes, labels = np.unique(labels, return_inverse=True) and pass classes too"
        raise InputError(f"labels of shape {labels.shape} and type {labels.dtype}: they must be {len(images)} integers{mend}")
    return Split(np.ascontiguousarray(images if images.ndim == 4 else images[..., None]), labels.astype(np.int64))
