"""The log of a training: a line for each evaluation, on the screen and in log.csv."""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from config import InputError
from learning.history import Evaluation, Observer, Training

if TYPE_CHECKING:
    from torch import Tensor

LOG = "log.csv"
COLUMNS = (*(field.name for field in fields(Evaluation)), "seconds")


class Log(Observer):
    """Prints a line for each evaluation, once an epoch unless `eval_every` says otherwise, on a terminal or off it.

    With `folder`, log.csv there gets the same as a row: the fields of `Evaluation`, and the seconds on the clock of the training.
    In a resumed run it holds the evaluations before the checkpoint once, as the history does.

    Raises InputError where the file cannot be written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = folder / LOG if folder else None

    def started(self, trainer: Training) -> None:
        self._write("w", [list(COLUMNS), *(self._row(trainer, i) for i in range(len(trainer.history.evaluations)))])

    def evaluated(self, trainer: Training, logits: Tensor) -> None:
        last, seconds = trainer.history.evaluations[-1], trainer.history.seconds[-1]
        self._write("a", [self._row(trainer, -1)])
        line = (
            f"epoch {last.epoch:g}: training loss {last.train_loss:.3f}, accuracy {last.train_accuracy:.1%}; "
            f"validation loss {last.val_loss:.3f}, accuracy {last.val_accuracy:.1%}; "
            f"learning rate {last.learning_rate:.2g}, {seconds:.1f} s"
        )
        tqdm.write(line, file=sys.stdout)  # a bar on the terminal stays below it
        sys.stdout.flush()

    def _row(self, trainer: Training, index: int) -> list[float]:
        return [*asdict(trainer.history.evaluations[index]).values(), trainer.history.seconds[index]]

    def _write(self, mode: str, rows: list) -> None:
        if self.path:
            try:
                with open(self.path, mode, newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows(rows)
            except OSError as error:
                raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error
