"""The network in torch's runtimes: as it is, compiled, traced, scripted, exported; by precision and memory layout.

Each variant works in a process of its own, so that its first call pays for all that it needs and its peak memory is its own;
compiled kernels go to an empty cache. The processes of one group (training or inference, precision, layout) live side by side and
are timed in turn, round after round, so that drifts of the machine's speed fall on all alike.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import TrainConfig
from images.data import ImageDataset, Split, normalise
from lab.measurements.jobs import BASE, Job, Result
from learning.inference import seconds_a_call
from learning.presets import Preset
from model import Net
from training import Trainer
from utils import resolve_precision


def _compiled(network: nn.Module, mode: str = "default") -> nn.Module:
    compiled = torch.compile(network, mode=mode)
    assert isinstance(compiled, nn.Module), "of a module torch makes a module"
    return compiled


BUILD: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    BASE: lambda network, images: network,
    "torch.compile": lambda network, images: _compiled(network),
    "torch.compile, max-autotune": lambda network, images: _compiled(network, "max-autotune"),
    "torch.jit.trace": lambda network, images: torch.jit.trace(network, images, check_trace=False),
    "torch.jit.script": lambda network, images: torch.jit.script(network),
    "torch.export": lambda network, images: torch.export.export(network, (images,)).module(),
}
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
BEGINNING = 3  # calls until a runtime is warm: TorchScript optimises in its second


def measure(preset: Preset, dataset: ImageDataset, jobs: list[Job], rounds: int) -> list[Result]:
    """Run the jobs, those that differ in the variant alone side by side, `rounds` rounds of a quarter of a second each.

    All start from the same weights, of a training of 40 steps on `dataset`. A job that fails has the reason in its result.
    """
    groups: dict[Job, list[Job]] = {}
    for job in jobs:
        groups.setdefault(replace(job, variant=BASE), []).append(job)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        _save_inputs(preset, dataset, max(job.batch_size for job in jobs), Path(folder) / "inputs.pt")
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload([__name__])  # a process is then there at once, the imports made
        with tqdm(total=len(jobs), unit=" runtimes", disable=None, leave=False) as progress:
            for group in groups.values():
                results += _measure_group(group, rounds, context, Path(folder), progress)
    reference: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.job.variant == BASE and result.output:
            reference.setdefault((result.job.device, result.job.work), result.output)
    for result in results:
        exact = reference.get((result.job.device, result.job.work), result.output)
        result.difference = max((abs(a - b) for a, b in zip(result.output, exact, strict=False)), default=0.0)
    return results


def _save_inputs(preset: Preset, dataset: ImageDataset, batch_size: int, path: Path) -> None:
    """The weights that all variants start from, the images and labels that they get, and what else they must know."""
    config = replace(
        preset.train,
        steps=40,
        cycles=1,
        early_exit_accuracy=None,
        augment=0.0,
        teacher=(),
        precision="fp32",
        val_images=min(preset.train.val_images, len(dataset.train.labels) // 2),
    )
    trainer = Trainer(Net(dataset.num_channels, dataset.num_classes, **preset.net), dataset, config)
    trainer.fit()
    split = Split(dataset.test.images[:batch_size], dataset.test.labels[:batch_size])
    torch.save(
        {
            "weights": trainer.model.cpu().state_dict(),
            "net": preset.net,
            "config": asdict(config) | {"ema_decay": 0.0},
            "classes": dataset.classes,
            "mean": trainer.mean,
            "std": trainer.std,
            "images": torch.from_numpy(split.images),
            "labels": torch.from_numpy(split.labels),
        },
        path,
    )


def _measure_group(jobs: list[Job], rounds: int, context: Any, folder: Path, progress: tqdm) -> list[Result]:
    results, alive = [], []
    try:
        for job in jobs:  # the first calls one after the other
            progress.set_description(f"{job.variant}, {job.work}, {job.precision}, {job.layout}")
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, job, folder), daemon=True)
            process.start()
            theirs.close()
            result = Result(job)
            results.append(result)
            if answer := _ask(ours, process, result):
                result.first_call, result.output = answer
                alive.append((result, ours, process))
            progress.update()
        for _ in range(rounds):
            for result, connection, process in list(alive):
                seconds = _ask(connection, process, result, "time")
                if seconds is None:
                    alive.remove((result, connection, process))
                else:
                    result.images_per_second.append(result.job.batch_size / seconds)
        for result, connection, process in alive:
            result.peak_memory = _ask(connection, process, result, "memory")
            result.first_call -= BEGINNING * result.job.batch_size / result.median
    finally:
        for _, connection, _ in alive:
            connection.close()  # which ends the process in good order
        for _, _, process in alive:
            process.join(timeout=5)
        for process in multiprocessing.active_children():
            process.terminate()
            process.join()
    return results


def _ask(connection: Connection, process: Any, result: Result, question: str | None = None) -> Any:
    """The answer of a process, the first one unasked; None where it failed, `result` then says why."""
    try:
        if question:
            connection.send(question)
        kind, answer = connection.recv()
    except (EOFError, OSError):
        process.join()
        kind, answer = "failed", f"the process ended with exit code {process.exitcode}"
    if kind == "failed":
        result.failed = answer
        return None
    return answer


def _serve(connection: Connection, job: Job, folder: Path) -> None:
    """What a process does: builds its variant, makes the first calls, then answers until it is asked no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)  # compilers talk; what matters of it comes as an exception
    warnings.simplefilter("ignore")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=folder)
    torch.manual_seed(0)
    try:
        inputs = torch.load(folder / "inputs.pt")
        work = _training(job, inputs) if job.work == "training" else _inference(job, inputs)
        started = time.perf_counter()
        output = work()
        for _ in range(BEGINNING - 1):
            work()
        if job.device != "cpu":
            torch.accelerator.synchronize()
        connection.send(("first", (time.perf_counter() - started, output.float().flatten().tolist())))
        device = torch.device(job.device)
        while True:
            answer = seconds_a_call(work, device) if connection.recv() == "time" else _peak_memory(device)
            connection.send(("answer", answer))
    except EOFError:
        return
    except Exception as error:  # whatever a compiler may raise is a result here
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
        connection.send(("failed", f"{type(error).__name__}: {lines[0][:200]}"))


