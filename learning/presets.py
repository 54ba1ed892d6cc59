"""The presets: networks that ship, and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from config import InputError, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A network and how it is trained."""

    about: str
    """What it is for, in one line."""
    train: TrainConfig
    """How it is trained."""
    net: dict[str, Any] = field(default_factory=dict)
    """Arguments of model.Net besides the channel and class counts; what is left out has Net's own default."""
    larger: str = ""
    """The preset whose larger network a sprint trains instead, from new weights, where this one missed the target."""
    needs_weights: bool = False
    """It is for weights that are trained already."""


_SPRINT = TrainConfig(
    steps=46,  # 5,888 images
    batch_size=128,
    stratified=True,  # worth 0.7 points, or four steps
    max_lr=0.015,
    momentum=0.6,
    pct_start=0.3,
    label_smoothing=0.1,
    statistics_images=200,
    whiten_images=200,
    val_images=1000,
    eval_every=46,  # one evaluation, at the end: an earlier one costs as much as two steps
    early_exit_accuracy=0.55,
    early_exit_margin=0.01,
)

# What all presets but those of the sprint and baseline share.
_MUON = TrainConfig(
    batch_size=128,
    optimizer="muon",
    max_lr=0.01,
    momentum=0.9,
    beta2=0.98,
    weight_decay=0.1,
    workers=0,  # at 32 images a draw a batch is made in 2 ms: less than a worker takes away from two cores that both train
)
# Augmentation and early exit: fast85, fast90, c1c2c3c4o-strict and cifar-50k.
_FAST = replace(_MUON, label_smoothing=0.1, ema_decay=0.998, early_exit_margin=0.005, images_per_draw=32)
# Strong augmentation for many epochs: teacher, accurate and slim.
_LONG = replace(_MUON, augment=1.5, images_per_draw=16)
# Shifts and flips of whole batches for few epochs: cifar100 and onecycle-90.
_SHIFTED = replace(_MUON, ema_decay=0.99, shift=2, alternating_flip=True)
# Digits (mnist-20k and mnist-8k) are shifted, scaled and rotated, never flipped, and no hole hides a stroke.
_DIGITS = replace(_MUON, epochs=15, weight_decay=0.05, ema_decay=0.9975, augment=0.7, flip=False, dropout=False, images_per_draw=16)

# A stem that sees every pixel; 24 filters are all directions of its 2x2 patches, with both signs.
_FINE = {"stem_kernel": 2, "stem_stride": 1, "norm_momentum": 0.1, "logit_scale": 1.0}
_DEEP = {
    "pools": (1, 2, 2, 1),  # 31x31 maps, then 15x15 and 7x7
    "kinds": (
        ("whitening", "pointwise", "pointwise"),
        ("dense", "dense", "separable"),
        ("separable", "separable_dilated", "separable"),
        ("separable", "separable", "separable"),
    ),
    **_FINE,
}

_SMALL = {
    "pools": (1, 2, 2, 1),  # 26x26 maps, then 13x13 and 6x6
    "kinds": (("whitening",), ("dense", "separable"), ("separable", "separable", "separable"), ("separable", "separable")),
    **_FINE,
    "stem_kernel": 3,
}
# C1 C2 c3 P1 C4 C5 C6 c7 P2 C8 C9 C10: the blocks end where the widths change.
_FIFTY = {
    "widths": (24, 56, 88, 112),
    "pools": (1, 2, 2, 1),  # 32x32 maps, then 16x16 and 8x8
    "kinds": (
        ("whitening", "separable"),
        ("pointwise", "separable", "separable", "separable"),
        ("pointwise", "separable", "separable"),
        ("separable",),
    ),
    **_FINE,
    "stem_kernel": 3,
    "stem_padding": 1,
}

