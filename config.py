"""All hyper-parameters: the configuration of a training run, and `CONFIG`, the course's interface.

Stands alone: imports nothing of this project, and torch only where it is used, so that `--help` does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


class InputError(Exception):
    """Bad input from the user. Its text is one line that says what is wrong and what to do; the command line exits with 2."""


@dataclass(frozen=True)
class TrainConfig:
    """Every hyper-parameter of a training run."""

    epochs: float = 10.0
    """Budget in passes over the training images; fractions are allowed. OneCycle spans exactly the budget."""
    steps: int = 0
    """Budget in optimizer steps instead of epochs; 0 uses epochs."""
    cycles: int = 1
    """At most this many OneCycles (Loshchilov & Hutter 2017), until early_exit_accuracy is exceeded. The less the validation
    accuracy lacks, the shorter the next one is; all together take at most 2**cycles - 1 times the budget. More than 1 requires
    early_exit_accuracy."""
    batch_size: int = 128
    """Images in one optimizer step."""
    stratified: bool = False
    """Whether each batch has the classes in the proportions of the training images (stratified sampling). It helps trainings of
    less than an epoch."""
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """adamw (Loshchilov & Hutter 2019), muon (Jordan et al. 2024) for the convolutions and adamw for the rest, or sgd with Nesterov
    momentum."""
    max_lr: float = 0.01
    """Peak learning rate of OneCycle. On the command line of train, auto finds one by a range test (lr-find)."""
    momentum: float = 0.9
    """Momentum of sgd and muon, beta1 of adamw."""
    beta2: float = 0.97
    """Decay of adamw's second moment; short runs need less than the usual 0.999."""
    weight_decay: float = 0.01
    """Applied to weights of two or more dimensions only: never to biases or BatchNorm."""
    pct_start: float = 0.25
    """Share of the budget in which the learning rate rises (OneCycle, Smith & Topin 2018)."""
    div_factor: float = 25.0
    """Initial learning rate is max_lr / div_factor."""
    final_div_factor: float = 1000.0
    """Final learning rate is the initial one / final_div_factor."""
    label_smoothing: float = 0.0
    """Probability mass spread evenly over all classes (Szegedy et al. 2016), 0 to below 1."""
    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, corrected for its start (Kingma & Ba 2015), which is then
    evaluated and, unless the weights themselves are better on the validation images, kept; 0 for none."""
    teacher: tuple[str, ...] = ()
    """Weights of one or more trained networks. The network learns to imitate them (distillation, Hinton et al. 2015), one teacher
    per step in turn (Fukuda et al. 2017). Empty for none."""
    teacher_weight: float = 0.9
    """Weight of the teacher's term in the loss, 0 to 1; the labels have the rest."""
    temperature: float = 2.0
    """Distillation divides the logits of teacher and student by this before it compares them."""
    statistics_images: int = 0
    """Training images from which the mean and deviation of each channel are computed; 0 for all."""
    whiten_images: int = 2000
    """Training images from which the filters of a whitening stem are computed; 0 leaves the filters as they are."""
    augment: float = 0.0
    """Strength of the augmentation (flip, shift-scale-rotate, coarse dropout): 1 is the usual strength, 0 turns it off."""
    flip: bool = True
    """Whether augmentation flips images horizontally; train turns it off for data sets whose flipped images mean something
    else (mnist, digits)."""
    shift_scale_rotate: bool = True
    """Whether augmentation shifts, scales and rotates images."""
    dropout: bool = True
    """Whether augmentation cuts a hole into each image (coarse dropout)."""
    hole: int = 0
    """Side of the hole in pixels, independent of the strength; 0 for a quarter of the image's side times the strength."""
    images_per_draw: int = 1
    """Images of a batch that get the same random augmentation, 1 to 32; batch_size must be a multiple of it. Drawing the random
    numbers is nearly the whole cost: 16 images that share a draw take a tenth of the time (benchmarks/pipeline.py)."""
    shift: int = 0
    """Every image is shifted by up to this many whole pixels along each axis; the border is filled by reflection. 0 for none."""
    alternating_flip: bool = False
    """Flip every image horizontally in every second epoch, half of the images in the first one (Jordan 2024)."""
    resolutions: tuple[tuple[float, int], ...] = ()
    """(Share of the steps, pixels): up to that share of all steps, images are scaled to that many pixels a side; after the last
    share they keep their size. Fewer pixels cost less while the network learns coarse features (Howard 2018; Touvron et al.
    2019)."""
    cutmix: float = 0.0
    """Share of the batches that are mixed by CutMix (Yun et al. 2019), 0 to 1: each image gets a rectangle of another image of the
    batch, and a share of its label in proportion to the area."""
    workers: int = 2
    """Worker processes that augment images; without augmentation none are started."""
    val_images: int = 5000
    """Validation images, cut from the training split with the same class proportions. They guide the training, the test split does
    not. 0 validates on the training images. A data set with a validation split of its own keeps that."""
    eval_every: int = 0
    """Steps between two evaluations on the validation images; 0 for once an epoch."""
    patience: int = 0
    """Early stopping: stop after this many evaluations without a better validation accuracy (or an equal one with a smaller loss),
    and keep the weights of the best; 0 trains for the whole budget."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs the loss of an image inversely to the number of training images of its class."""
    freeze: bool = False
    """Train only the last layer, on the features of trained weights (train --init)."""
    early_exit_accuracy: float | None = None
    """Stop as soon as a pass over the whole test split shows more than this accuracy (0 to 1)."""
    early_exit_margin: float = 0.0
    """How far above early_exit_accuracy the validation accuracy must be before the test split is evaluated."""
    flat_loss: float = 0.0
    """Stop when the training loss, in nats, has moved by less than this over 20 evaluations in a row; 0 for never. It requires a
    constant learning rate: div_factor 1 and final_div_factor 1."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0 for once an epoch. A run without an output folder writes none."""
    seed: int = 0
    """Seed of the initial weights, the order of the images, the augmentation and the validation split."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto is bf16 (autocast) if the processor has it natively, otherwise fp32."""
    compile: bool = False
    """Train through torch.compile. It pays on GPUs; on two CPU cores a step of a small dense network took 45 ms instead of 33."""
    image_size: int = 0
    """Side in pixels to which the images of a folder: data set are scaled (28 or more); 0 chooses it from the images."""

    def __post_init__(self) -> None:
        """Raises InputError where a field is out of its range."""

        def demand(name: str, ok: bool, range_: str) -> None:
            if not ok:
                raise InputError(f"{name} is {getattr(self, name)}: it must be {range_}")

        for each in fields(self):
            value = getattr(self, each.name)
            if each.type in ("int", "float"):
                is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")
                demand(each.name, is_number and (each.type == "float" or value == int(value)), "a number")
        demand("epochs", self.epochs <= 1_000_000, "1,000,000 at most")
        demand("seed", self.seed <= 10**12, "1,000,000,000,000 at most")  # from it 64 bits are made for every epoch
        for name in ("epochs", "batch_size", "max_lr", "div_factor", "final_div_factor", "cycles", "temperature"):
            demand(name, getattr(self, name) > 0, "above 0")
        for name in (
            "weight_decay",
            "statistics_images",
            "whiten_images",
            "val_images",
            "patience",
            "augment",
            "workers",
            "steps",
            "eval_every",
            "checkpoint_every",
            "seed",
            "flat_loss",
            "shift",
            "hole",
        ):
            demand(name, getattr(self, name) >= 0, "0 or more")
        for name in ("momentum", "beta2", "label_smoothing", "ema_decay"):
            demand(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("teacher_weight", "cutmix"):
            demand(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        demand("pct_start", 0 < self.pct_start < 1, "between 0 and 1")
        demand("images_per_draw", 1 <= self.images_per_draw <= 32, "from 1 to 32")
        demand(
            "image_size",
            self.image_size == 0 or 28 <= self.image_size <= 2048,
            "from 28 to 2048, or 0 to choose it from the images",
        )
        shares = [0.0, *(share for share, _ in self.resolutions), 1.0]
        demand("resolutions", shares == sorted(set(shares)), "pairs with rising shares, between 0 and 1")
        demand("resolutions", all(pixels > 0 for _, pixels in self.resolutions), "pairs with pixels above 0")
        if self.augment and (self.shift or self.alternating_flip):
            raise InputError(f"augment is {self.augment}: with shift or alternating_flip it must be 0")
        if self.early_exit_accuracy is not None:
            demand("early_exit_accuracy", 0 < self.early_exit_accuracy < 1, "between 0 and 1 (0.55 is 55%)")
        elif self.cycles > 1:
            raise InputError(f"cycles is {self.cycles}: more than one requires early_exit_accuracy, which ends them")

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The parts of the augmentation that are done to training images: none where its strength is 0."""
        return tuple(part for part in ("flip", "shift_scale_rotate", "dropout") if self.augment and getattr(self, part))


class OneCycles:
    """One-cycle schedules that follow one another, for a loop that has no scheduler (the course's).

    The first cycle spans `first_cycle` steps. Should the loop go on after it, `model.grow` is called where there is one, and the
    next cycle spans four times as many, each further one twice as many as the one before. Cycles end with an epoch, after which the
    loop tests. An epoch is over when the loop has called the model in eval mode, with at least one image for every LOOK of the
    epoch: fewer are a look in the middle of it. From the second on, its length is known.

    The methods are hooks of the model and its optimizer. They are not closures, with which torch.save(model) would fail.
    """

    LOOK = 25

    def __init__(self, first_cycle: int, max_lr: float) -> None:
        self.first_cycle, self.max_lr = first_cycle, max_lr
        self.total_steps, self.step, self.steps_of_epoch, self.cycles = first_cycle, 0, 0, 1
        self.trained = self.tested = 0  # images of the epoch

    def begin_epoch(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before each forward pass: see whether an epoch is over, and the cycle with it."""
        images = len((*args, *kwargs.values())[0])
        if not model.training:
            self.tested += images
            return
        if self.steps_of_epoch and self.tested * self.LOOK >= self.trained:
            if self.step >= self.total_steps:
                grow: Any = getattr(model, "grow", None)
                if self.cycles == 1 and grow is not None:
                    grow()
                self.cycles += 1
                self.total_steps, self.step = self.first_cycle * 2**self.cycles, 0
            self.total_steps = -(-self.total_steps // self.steps_of_epoch) * self.steps_of_epoch
            self.steps_of_epoch = self.trained = self.tested = 0
        self.trained += images

    def set_learning_rate(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """Before each step of the optimizer."""
        self.step += 1
        self.steps_of_epoch += 1
        rising, falling = self.step / (0.25 * self.total_steps), (self.total_steps - self.step + 1) / (0.75 * self.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = self.max_lr * (min(rising, falling) if self.step <= self.total_steps else 0.1)


def one_cycle_adamw(model: nn.Module) -> Optimizer:
    """AdamW that runs one-cycle schedules by itself, the first one over 50,000 images. One at a time: the schedules of an earlier
    optimizer of the same model end."""
    import math

    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1]},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    for number, hook in list(model._forward_pre_hooks.items()):
        if isinstance(getattr(hook, "__self__", None), OneCycles):  # also that of a model that was saved with it
            del model._forward_pre_hooks[number]
    cycles = OneCycles(math.ceil(50_000 / CONFIG.batch_size), max_lr=0.02)
    optimizer = torch.optim.AdamW(groups, lr=cycles.max_lr, betas=(0.6, 0.97), weight_decay=0.01, fused=True)
    model.register_forward_pre_hook(cycles.begin_epoch, with_kwargs=True)
    optimizer.register_step_pre_hook(cycles.set_learning_rate)
    return optimizer


def uint8_image(image: Any) -> Tensor:
    """A PIL image or (H, W[, C]) uint8 array as a (H, W, C) uint8 tensor: as it lies in memory, which is the fastest way.

    `Model` normalises whole batches, which is cheaper than image by image. Raises ValueError where a pixel is not made of bytes.
    """
    import torch

    is_array = hasattr(image, "shape")
    if (image.dtype != "uint8") if is_array else image.mode in ("1", "I", "F", "I;16"):
        kind = f"an array of {image.dtype}" if is_array else f"an image of mode {image.mode}"
        raise ValueError(f"CONFIG.transforms takes pixels of bytes, not {kind}: convert it to uint8, or to mode RGB or L")
    height, width = image.shape[:2] if is_array else image.size[::-1]
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, -1)


@dataclass(frozen=True)
class CourseConfig:
    """What the course's training loop asks for (its own names)."""

    batch_size: int = 640
    num_epochs: int = 100
    """At most; the loop stops at the first epoch whose test accuracy is above 55%, or after six minutes."""
    transforms: Callable[[Any], Tensor] = uint8_image
    optimizer_factory: Callable[[nn.Module], Optimizer] = one_cycle_adamw


CONFIG = CourseConfig()
