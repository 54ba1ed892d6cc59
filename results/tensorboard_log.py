"""A training as TensorBoard shows it: curves, graph, histograms, augmented images, confusion matrix, hyper-parameters."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from config import InputError
from learning.history import Evaluation, Observer, Training
from limits.copying import copy_of
from results import figures
from results.canvas import pixels
from utils import demand_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = 10
"""Steps between two points of the curves of single batches."""
NUM_IMAGES = 32
ENLARGED = 3
"""Pixels of the log to a pixel of an image, on a side: 32x32 is hard to see."""


class TensorBoardLog(Observer):
    """Writes what happens in a training to event files in `folder`.

    ======================  =====================================================================  =======================
    tag                     what                                                                   when
    ======================  =====================================================================  =======================
    batch/...               loss and accuracy of one batch, its learning rate                      every 10 steps
    loss/..., accuracy/...  training (mean since the last evaluation), validation                  each evaluation
    learning_rate           of the step before                                                     each evaluation
    weights/, gradients/    histogram of each parameter, and of its gradient in the step before    each evaluation
    confusion_matrix        of the validation images                                               each evaluation
    augmented_images        the first batch as the network is given it                             first step
    graph, hparams          the network; configuration of the run                                  start
    test/...                loss and accuracy                                                      end
    ======================  =====================================================================  =======================

    A resumed run goes on in the same curves: TensorBoard drops what an earlier process wrote after the checkpoint. A run from the
    start removes the event files that an earlier one left in `folder`. Nothing that is done here changes the training.

    Raises InputError where `folder` cannot be written, at once or later.
    """

    def __init__(self, folder: Path) -> None:
        demand_writable(folder)
        self.folder = folder
        self.images_wanted = False
        self.thread_errors = threading.excepthook

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        with contextlib.suppress(AttributeError), contextlib.nullcontext() if error is None else contextlib.suppress(OSError):
            self.writer.close()  # there is none where the training did not begin
        threading.excepthook = self.thread_errors

    def started(self, trainer: Training) -> None:
        with self._faults_in_one_line():
            threading.excepthook = self._quiet_about_files
            earlier = list(self.folder.glob("events.out.tfevents.*"))
            goes_on = trainer.step > 0 and bool(earlier)
            if not goes_on:
                for file in earlier:
                    file.unlink()
            # TensorBoard forgets what earlier files have from purge_step on.
            self.writer = SummaryWriter(str(self.folder), purge_step=trainer.step + 1 if goes_on else None)
            if goes_on:
                return
            self.images_wanted = True
            self._hparams(trainer)
            self._graph(trainer)
            for evaluation in trainer.history.evaluations:  # of a run that was resumed, and only then logged
                self._curves(evaluation)

    def trained(self, trainer: Training, inputs: Tensor) -> None:
        with self._faults_in_one_line():
            if self.images_wanted:
                self._images(trainer, inputs)
                self.images_wanted = False
            if trainer.is_due(trainer.config.eval_every):
                for name, parameter in trainer.model.named_parameters():
                    self._histogram(f"weights/{name}", parameter.detach(), trainer.step)
                    if parameter.grad is not None:
                        self._histogram(f"gradients/{name}", parameter.grad, trainer.step)

    def read(self, step: int, learning_rate: float, loss: float, accuracy: float) -> None:
        if step % EVERY == 0:
            self._scalars(step, {"batch/loss": loss, "batch/accuracy": accuracy, "batch/learning_rate": learning_rate})

    def evaluated(self, trainer: Training, logits: Tensor) -> None:
        classes = trainer.dataset.classes
        with self._faults_in_one_line():
            self._curves(trainer.history.evaluations[-1])
            figure = cast("Figure", figures.confusion_figure(trainer.val_split.labels, logits.argmax(1).numpy(), classes))
            self.writer.add_image("confusion_matrix", pixels(figure), trainer.step, dataformats="HWC")

    def saving(self) -> None:
        with self._faults_in_one_line():
            self.writer.flush()  # what the checkpoint takes for done must be on the disk before it

    def tested(self, step: int, loss: float, accuracy: float) -> None:
        """Log the test split's loss and accuracy of the network as it is after all `step` steps."""
        # One step later, so that a finished run which is resumed drops them and logs them again.
        self._scalars(step + 1, {"test/loss": loss, "test/accuracy": accuracy})

    def _curves(self, evaluation: Evaluation) -> None:
        self._scalars(
            evaluation.step,
            {
                "loss/training": evaluation.train_loss,
                "loss/validation": evaluation.val_loss,
                "accuracy/training": evaluation.train_accuracy,
                "accuracy/validation": evaluation.val_accuracy,
                "learning_rate": evaluation.learning_rate,
            },
        )

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        with self._faults_in_one_line():
            for tag, value in values.items():
                self.writer.add_scalar(tag, value, step)

    def _histogram(self, tag: str, values: Tensor, step: int) -> None:
        values = values.float().cpu()
        if values.isfinite().all():  # of others there is none
            self.writer.add_histogram(tag, values.numpy(), step, bins=64)

    def _images(self, trainer: Training, inputs: Tensor) -> None:
        mean, std = (torch.tensor(values)[:, None, None] for values in (trainer.mean, trainer.std))
        images = inputs[:NUM_IMAGES].float().cpu() * std + mean
        images = images if images.shape[1] in (1, 3) else images[:, :1]
        large = images.clamp(0, 1).repeat_interleave(ENLARGED, 2).repeat_interleave(ENLARGED, 3)
        self.writer.add_images("augmented_images", large, trainer.step)

    def _graph(self, trainer: Training) -> None:
        # Of a copy, since a pass in training mode would move the statistics of BatchNorm.
        model = copy_of(trainer.model).cpu().eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.trace, by which it is made, is deprecated
            self.writer.add_graph(model, torch.zeros(1, trainer.dataset.num_channels, *trainer.dataset.image_size))

    def _hparams(self, trainer: Training) -> None:
        # Not by add_hparams, which opens a folder of its own for them, a further one at each call.
        card = {name: trainer.card[name] for name in ("preset", "dataset", "parameters") if name in trainer.card}
        config = {
            name: ", ".join(map(str, value)) if isinstance(value, tuple) else value  # it takes no tuples
            for name, value in asdict(trainer.config).items()
        }
        file_writer: Any = self.writer.file_writer  # torch's stubs know its first value alone, None
        for summary in hparams(card | config, {"accuracy/validation": 0, "test/accuracy": 0}):
            file_writer.add_summary(summary)

    @contextlib.contextmanager
    def _faults_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write the TensorBoard log in {self.folder}: {error.strerror or error}; the last checkpoint "
                "is kept, and the same command with --resume goes on from it"
            ) from error

    def _quiet_about_files(self, arguments: threading.ExceptHookArgs) -> None:
        """The writer's thread keeps its error for the next call, which tells it; its traceback says nothing more."""
        if not isinstance(arguments.exc_value, OSError):
            self.thread_errors(arguments)
