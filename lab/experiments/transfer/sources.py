"""Where transferred features come from: networks that ship, others trained first, torchvision's."""

from __future__ import annotations

import copy
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from config import InputError, TrainConfig
from images.sources import ImageDataset, Split
from lab.common.command import Experiment
from lab.common.trainings import take_images
from lab.experiments.transfer.networks import net_features, net_name
from learning import efficientnet_lite
from learning.inference import TrainedNetwork
from learning.presets import PRESETS
from learning.weights import save_weights
from model import Net
from training import Trainer
from utils import ROOT, count_parameters, network_card, seed_everything

NET = PRESETS["fast85"].net
PRETRAINING = replace(PRESETS["fast85"].train, epochs=8, eval_every=0, early_exit_accuracy=None)
PRETRAINING_DIGITS = replace(PRETRAINING, epochs=3, augment=0.0)  # a flipped digit is none
LEFT_OUT = {"cifar10": ("cat", "dog"), "shapes": ("star", "heart")}  # the default classes of a target


@dataclass(frozen=True)
class Source:
    """Learned features, and where they come from."""

    name: str
    about: str
    num_channels: int
    features: Callable[[], tuple[nn.Module, int]]
    """A fresh copy of the network up to its last linear layer, and the number of its outputs."""
    untrained: Callable[[], tuple[nn.Module, int]]
    """The same with random weights."""
    rename: Callable[[str], str]
    """The name in the whole network of a tensor of a `Transferred` with these features."""
    card: dict[str, Any]
    """What a card says of how the whole network is built, with a new last layer: arguments of Net, or where its class is."""
    normalisation: dict[str, Any] = field(default_factory=dict)
    """"mean" and "std" of the images that the features need; nothing where they take those of the target's training images."""


def find_source(wanted: str, anew: bool, target: ImageDataset, classes: Sequence[str], options: Experiment, folder: Path) -> Source:
    """The source that --source names for `classes` of `target`; one that has to be trained, as all where `anew`, is trained here
    and kept: in `folder`, or where it ships."""
    name, _, architecture = wanted.partition(":")
    if name == "torchvision" and not anew:
        return torchvision_source(architecture)
    pixels = efficientnet_lite.pixels_of(wanted)
    if pixels and not anew:
        return imagenet_source(pixels)
    others = [other for other in target.classes if other not in classes]
    if wanted == "auto":
        if target.name == "digits":
            name = "mnist"
        elif target.name.startswith("folder:") or (target.name == "cifar10" and tuple(classes) == LEFT_OUT["cifar10"]):
            name = "cifar8"
        elif len(others) < 2:
            raise InputError(
                f"{target.name} has {len(others)} classes beside the target's, too few to learn features from: name "
                "fewer --classes, or another --source"
            )
        else:
            short = replace(PRETRAINING, epochs=1, augment=0.0)
            config = replace(short if options.quick else PRETRAINING, device=options.device)
            known = repr((target.name, others, config, target.content()))
            path = folder / f"source-{zlib.crc32(known.encode()):08x}.safetensors"
            if anew or not path.exists():
                pretrain(path, target, others, config)
            return own_source(path, f"trained on the {len(others)} other classes of {target.name}", target, classes)
    if name in ("cifar8", "mnist"):
        path = ROOT / "weights" / f"{name}.safetensors"
        if anew:
            if name == "cifar8":
                dataset, config = options.load("cifar10"), PRETRAINING
            else:
                dataset, config = like_digits(options.load("mnist")), PRETRAINING_DIGITS
            pretrain(
                path,
                dataset,
                [known for known in dataset.classes if known not in LEFT_OUT["cifar10"]],
                replace(config, device=options.device),
            )
        return own_source(path, name, target, classes)
    if anew:
        raise InputError(f"--pretrain trains the sources auto, cifar8 and mnist, not {wanted}")
    if not Path(wanted).exists():
        raise InputError(
            f"unknown source '{wanted}': there are auto, cifar8, mnist, {efficientnet_lite.NAME}, a weights file "
            "and torchvision:NAME"
        )
    return own_source(Path(wanted), Path(wanted).stem, target, classes)


def like_digits(dataset: ImageDataset) -> ImageDataset:
    """MNIST as coarse as `digits`: without its margin of 4 pixels, averaged to 8x8, enlarged to 32x32.

    Features of its fine strokes are of little use for blurred ones: frozen, with 8 images a class and 20 epochs, they gave 73% on
    validation images of `digits`, training from scratch 94%.
    """

    def coarse(split: Split) -> Split:
        pixels = torch.from_numpy(split.images[:, 4:24, 4:24]).permute(0, 3, 1, 2).float()
        enlarged = F.interpolate(F.interpolate(pixels, (8, 8), mode="area"), (32, 32), mode="bilinear")
        return Split(enlarged.round().byte().permute(0, 2, 3, 1).contiguous().numpy(), split.labels)

    return replace(dataset, name="mnist at 8x8", train=coarse(dataset.train), test=coarse(dataset.test))