PRESETS: dict[str, Preset] = {
    "sprint": Preset("55% on CIFAR-10 in the fewest seconds", _SPRINT, {"widths": (32, 32, 64, 64)}, larger="sprint-larger"),
    "sprint-larger": Preset(
        "the larger network, which a sprint trains instead where its own misses the target",
        replace(_SPRINT, steps=100, cycles=3, batch_size=256, max_lr=0.017),
    ),
    "teacher": Preset(
        "a larger network outside the constraints, for small ones to learn from",
        replace(_LONG, epochs=60),
        {
            "widths": (24, 96, 256, 320),
            "pools": (1, 2, 2, 1),  # 31x31 maps, then 15x15 and 7x7
            "kinds": (("whitening",), ("dense", "dense"), *[("dense", "dense", "dense")] * 2),
            **_FINE,
        },
    ),
    "fast85": Preset(
        "85% on CIFAR-10 in the shortest time, with augmentation",
        replace(_FAST, epochs=13, optimizer="adamw", max_lr=0.02, momentum=0.85, augment=0.5, early_exit_accuracy=0.85),
        {
            "widths": (32, 64, 96, 128),
            "pools": (1, 2, 2, 1),  # 15x15 maps, then 7x7 and 3x3
            "kinds": (
                ("whitening", "dense", "pointwise"),
                ("dense", "dense", "pointwise"),
                ("dense_dilated", "pointwise", "pointwise"),
                ("separable", "pointwise", "pointwise"),
            ),
            "norm_momentum": 0.1,
            "logit_scale": 1.0,
        },
    ),
    "fast90": Preset(
        "90% on CIFAR-10 in the shortest time, with augmentation",
        replace(_FAST, epochs=21, augment=0.7, early_exit_accuracy=0.9),
        {
            "widths": (24, 64, 96, 128),
            "pools": (1, 2, 2, 1),  # 31x31 maps, then 15x15 and 7x7
            "kinds": (
                ("whitening", "pointwise", "pointwise"),
                ("dense", "dense", "pointwise"),
                ("dense_dilated", "separable", "separable"),
                ("separable", "separable", "separable"),
            ),
            **_FINE,
        },
    ),
    "accurate": Preset(
        "the most accurate network under 200,000 parameters",
        replace(_LONG, epochs=200, teacher=("weights/teacher.safetensors", "weights/teacher_cutmix.safetensors")),
        {"widths": (24, 64, 128, 176), **_DEEP},
    ),
    "slim": Preset(
        "the most accurate network under 100,000 parameters",
        replace(_LONG, epochs=100, teacher=("weights/teacher.safetensors",)),
        {"widths": (24, 48, 80, 112), **_DEEP},
    ),
    "cifar100": Preset(
        "CIFAR-100 without limits on the network",
        replace(
            _SHIFTED,
            epochs=16,
            batch_size=256,
            max_lr=0.012,
            pct_start=0.15,
            label_smoothing=0.2,
            resolutions=((0.2, 20), (0.5, 24)),
            val_images=2000,
            checkpoint_every=60,
        ),
        {
            "widths": (24, 64, 256, 768),
            "pools": (1, 2, 2, 2),  # 31x31 maps, then 15x15, 7x7 and 3x3
            "kinds": (
                ("whitening",),
                ("dense", "dense"),
                ("dense", "bottleneck", "bottleneck"),
                ("bottleneck", "bottleneck", "bottleneck"),
            ),
            "activation": "silu",
            "dirac": True,
            "max_features": True,
            **_FINE,
            "logit_scale": 0.1,
        },
    ),
    "c1c2c3c4o-strict": Preset(
        "85% on CIFAR-10 without max-pooling, with the augmentation that public courses name",
        replace(_FAST, epochs=16, augment=0.5, hole=16, early_exit_accuracy=0.85),
        {
            "widths": (24, 44, 68, 100),
            "pools": (1, 1, 1, 1),
            "strides": (2, 2, 1),  # 31x31 maps, then 16x16 and 8x8
            "kinds": (
                ("whitening", "pointwise", "pointwise"),
                ("dense", "dense", "pointwise"),
                ("dense", "separable_dilated", "separable"),
                ("separable", "separable", "separable"),
            ),
            **_FINE,
        },
    ),
    "mnist-20k": Preset(
        "99.4% on MNIST under 20,000 parameters", replace(_DIGITS, epochs=10), {"widths": (16, 24, 44, 60), **_SMALL}
    ),
    "mnist-8k": Preset("99.4% on MNIST under 8,000 parameters", _DIGITS, {"widths": (16, 16, 24, 32), **_SMALL}),
    **{
        f"cifar-50k{'' if norm == 'batch' else f'-{norm}'}": Preset(
            f"CIFAR-10 under 50,000 parameters within 20 epochs, with {title}",
            replace(_FAST, epochs=20, augment=0.3),
            {**_FIFTY, "norm": norm},
        )
        for norm, title in (("batch", "BatchNorm"), ("group", "GroupNorm"), ("layer", "LayerNorm"))
    },
    "onecycle-90": Preset(
        "90% on CIFAR-10 in few epochs of batches of 512, OneCycle with its peak at epoch 5",
        replace(_SHIFTED, epochs=10, batch_size=512, max_lr=0.016, pct_start=0.5, label_smoothing=0.1),
        {
            "widths": (24, 64, 128, 256),
            "pools": (1, 2, 2, 2),  # 31x31 maps, then 15x15, 7x7 and 3x3
            "kinds": (("whitening",), *[("dense", "dense")] * 3),
            "activation": "silu",
            "dirac": True,
            **_FINE,
        },
    ),
    "finetune": Preset(
        "all layers of trained weights (--init), at a low learning rate",
        TrainConfig(
            epochs=5,
            batch_size=64,
            max_lr=0.001,
            beta2=0.99,
            weight_decay=0.05,
            label_smoothing=0.1,
            ema_decay=0.997,
            shift=2,
            alternating_flip=True,
            workers=0,
        ),
        needs_weights=True,
    ),
    "baseline": Preset(
        "the network of sprint-larger trained to the end, with augmentation",
        TrainConfig(epochs=20, batch_size=128, max_lr=0.01, weight_decay=0.05, augment=0.5, label_smoothing=0.1, ema_decay=0.99),
    ),
}


def get_preset(name: str, has_weights: bool = False) -> Preset:
    """The preset of that name. Raises InputError, which lists the names, where there is none, and where it is for trained weights
    or a network of the user's own, unless there are some."""
    if name not in PRESETS:
        raise InputError(
            f"unknown preset '{name}': choose from {', '.join(PRESETS)}; `./run.sh train --help` says what each is for"
        )
    if PRESETS[name].needs_weights and not has_weights:
        raise InputError(f"the preset {name} requires trained weights: use train with --init, or choose another preset")
    return PRESETS[name]