def _training(job: Job, inputs: dict[str, Any]) -> Callable[[], Tensor]:
    """A step of the Trainer on one batch, which gives the loss; the first also builds the variant."""
    split = Split(inputs["images"].numpy(), inputs["labels"].numpy())
    halves = Split(split.images.repeat(2, 0), split.labels.repeat(2, 0))  # the Trainer wants validation images too
    dataset = ImageDataset("a batch", halves, split, inputs["classes"])
    config = replace(
        TrainConfig(**inputs["config"]),
        batch_size=job.batch_size,
        precision=job.precision,
        device=job.device,
        val_images=len(dataset.classes),
    )
    trainer = Trainer(Net(dataset.num_channels, dataset.num_classes, **inputs["net"]), dataset, config)
    trainer._prepare()
    trainer.read_every = 1
    trainer.model.load_state_dict(inputs["weights"])
    trainer.model.to(memory_format=LAYOUTS[job.layout]).train()
    pixels = inputs["images"].to(trainer.device)
    images = normalise(pixels, inputs["mean"], inputs["std"]).contiguous(memory_format=LAYOUTS[job.layout])
    labels = inputs["labels"].to(trainer.device)
    is_built = False

    def step() -> Tensor:
        nonlocal is_built
        if not is_built:
            is_built = True
            trainer.network = BUILD[job.variant](trainer.model, images)
        trainer.step, trainer.running["loss"] = trainer.total_steps - 1, 0.0  # the schedule does not run out
        trainer._train_step(images, labels)
        return torch.tensor([trainer.running["loss"] / job.batch_size])

    return step


def _inference(job: Job, inputs: dict[str, Any]) -> Callable[[], Tensor]:
    """The logits of one batch; the first call also builds the variant."""
    device, precision = torch.device(job.device), resolve_precision(job.precision, torch.device(job.device))
    network = Net(inputs["images"].shape[3], len(inputs["classes"]), **inputs["net"])
    network.load_state_dict(inputs["weights"])
    network.to(device).to(memory_format=LAYOUTS[job.layout]).eval()
    images = normalise(inputs["images"].to(device), inputs["mean"], inputs["std"])
    images = images.contiguous(memory_format=LAYOUTS[job.layout])
    built = None

    @torch.no_grad()
    def predict() -> Tensor:
        nonlocal built
        if built is None:
            built = BUILD[job.variant](network, images)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return built(images)

    return predict


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
