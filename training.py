"""The only training loop of this repository."""

from __future__ import annotations

import bisect
import contextlib
import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer of a process imports it, for about a second: not on the sprint's clock
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from config import InputError, TrainConfig
from images.data import AugmentedBatches, ImageDataset, Split, VectorisedBatches, normalise, statistics, stratified_split
from learning import distributed
from learning.distillation import Teacher, distillation_loss
from learning.history import Evaluation, History, Observer
from learning.inference import loss_and_accuracy, predict_logits
from learning.optimizers import build_optimizer
from learning.resolution import scaled
from utils import (
    demand_writable,
    interrupt_flag,
    keep_freed_memory,
    load_checkpoint,
    provenance,
    random_states,
    resolve_device,
    resolve_precision,
    restore_random_states,
    save_checkpoint,
)

READ_EVERY = 20
"""Steps between two readings of the losses on an accelerator, which has to finish all its work for each; a CPU has anyway."""
FLAT_EVALUATIONS = 20
"""Evaluations in a row over which a training loss that hardly moves is flat."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; the step under way was finished and the state saved. The text says how to go on."""


class Trainer:
    """Trains `model` on `dataset` as `config` says.

    The held-out images are cut from the training split here. Everything else that touches an image happens in `fit`, whose
    duration is the clock of a sprint.

    In a group of processes (see distributed.py) each trains on its part of every batch, with the statistics of the whole batch in
    BatchNorm, and looks at its part of the held-out images; losses and accuracies are those of the whole. CutMix mixes the images
    of a part. Process 0 writes.

    Args:
        model: any module that maps (N, C, H, W) floats to raw logits (N, num_classes). One that has a method
            ``whiten(images)`` is given `config.whiten_images` normalised training images before the first step.
        dataset: the test split is touched only where `config.early_exit_accuracy` is set.
        config: all hyper-parameters.
        out_dir: where ``checkpoint.pt`` is kept; None writes nothing.
        card: what the checkpoint should say of the network besides what the Trainer knows (preset, arguments of Net).
        val_split: the held-out images, where they are not to be cut from the training split; all of that is then trained on.
        progress: an open bar that `fit` moves on by the images seen, for several trainings with one bar; None for one of its own.
        observer: is told what happens.

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
    ) -> None:
        self.dataset, self.config, self.progress = dataset, config, progress
        self.observer = observer or Observer()
        self.device = resolve_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        keep_freed_memory()
        if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "cl"))):
            raise InputError("torch.compile needs a C++ compiler, and there is none here: install g++, or leave compile out")
        self.train_split, self.val_split = (
            (dataset.train, val_split) if val_split else stratified_split(dataset.train, config.val_images, config.seed)
        )
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.averaged: AveragedModel | None = None
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
            InputError: when the loss is not finite, a checkpoint cannot be written or does not fit, or another process is lost.
        """
        self.started = time.perf_counter()
        self._prepare()
        if resume:
            self._restore()
        self.observer.started(self)
        last = self.step if self.history.reached or self._is_flat() else self.total_steps
        batches = self.batches.steps(range(self.step, last))
        shared = self.progress is not None
        bar = (
            contextlib.nullcontext(self.progress)
            if shared
            else tqdm(initial=self.step * self.config.batch_size, unit=" images", unit_scale=True, disable=None, leave=False)
        )
        with bar as progress, contextlib.closing(batches), interrupt_flag() as interrupted, distributed.watch(self._how_to_go_on):
            waits_since = time.perf_counter()
            for inputs, targets in batches:
                self.history.waiting_seconds += time.perf_counter() - waits_since
                self._train_step(inputs, targets)
                if not shared:
                    progress.total = self.cycle_ends[bisect.bisect_left(self.cycle_ends, self.step)] * self.config.batch_size
                progress.update(self.config.batch_size)
                progress.set_postfix(self._postfix(), refresh=False)
                if self.is_due(self.config.eval_every):
                    self._evaluate()
                    if self._early_exit() or self._is_flat():
                        break
                if self.checkpoint_path and self.is_due(self.config.checkpoint_every):
                    self._save()
                if distributed.any_interrupted(interrupted()):
                    self._stop()
                waits_since = time.perf_counter()
        self.history.images_seen = self.step * self.config.batch_size
        self.history.total_seconds = self._clock()
        if self.checkpoint_path:
            self._save()
        return self.history

    @property
    def trained_model(self) -> nn.Module:
        """The network to evaluate and to keep: the averaged one where there is an average."""
        return self.averaged.module if self.averaged else self.model

    def final_card(self, test_accuracy: float | None, precision: torch.dtype) -> dict[str, Any]:
        """The card of the finished training, for its weights: `test_accuracy` (0 to 1) was found in `precision`."""
        last = self.history.evaluations[-1]
        return self.card | {
            "test_accuracy": test_accuracy,
            "val_accuracy": last.val_accuracy,
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
        self.mean, self.std = statistics(few)
        self.card |= {"mean": list(self.mean), "std": list(self.std)}
        if config.augment:
            self.batches = AugmentedBatches(
                self.train_split,
                config.batch_size,
                self.mean,
                self.std,
                config.augment,
                config.images_per_draw,
                config.seed,
                config.workers,
                self.device,
                shard,
            )
        else:
            self.batches = VectorisedBatches(
                self.train_split,
                config.batch_size,
                self.mean,
                self.std,
                config.seed,
                self.device,
                shard,
                config.shift,
                config.alternating_flip,
            )
        budget = config.steps or max(1, round(config.epochs * self.batches.steps_per_epoch))
        self.cycle_ends = [budget * (2**n - 1) for n in range(1, config.cycles + 1)]
        self.total_steps = self.cycle_ends[-1]
        if hasattr(self.model, "whiten"):
            pixels = torch.from_numpy(images[np.sort(sample[: config.whiten_images])]).to(self.device)
            self.model.whiten(normalise(pixels, self.mean, self.std))
        self.network = distributed.wrap(self.model, config.compile)  # to train through; all else is done with the bare module
        if config.ema_decay:
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
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
        lengths = [budget * 2**n for n in range(config.cycles)]
        # OneCycleLR divides by zero where the rise is a single step.
        pct_start = config.pct_start * (1.001 if 1 in [config.pct_start * length for length in lengths] else 1)
        cycles = [
            OneCycleLR(
                self.optimizer,
                config.max_lr,
                length,
                pct_start=pct_start,
                anneal_strategy="linear",
                div_factor=config.div_factor,
                final_div_factor=config.final_div_factor,
                cycle_momentum=False,
            )
            for length in lengths
        ]
        self.scheduler = SequentialLR(self.optimizer, cycles, self.cycle_ends[:-1])

    def _train_step(self, inputs: Tensor, targets: Tensor) -> None:
        self.model.train()
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        labels = targets
        inputs = scaled(inputs, self.config.resolutions, self.step / self.total_steps)
        if self.config.cutmix and torch.rand(()).item() < self.config.cutmix:
            inputs, labels = self.cutmix(inputs, targets)
            targets = labels.argmax(1)  # the class that most of the image shows
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits = self.network(inputs)
        loss = self._loss(logits.float(), inputs, labels)
        correct = (logits.detach().argmax(1) == targets).sum()
        self.unread.append((self.step + 1, self.learning_rate, torch.stack([loss.detach(), correct])))
        if len(self.unread) >= self.read_every:
            self._read_losses()
        loss.backward()
        self.optimizer.step()
        if self.averaged:
            self.averaged.update_parameters(self.model)
        self.step += 1
        self.observer.trained(self, inputs)
        self.optimizer.zero_grad()
        if self.step < self.total_steps:
            self.scheduler.step()

    def _read_losses(self) -> None:
        """Bring the losses of the latest steps from the device to the running sums. Raises InputError where one is not finite."""
        if not self.unread:
            return
        steps, rates, values = zip(*self.unread, strict=True)
        self.unread = []
        for step, rate, (loss, correct) in zip(steps, rates, distributed.total(torch.stack(values).cpu()).tolist(), strict=True):
            loss /= distributed.size()
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss became {loss} at step {step} of {self.total_steps}, learning rate {rate:.3g}: try a "
                    f"lower max_lr{self._last_checkpoint()}"
                )
            self.running["loss"] += loss * self.config.batch_size
            self.running["correct"] += int(correct)
            self.running["images"] += self.config.batch_size
            self.observer.read(step, rate, loss, correct / self.config.batch_size)

    def _loss(self, logits: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        config = self.config
        loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing)
        if self.teachers:
            teacher = self.teachers[self.step % len(self.teachers)]  # by turns: in sum all are imitated, for the time of one
            imitation = distillation_loss(logits, teacher.logits(inputs), config.temperature)
            loss = torch.lerp(loss, imitation, config.teacher_weight)
        return loss

    def is_due(self, every: int) -> bool:
        """Whether what comes every so many steps (0: once an epoch), and at the end of a OneCycle, comes after the latest one."""
        return self.step % (every or self.batches.steps_per_epoch) == 0 or self.step in self.cycle_ends

    def _evaluate(self) -> None:
        self._read_losses()
        logits = self._group_logits(self.val_split)
        val_loss, val_accuracy = loss_and_accuracy(logits, self.val_split.labels)
        images = self.running["images"]
        self.history.evaluations.append(
            Evaluation(
                step=self.step,
                epoch=self.step / self.batches.steps_per_epoch,
                images_seen=self.step * self.config.batch_size,
                learning_rate=self.learning_rate,
                train_loss=self.running["loss"] / images,
                train_accuracy=self.running["correct"] / images,
                val_loss=val_loss,
                val_accuracy=val_accuracy,
            )
        )
        self.history.seconds.append(self._clock())
        self.observer.evaluated(self, logits)
        self.running = dict.fromkeys(self.running, 0)

    def _early_exit(self) -> bool:
        """Make the test pass when the held-out images promise success or a OneCycle is over; True to stop."""
        target = self.config.early_exit_accuracy
        if target is None:
            return False
        promising = self.history.evaluations[-1].val_accuracy >= target + self.config.early_exit_margin
        if promising or self.step in self.cycle_ends:
            _, self.history.test_accuracy = self.evaluate(self.dataset.test)
            self.history.test_passes += 1
            self.history.reached = self.history.test_accuracy > target
        return self.history.reached

    def _is_flat(self) -> bool:
        losses = [evaluation.train_loss for evaluation in self.history.evaluations[-FLAT_EVALUATIONS:]]
        return len(losses) == FLAT_EVALUATIONS and max(losses) - min(losses) < self.config.flat_loss

    def _clock(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def _postfix(self) -> dict[str, str]:
        images = self.running["images"]
        values = {"lr": f"{self.learning_rate:.2g}"}
        if images:
            values |= {"loss": f"{self.running['loss'] / images:.3f}", "accuracy": f"{self.running['correct'] / images:.1%}"}
        if self.history.evaluations:
            values["val"] = f"{self.history.evaluations[-1].val_accuracy:.1%}"
        return values

    def _last_checkpoint(self) -> str:
        if self.checkpoint_path and self.checkpoint_path.exists():
            return f"; the last good checkpoint is {self.checkpoint_path}"
        return ""

    def _how_to_go_on(self) -> str:
        checkpoint = self._last_checkpoint()
        return f" after step {self.step} of {self.total_steps}" + (
            f"{checkpoint}: the same command with --resume goes on from it" if checkpoint else "; there is no checkpoint yet"
        )

    def _stop(self) -> None:
        if not self.checkpoint_path:
            raise Interrupted(f"after step {self.step} of {self.total_steps}; nothing is kept without an output folder")
        self._save()
        raise Interrupted(
            f"after step {self.step} of {self.total_steps}, saved in {self.checkpoint_path}: the same command with --resume goes on"
        )

    def _save(self) -> None:
        self._read_losses()
        state = self.trained_model.state_dict()
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
            raise InputError(
                f"the weights are no longer finite after step {self.step}, learning rate {self.learning_rate:.3g}: "
                f"try a lower max_lr{self._last_checkpoint()}"
            )
        self.observer.saving()
        with distributed.main_first():
            if distributed.is_main():
                save_checkpoint(
                    self.checkpoint_path,
                    {
                        "card": self.card,
                        "config": asdict(self.config),
                        "model": state,
                        "step": self.step,
                        "trained": self.model.state_dict(),
                        "average_steps": int(self.averaged.n_averaged) if self.averaged else 0,
                        "optimizer": self.optimizer.state_dict(),
                        "scheduler": self.scheduler.state_dict(),
                        "random": random_states(),
                        "history": asdict(self.history),
                        "running": self.running,
                        "seconds": self._clock(),
                    },
                )

    def _restore(self) -> None:
        if not self.checkpoint_path or not self.checkpoint_path.exists():
            raise InputError(f"nothing to resume: there is no {self.checkpoint_path}")
        state = load_checkpoint(self.checkpoint_path)
        for what, key in (("data set", "dataset"), ("classes", "classes"), ("size of image", "image_size"), ("network", "net")):
            was, now = state["card"].get(key), self.card.get(key)
            if was != now:
                raise InputError(f"{self.checkpoint_path} was made with another {what} ({was}, not {now}): give it another --out")
        was = asdict(TrainConfig()) | state["config"]  # a field that is newer than the checkpoint had its default
        now = asdict(self.config)
        changed = [
            f"{name} was {was[name]}, is {now.get(name, 'gone')}"
            for name in was
            if name not in now or was[name] != now[name] and name != "workers"
        ]
        if changed:
            raise InputError(f"{self.checkpoint_path} was made with another configuration: {'; '.join(changed)}")
        if state["card"].get("teacher_sha256") != self.card.get("teacher_sha256"):
            raise InputError(
                f"{self.checkpoint_path} was made with another teacher: the weights in "
                f"{' or '.join(self.config.teacher)} have changed since"
            )
        self.model.load_state_dict(state["trained"])
        if self.averaged:
            self.averaged.module.load_state_dict(state["model"])
            self.averaged.n_averaged.fill_(state["average_steps"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = History.from_dict(state["history"])
        self.step, self.running, self.seconds_before = state["step"], state["running"], state["seconds"]
        restore_random_states(state["random"])
