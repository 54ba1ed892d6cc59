"""The only training loop of this repository."""

from __future__ import annotations

import bisect
import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from config import InputError, TrainConfig
from images.data import (
    AugmentedBatches,
    ImageDataset,
    Split,
    VectorisedBatches,
    normalise,
    statistics,
    stratified_split,
    worker_ends_told,
)
from learning import checkpoint, distributed
from learning.averaging import WeightAverage, copy_with, state_of
from learning.distillation import Teacher, distillation_loss
from learning.history import Evaluation, History, Observer
from learning.inference import loss_and_accuracy, predict_logits
from learning.optimizers import build_optimizer, freeze_features
from learning.resolution import demand_taken, scaled
from learning.schedule import budget_of, learning_rate, next_cycle
from utils import demand_writable, interrupt_flag, keep_freed_memory, provenance, resolve_device, resolve_precision

READ_EVERY = 20
"""Steps between two readings of the losses on an accelerator, which has to finish all its work for each; a CPU has anyway."""


class Diverged(InputError):
    """The training loss is not finite."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; the step under way was finished and the state saved. The text says how to go on."""


class Trainer:
    """Trains `model` on `dataset` as `config` says.

    The validation images are cut from the training split here, unless the data set has some of its own. Everything else that
    touches an image happens in `fit`, whose duration is the clock of a sprint.

    In a group of processes (see distributed.py) each trains on its part of every batch, with the statistics of the whole batch in
    BatchNorm, and evaluates its part of the validation images; losses and accuracies are those of the whole. CutMix mixes the
    images of a part. Process 0 writes.

    Args:
        model: any module that maps (N, C, H, W) floats to raw logits (N, num_classes). One that has a method
            ``whiten(images)`` is given `config.whiten_images` normalised training images before the first step.
        dataset: the test split is touched only where `config.early_exit_accuracy` is set.
        config: all hyper-parameters.
        out_dir: where ``checkpoint.pt`` is kept; None writes nothing.
        card: what the checkpoint should say of the network besides what the Trainer knows (preset, arguments of Net). Where it has
            "mean" and "std", which trained weights need, images are normalised with those instead of their own.
        val_split: other validation images than those of the data set; all training images are then trained on.
        progress: an open bar that `fit` moves on by the images seen, for several trainings with one bar; None for one of its own.
        observer: is told what happens.
        schedule: the learning rate of each step, from 0; None for the OneCycle of `config`.

    Raises InputError where the configuration does not fit the data, the device or the folder.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: ImageDataset,
        config: TrainConfig,
        out_dir: Path | None = None,
        card: dict[str, Any] | None = None,
        val_split: Split | None = None,
        progress: tqdm | None = None,
        observer: Observer | None = None,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.dataset, self.config, self.progress, self.schedule = dataset, config, progress, schedule
        self.observer = observer or Observer()
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        keep_freed_memory()
        if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))):
            raise InputError("torch.compile needs a C++ compiler, and there is none here: install g++, or leave compile out")
        self.train_split, self.val_split = dataset.train, val_split or dataset.val or dataset.train
        if self.val_split is dataset.train and config.val_images:
            self.train_split, self.val_split = stratified_split(dataset.train, config.val_images, config.seed)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        demand_taken(self.model, dataset.num_channels, config.resolutions, self.device)
        self.averaged: WeightAverage | None = None
        self.best: dict[str, Tensor] | None = None  # the state dict of the best evaluation, for early stopping
        self.kept: nn.Module | None = None  # the network to keep where it is neither the averaged nor the trained one
        self.checkpoint_path = out_dir / "checkpoint.pt" if out_dir else None
        if out_dir and distributed.is_main():
            demand_writable(out_dir)
        self.card = {
            "dataset": dataset.name,
            "classes": list(dataset.classes),
            "num_channels": dataset.num_channels,
            "image_size": list(dataset.image_size),
            **(card or {}),
        }
        if out_dir:
            self.card["data"] = dataset.content()
        self.history = History()
        self.step = 0
        self.learning_rate = 0.0  # of the latest step
        self.seconds_before = 0.0
        self.running = {"loss": 0.0, "correct": 0, "images": 0}  # sums since the last evaluation
        self.read_every = 1 if self.device.type == "cpu" else READ_EVERY
        self.unread: list[tuple[int, float, Tensor]] = []  # step, learning rate, (loss, correct) still on the device

    def fit(self, resume: bool = False) -> History:
        """Train until the budget is used up, `config.early_exit_accuracy` is exceeded on the whole test split, or the training
        loss is flat.

        With `resume`, go on from the checkpoint in the output folder as if nothing had happened: on a CPU, to bit-identical
        weights and history.

        Raises:
            Interrupted: at Ctrl-C, after the step under way, with the state saved.
            Diverged: when the loss is not finite.
            InputError: when a checkpoint cannot be written or does not fit, or another process is lost.
        """
        self.started = time.perf_counter()
        self._prepare()
        if resume:
            checkpoint.restore(self)
        self.observer.started(self)
        last = self.step if self.is_over() or self.step >= self.cycle_ends[-1] else self.total_steps
        batches = self.batches.steps(range(self.step, last))
        bar = (
            contextlib.nullcontext(self.progress)
            if self.progress is not None
            else tqdm(initial=self.step * self.config.batch_size, unit=" images", unit_scale=True, disable=None, leave=False)
        )
        watched = distributed.watch(self._how_to_go_on)
        with bar as progress, contextlib.closing(batches), interrupt_flag() as interrupted, watched, worker_ends_told():
            waits_since = time.perf_counter()
            for inputs, targets in batches:
                self.history.waiting_seconds += time.perf_counter() - waits_since
                self._train_step(inputs, targets)
                if self.progress is None:
                    progress.total = self.cycle_ends[bisect.bisect_left(self.cycle_ends, self.step)] * self.config.batch_size
                progress.update(self.config.batch_size)
                progress.set_postfix(self._postfix(), refresh=False)
                if self.is_due(self.config.eval_every):
                    self._evaluate()
                    self._pass_test()
                    if self.is_over() or self.step == self.cycle_ends[-1]:
                        break
                if self.checkpoint_path and self.is_due(self.config.checkpoint_every):
                    checkpoint.save(self)
                if distributed.any_interrupted(interrupted()):
                    self._stop()
                waits_since = time.perf_counter()
            if not self.checkpoint_path and distributed.any_interrupted(interrupted()):
                self._stop()  # in the last step: one of many short trainings would be over, and the next would begin
        self.history.images_seen = self.step * self.config.batch_size
        if self.config.early_exit_accuracy is None:  # else the test split has already been shown what is kept
            self._choose_weights()
        self.history.total_seconds = self.clock()
        if self.checkpoint_path:
            checkpoint.save(self)
        return self.history

    @property
    def trained_model(self) -> nn.Module:
        """The network to evaluate and to keep: the averaged one where there is an average, unless another is better in the end."""
        return self.kept or (self.averaged.module if self.averaged else self.model)

    def final_card(self, test_accuracy: float | None, precision: torch.dtype) -> dict[str, Any]:
        """The card of the finished training, for its weights: `test_accuracy` (0 to 1) was found in `precision`."""
        last = self.history.evaluations[-1]
        return self.card | {
            "test_accuracy": test_accuracy,
            "val_accuracy": self.history.val_accuracy,
            "precision": "bf16" if precision == torch.bfloat16 else "fp32",
            "epochs": last.epoch,
            "images_seen": self.history.images_seen,
            "seconds": self.history.total_seconds,
            "seed": self.config.seed,
            **provenance(),
        }

    def predict(self, split: Split, precision: torch.dtype | None = None) -> Tensor:
        """Raw logits (N, num_classes), float32 on the CPU, of the trained network on `split`; in the precision of training unless
        another is given."""
        return predict_logits(self.trained_model, split.images, self.mean, self.std, self.device, precision or self.precision)

    def evaluate(self, split: Split, precision: torch.dtype | None = None) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy (0 to 1) of the trained network on `split`; in a group, all must call it."""
        return loss_and_accuracy(self._group_logits(split, precision), split.labels)

    def _group_logits(self, split: Split, precision: torch.dtype | None = None) -> Tensor:
        mine = distributed.part(len(split.labels))
        logits = torch.zeros(len(split.labels), self.dataset.num_classes)
        if mine.start < mine.stop:
            logits[mine] = self.predict(Split(split.images[mine], split.labels[mine]), precision)
        return distributed.total(logits)

    def _prepare(self) -> None:
        """All that looks at images or weights before the first step."""
        config, images = self.config, self.train_split.images
        shard = distributed.rank(), distributed.size()
        sample = np.random.default_rng(config.seed).permutation(len(images))
        few = images[np.sort(sample[: config.statistics_images])] if config.statistics_images else images
        self.mean: tuple[float, ...]
        self.std: tuple[float, ...]
        self.mean, self.std = (self.card["mean"], self.card["std"]) if "mean" in self.card else statistics(few)
        self.card |= {"mean": list(self.mean), "std": list(self.std)}
        batches = AugmentedBatches if config.augmentations else VectorisedBatches
        self.batches = batches(self.train_split, config, self.mean, self.std, self.device, shard)
        self.steps_per_epoch = self.batches.steps_per_epoch
        self.cycle_ends = [budget_of(config, self.steps_per_epoch)]
        self.total_steps = self.cycle_ends[0] * (2**config.cycles - 1)
        if hasattr(self.model, "whiten") and config.whiten_images:
            pixels = torch.from_numpy(images[np.sort(sample[: config.whiten_images])]).to(self.device)
            cast(Any, self.model).whiten(normalise(pixels, self.mean, self.std))
        if config.freeze:
            freeze_features(self.model)
        self.network = distributed.wrap(self.model, config.compile)  # to train through; all else is done with the bare module
        if config.ema_decay:
            self.averaged = WeightAverage(self.model, config.ema_decay)
        self.class_weights = None
        if config.class_weights == "balanced":
            counts = torch.bincount(torch.from_numpy(self.train_split.labels), minlength=self.dataset.num_classes)
            self.class_weights = (len(images) / (counts.count_nonzero() * counts.clamp_min(1))).to(self.device)
        if config.cutmix:
            from torchvision.transforms import v2  # a tenth of a second, which is not the sprint's

            self.cutmix = v2.CutMix(num_classes=self.dataset.num_classes)
        self.teachers = [
            Teacher(Path(path), self.card["classes"], self.dataset.num_channels, self.mean, self.std, self.device, self.precision)
            for path in config.teacher
        ]
        if self.teachers:
            self.card["teacher_sha256"] = [teacher.sha256 for teacher in self.teachers]
        self.optimizer = build_optimizer(self.model, config, self.precision)

    def _train_step(self, inputs: Tensor, targets: Tensor) -> None:
        self.model.train(not self.config.freeze)  # frozen features keep the statistics of their BatchNorm too
        self.learning_rate = self.schedule(self.step) if self.schedule else learning_rate(self.step, self.cycle_ends, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        labels = targets
        inputs = scaled(inputs, self.config.resolutions, self.step / self.total_steps)
        if self.config.cutmix and torch.rand(()).item() < self.config.cutmix:
            inputs, labels = self.cutmix(inputs, targets)
            targets = labels.argmax(1)  # the class that most of the image shows
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            try:
                logits = self.network(inputs)
            except ValueError as error:
                if len(inputs) > 1 or "more than 1 value per channel" not in str(error):
                    raise
                raise InputError(
                    "BatchNorm cannot train on one image with maps of one pixel: choose a larger batch_size"
                ) from error
        loss = self._loss(logits.float(), inputs, labels)
        correct = (logits.detach().argmax(1) == targets).sum()
        self.unread.append((self.step + 1, self.learning_rate, torch.stack([loss.detach(), correct])))
        if len(self.unread) >= self.read_every:
            self.read_losses()
        loss.backward()
        self.optimizer.step()
        if self.averaged:
            self.averaged.update_parameters(self.model)
        self.step += 1
        self.observer.trained(self, inputs)
        self.optimizer.zero_grad()

    def read_losses(self) -> None:
        """Bring the losses of the latest steps from the device to the running sums. Raises InputError where one is not finite."""
        if not self.unread:
            return
        steps, rates, values = zip(*self.unread, strict=True)
        self.unread = []
        for step, rate, (loss, correct) in zip(steps, rates, distributed.total(torch.stack(values).cpu()).tolist(), strict=True):
            loss /= distributed.size()
            if not math.isfinite(loss):
                raise Diverged(
                    f"the loss became {loss} at step {step} of {self.total_steps}, learning rate {rate:.3g}: try a "
                    f"lower max_lr{self.last_checkpoint()}"
                )
            self.running["loss"] += loss * self.config.batch_size
            self.running["correct"] += int(correct)
            self.running["images"] += self.config.batch_size
            self.observer.read(step, rate, loss, correct / self.config.batch_size)

    def _loss(self, logits: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        config = self.config
        weights, smoothing = self.class_weights, config.label_smoothing
        if weights is None:
            loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        else:  # the mean over the images: divided by the sum of the weights, that of a few images would be of another scale
            loss = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing) / len(targets)
        if self.teachers:
            teacher = self.teachers[self.step % len(self.teachers)]  # by turns: in sum all are imitated, for the time of one
            imitation = distillation_loss(logits, teacher.logits(inputs), config.temperature)
            loss = torch.lerp(loss, imitation, config.teacher_weight)
        return loss

    def is_due(self, every: int) -> bool:
        """Whether what comes every so many steps (0: once an epoch), and at the end of a OneCycle, comes after the latest one."""
        return self.step % (every or self.steps_per_epoch) == 0 or self.step in self.cycle_ends

    def _evaluate(self) -> None:
        self.read_losses()
        logits = self._group_logits(self.val_split)
        val_loss, val_accuracy = loss_and_accuracy(logits, self.val_split.labels)
        images = self.running["images"]
        self.history.evaluations.append(
            Evaluation(
                step=self.step,
                epoch=self.step / self.steps_per_epoch,
                images_seen=self.step * self.config.batch_size,
                learning_rate=self.learning_rate,
                train_loss=self.running["loss"] / images,
                train_accuracy=self.running["correct"] / images,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
            )
        )
        self.history.seconds.append(self.clock())
        if self.config.patience and self.history.evaluations_since_best() == 0:
            self.best = state_of(self.trained_model)
        self.observer.evaluated(self, logits)
        self.running = dict.fromkeys(self.running, 0)

    def _pass_test(self) -> None:
        """Make the test pass of an early exit when the validation images promise success or a OneCycle is over."""
        target = self.config.early_exit_accuracy
        if target is None:
            return
        missing = target + self.config.early_exit_margin - self.history.evaluations[-1].val_accuracy
        is_end = self.step in self.cycle_ends
        if missing <= 0 or is_end:
            _, self.history.test_accuracy = self.evaluate(self.dataset.test)
            self.history.test_passes += 1
            self.history.reached = self.history.test_accuracy > target
        if is_end and not self.history.reached and len(self.cycle_ends) < self.config.cycles and self.step < self.total_steps:
            self.cycle_ends.append(min(self.step + next_cycle(self.step, missing), self.total_steps))

    def _choose_weights(self) -> None:
        """Keep, of the average, the weights themselves and those of the best evaluation, what is best on the validation images."""
        best = self.history.evaluations[-1]
        self.kept, self.history.kept, self.history.kept_accuracy = None, "", None
        choices = {"the weights of the last step, not their average": state_of(self.model)} if self.averaged else {}
        choices |= {"the weights of the best evaluation": self.best} if self.best else {}
        for name, state in choices.items():
            before: nn.Module | None = self.kept
            self.kept = copy_with(self.model, state)
            loss, accuracy = self.evaluate(self.val_split)
            evaluation = replace(best, val_loss=loss, val_accuracy=accuracy)
            if evaluation.is_better_than(best):
                best = evaluation
                self.history.kept, self.history.kept_accuracy = name, accuracy
            else:
                self.kept = before

    def is_over(self) -> bool:
        """Whether training has ended before its budget: the target is reached, the loss is flat, the patience is at an end."""
        history, config = self.history, self.config
        return history.reached or history.is_flat(config.flat_loss) or 0 < config.patience <= history.evaluations_since_best()

    def clock(self) -> float:
        """Seconds of training so far, without those between stop and resume."""
        return self.seconds_before + time.perf_counter() - self.started

    def _postfix(self) -> dict[str, str]:
        images = self.running["images"]
        values = {"lr": f"{self.learning_rate:.2g}"}
        if images:
            values |= {"loss": f"{self.running['loss'] / images:.3f}", "accuracy": f"{self.running['correct'] / images:.1%}"}
        if self.history.evaluations:
            values["val"] = f"{self.history.evaluations[-1].val_accuracy:.1%}"
        return values

    def last_checkpoint(self) -> str:
        """Where the latest checkpoint is, as the end of a sentence; empty where there is none."""
        if self.checkpoint_path and self.checkpoint_path.exists():
            return f"; the last good checkpoint is {self.checkpoint_path}"
        return ""

    def _how_to_go_on(self) -> str:
        kept = self.last_checkpoint()
        return f" after step {self.step} of {self.total_steps}" + (
            f"{kept}: the same command with --resume goes on from it" if kept else "; there is no checkpoint yet"
        )

    def _stop(self) -> None:
        if not self.checkpoint_path:
            raise Interrupted(f"after step {self.step} of {self.total_steps}; nothing is kept without an output folder")
        checkpoint.save(self)
        raise Interrupted(
            f"after step {self.step} of {self.total_steps}, saved in {self.checkpoint_path}: the same command with --resume goes on"
        )
