"""Predictions per second of the presets' networks, by form: fp32, bf16, BatchNorm folded, compiled.

    python benchmarks/inference.py                          # accurate, slim and fast85, in batches of 256
    python benchmarks/inference.py --presets accurate --json docs/records/inference.json

Random weights and random images, already normalised: neither changes the time. Each round runs every form once, so that drifts of
the machine's speed fall on all alike; the table gives the median, minimum and maximum of the rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import limit_spinning

limit_spinning()

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tqdm import tqdm

from benchmarks import run_command
from config import InputError
from learning.inference import for_inference, seconds_a_call
from learning.presets import get_preset
from model import Net
from utils import demand_writable, provenance, resolve_device, resolve_precision, seed_everything, write_json


@dataclass
class Benchmark:
    """Time the networks of presets, form by form, in turn."""

    presets: tuple[str, ...] = ("accurate", "slim", "fast85")
    """Presets of the networks."""
    batch_size: int = 256
    """Images a call."""
    rounds: int = 10
    """How often each form is timed, over a quarter of a second or more."""
    device: str = "auto"
    """auto, cpu, cuda, xpu or mps."""
    compile: bool = True
    """Also through torch.compile, with the weights frozen: half a minute a network before the first call."""
    json: Path | None = None
    """Write the record here."""

    def run(self) -> int:
        networks = {name: get_preset(name).net for name in self.presets}
        if self.batch_size < 1 or self.rounds < 1:
            raise InputError("--batch-size and --rounds must be 1 or more")
        if self.json:
            demand_writable(self.json.parent)
        device = resolve_device(self.device)
        rates: dict[str, dict[str, list[float]]] = {}
        with torch.inference_mode():
            for name, arguments in networks.items():
                seed_everything(0)
                model = Net(3, 10, **arguments).to(device).to(memory_format=torch.channels_last).eval()
                forms = self.forms(model, device)
                for predict in tqdm(forms.values(), f"{name}: first calls", disable=None, leave=False):
                    predict()
                rates[name] = {form: [] for form in forms}
                for _ in tqdm(range(self.rounds), name, disable=None, leave=False):
                    for form, predict in forms.items():
                        rates[name][form].append(self.batch_size / seconds_a_call(predict, device))
        print("| network | form | images/s: median | min | max |\n|---|---|---|---|---|")
        for name, by_form in rates.items():
            for form, values in by_form.items():
                print(f"| {name} | {form} | {statistics.median(values):,.0f} | {min(values):,.0f} | {max(values):,.0f} |")
        if self.json:
            write_json(self.json, {"batch_size": self.batch_size, "images_per_second": rates, **provenance()})
        return 0

    def forms(self, model: Net, device: torch.device) -> dict[str, Callable[[], torch.Tensor]]:
        """What to call for one batch, by the name of the form."""
        fast = resolve_precision("auto", device)
        images = torch.randn(self.batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)

        def cast() -> torch.Tensor:
            with torch.autocast(device.type, fast):
                return model(images)

        folded, few_bytes = for_inference(model, fast), images.to(fast)
        forms = {"fp32": lambda: model(images)}
        if fast != torch.float32:
            forms["bf16 by autocast"] = cast
        forms[f"{str(fast).removeprefix('torch.')}, BatchNorm folded"] = lambda: folded(few_bytes)
        if self.compile:
            from torch._inductor import config

            config.freezing = True  # weights become constants, in the layout that the kernels want
            compiled = torch.compile(folded)
            forms["the same, compiled"] = lambda: compiled(few_bytes)
        return forms


if __name__ == "__main__":
    sys.exit(run_command(Benchmark, __doc__))
