"""Training a preset for its whole budget."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from commands.shared import network_class, write_report
from config import PRESETS, InputError, Preset, TrainConfig, get_preset
from utils import ROOT, network_card, resolve_device, save_weights, seed_everything, set_threads, summary, write_json


@dataclasses.dataclass
class Train:
    """Train a preset for its whole budget; the held-out images guide it, the test split is looked at once, at the end.

    Every field of the preset's configuration can be overridden; the defaults below are the preset's.
    """

    preset: str = "baseline"
    """Network and hyper-parameters to start from."""
    dataset: str = "auto"
    """As for sprint."""
    data_dir: Path = ROOT / "data"
    """Where the data sets are, or are downloaded to."""
    out: Path | None = None
    """Folder of the checkpoint, the weights and the report (default: runs/PRESET-DATASET)."""
    resume: bool = False
    """Go on from the checkpoint in that folder, exactly as if the run had not stopped."""
    report: bool = False
    """Write a page with curves, confusion matrix and mistakes there."""
    tensorboard: bool = False
    """Log curves, graph, histograms, images, confusion matrix and hyper-parameters to tensorboard/ there."""
    threads: int = 0
    """Threads torch computes with; 0 leaves it to torch (one a core)."""
    conv: Literal["torch", "by-hand"] = "torch"
    """As for sprint."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig] = dataclasses.field(default_factory=lambda: PRESETS["baseline"].train)

    def run(self) -> int:
        preset = get_preset(self.preset)
        if self.conv == "by-hand" and self.config.compile:
            raise InputError("torch.compile does not take the convolution by hand: leave out --compile or --conv by-hand")
        from learning import distributed

        set_threads(self.threads)
        with distributed.group(resolve_device(self.config.device)):
            return self._train(preset)

    def _train(self, preset: Preset) -> int:
        import torch

        from images import data
        from learning import distributed
        from training import Trainer

        with distributed.main_first():
            dataset = data.load(data.resolve_auto(self.dataset, self.data_dir), self.data_dir, self.config.image_size)
        out = self.out or ROOT / "runs" / f"{self.preset}-{dataset.file_name}"
        seed_everything(self.config.seed)
        model = network_class(self.conv)(dataset.num_channels, dataset.num_classes, **preset.net)
        print(summary(model, dataset.num_channels, dataset.image_size), flush=True)
        log = None
        if self.tensorboard and distributed.is_main():
            from results.tensorboard_log import TensorBoardLog

            log = TensorBoardLog(out / "tensorboard")
        card = network_card(model, dataset.num_channels, dataset.image_size, preset.net, preset=self.preset)
        trainer = Trainer(model, dataset, self.config, out, card=card, observer=log)
        precision = torch.float32  # in which every machine finds the same accuracy; bf16 is rounded differently by different ones
        with log or contextlib.nullcontext():
            history = trainer.fit(self.resume)
            test_loss, test_accuracy = trainer.evaluate(dataset.test, precision)
            if log:
                log.tested(trainer.step, test_loss, test_accuracy)
        if not distributed.is_main():
            return 0
        last = history.evaluations[-1]
        card = trainer.final_card(test_accuracy, precision)
        save_weights(out / "model.safetensors", trainer.trained_model.state_dict(), card)
        write_json(
            out / "run.json", {"card": card, "config": dataclasses.asdict(self.config), "history": dataclasses.asdict(history)}
        )
        print(
            f"test accuracy {test_accuracy:.2%} (loss {test_loss:.3f}), held-out accuracy {last.val_accuracy:.2%}, "
            f"{last.epoch:g} epochs in {history.total_seconds:.1f} s, weights in {out / 'model.safetensors'}"
        )
        if self.report:
            write_report(out, f"Training of {self.preset}", trainer, precision)
        return 0