def pretrain(path: Path, dataset: ImageDataset, classes: Sequence[str], config: TrainConfig) -> None:
    """Train the constrained network on `classes` of `dataset` and write it to `path`, with a card."""
    images = take_images(dataset, classes, None, seed=0)
    print(f"training the source on {len(classes)} classes of {dataset.name}: {', '.join(classes)}", file=sys.stderr, flush=True)
    seed_everything(config.seed)
    model = Net(dataset.num_channels, len(classes), **NET)
    card = network_card(model, dataset.num_channels, dataset.image_size, NET)
    trainer = Trainer(model, images.dataset, config, val_split=images.val, card=card)
    trainer.fit()
    precision = torch.float32
    _, accuracy = trainer.evaluate(images.dataset.test, precision)
    card = trainer.final_card(accuracy, precision) | {"config": asdict(config)}
    save_weights(path, trainer.trained_model.state_dict(), card)


def own_source(path: Path, name: str, target: ImageDataset, classes: Sequence[str]) -> Source:
    """A network of this project. Raises InputError where it was trained on the target's own classes."""
    network = TrainedNetwork.load(path, torch.device("cpu"))
    model, card, accuracy = network.model, network.card, network.card.get("test_accuracy")
    if not isinstance(model, Net):
        raise InputError(f"the source {path} is a {type(model).__name__}: only weights of model.Net are sources")
    known = [c for c in classes if c in card["classes"] and card["dataset"].startswith(target.name)]
    if known:
        raise InputError(
            f"the source {path} was trained on {', '.join(known)} of {target.name} itself, which is no transfer: "
            "choose other --classes, or another --source"
        )

    def untrained() -> tuple[nn.Module, int]:
        return net_features(Net(card["num_channels"], 2, **card["net"]))

    return Source(
        name,
        f"{name}: the constrained network, {count_parameters(model):,} parameters, trained on {card['dataset']}, "
        f"classes {', '.join(card['classes'])}" + (f"; test accuracy there {accuracy:.1%}" if accuracy else ""),
        card["num_channels"],
        lambda: net_features(copy.deepcopy(model)),
        untrained,
        net_name,
        {"net": card["net"] | {"logit_scale": 1.0}},  # the new last layer learned without such a factor
    )


def imagenet_source(pixels: int) -> Source:
    """EfficientNet-Lite0, trained on ImageNet, which enlarges images to `pixels` a side. Raises InputError where its package is
    missing."""
    trained = efficientnet_lite.trained_on_imagenet(pixels)
    card = efficientnet_lite.card(pixels)
    about = f"{card['init']}, {count_parameters(trained):,} parameters; images enlarged to {pixels}x{pixels} pixels"
    return Source(
        f"{efficientnet_lite.NAME}:{pixels}",
        about,
        3,
        lambda: _headless(copy.deepcopy(trained), "head"),
        lambda: _headless(efficientnet_lite.EfficientNetLite0(pixels=pixels), "head"),
        partial(_whole_name, "head"),
        card,
        {name: card[name] for name in ("mean", "std")},
    )


def _headless(model: nn.Module, head: str) -> tuple[nn.Module, int]:
    """`model` without its last linear layer, which is called `head`, and the number of features that came to it."""
    features = cast(nn.Linear, model.get_submodule(head)).in_features
    model.set_submodule(head, nn.Identity())
    return model, features


def _whole_name(head: str, name: str) -> str:
    """The name in the whole network, whose last layer is called `head`, of a tensor of a `Transferred` with features without it."""
    part, _, rest = name.partition(".")
    return rest if part == "features" else f"{head}.{rest}"


def torchvision_source(architecture: str) -> Source:
    """An ImageNet classifier of torchvision, whose weights are downloaded. Raises InputError where that is not possible."""
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(architecture).DEFAULT
    except ValueError:
        raise InputError(f"torchvision has no classifier '{architecture}': resnet18 and mobilenet_v3_small are two") from None
    try:
        trained = torchvision.models.get_model(architecture, weights=weights)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the weights of {architecture} are not here and cannot be downloaded ({error}): --source auto needs no network"
        ) from error

    head = [name for name, layer in trained.named_modules() if isinstance(layer, nn.Linear)][-1]
    return Source(
        f"torchvision:{architecture}",
        f"{architecture} of torchvision, trained on ImageNet ({weights.meta['num_params']:,} parameters)",
        3,
        lambda: _headless(copy.deepcopy(trained), head),
        lambda: _headless(torchvision.models.get_model(architecture), head),
        partial(_whole_name, head),
        {"net": None, "model": f"torchvision.models:{architecture}"},
    )
