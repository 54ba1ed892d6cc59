"""Seed, device, precision, the torchinfo summary, Ctrl-C, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import random
import re
import shlex
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from config import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

ROOT = Path(__file__).resolve().parent
SPIN_COUNT = "10000"  # the value of GOMP_SPINCOUNT, with which every training is timed
MAX_THREADS = 1024  # more than any machine gains by; a system refuses some number above it without saying so clearly
STATED = tyro.conf.arg(help_behavior_hint="")  # for an option whose help says the default, which None would not
ASSIGNMENT = tyro.conf.arg(  # for an option of several commands
    help="Assignment whose demands count: a name in assignments/, such as mnist-8k, or a file of your own (docs/limits.md).",
    help_behavior_hint="",
)
NOTES = tyro.conf.arg(  # likewise
    help="Markdown file with the author's own words for the page, which this option writes too. Text under the title of a section, "
    "such as `## Learning curves`, goes into that section; other headings become sections of their own.",
    help_behavior_hint="",
)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's malloc.h


def limit_spinning() -> None:
    """Limit how long GNU's OpenMP waits for other threads by spinning; to be called before torch is loaded, which reads it.

    With the default, a busy neighbour makes a sprint five times slower than with this limit, which costs nothing on a quiet
    machine (docs/sprint.md). What the user's environment says stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """For the time in which modules are imported: nothing of them becomes garbage, and to look for it takes about a tenth of it.

    What is there at the end is not looked through again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def demand_new(path: Path, overwrite: bool) -> None:
    """Raises InputError where `path` exists and may not be replaced."""
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: pass --overwrite to replace it, or another name")


def demand_threads(threads: int) -> None:
    """Raises InputError where --threads is none that `set_threads` takes."""
    if not 0 <= threads <= MAX_THREADS:
        raise InputError(f"--threads is {threads}: it must be from 0 to {MAX_THREADS:,}")


def set_threads(threads: int) -> None:
    """Limit torch to `threads`; 0 leaves its own choice. Raises InputError where it is below 0 or above MAX_THREADS."""
    demand_threads(threads)
    if threads:
        import torch

        torch.set_num_threads(threads)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The states of all generators, as tensors and plain values that a checkpoint can hold."""
    import numpy as np
    import torch

    state: Any = np.random.get_state()
    name, keys, *rest = state
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "cpu": torch.get_rng_state(),
        "accelerator": torch.get_device_module(accelerator).get_rng_state() if accelerator else None,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """The inverse of `random_states`."""
    import numpy as np
    import torch

    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["cpu"])
    if states["accelerator"] is not None and torch.accelerator.is_available():
        torch.get_device_module(torch.accelerator.current_accelerator()).set_rng_state(states["accelerator"])


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is the accelerator of this machine (cuda, xpu, mps) or else the CPU.

    Raises InputError where it is unknown or not there.
    """
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    if name not in ("cpu", "cuda", "xpu", "mps"):
        raise InputError(f"unknown device '{name}': choose from auto, cpu, cuda, xpu, mps")
    if name != "cpu" and (accelerator is None or accelerator.type != name):
        raise InputError(f"this machine has no {name} device that torch can use: try --device auto")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """torch.bfloat16 or torch.float32; `auto` is bf16 where `device` computes in it natively (emulated, it is slower)."""
    import torch

    if name != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(key, False) for key in ("avx512_bf16", "amx_bf16", "bf16"))
    elif device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "xpu"
    return torch.bfloat16 if native else torch.float32


def keep_freed_memory() -> None:
    """Make the C library keep what is freed for the next tensor; glibc alone can, elsewhere nothing happens.

    By default glibc hands blocks of more than some megabytes, which activations are, back to the kernel, and each page of the
    next one is zeroed and mapped anew when it is first touched: a seventh of a training step on large maps (docs/accuracy-log.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for parameter, size in (M_MMAP_THRESHOLD, 2**25), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26):
            mallopt(parameter, size)


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters, and those fixed by whitening: every weight the network needs beside BatchNorm's statistics."""
    return sum(p.numel() for p in model.parameters())


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """What torch.compile has wrapped runs as it was written: at once, and with all its modules and operations to be seen."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled, and the import takes a second
        yield
        return
    import torch

    with torch.compiler.set_stance("force_eager"):
        yield


def summary(model: nn.Module, num_channels: int, image_size: tuple[int, int]) -> str:
    """The torchinfo table of `model` for one image of (num_channels, *image_size), to the depth that shows C1..C4 and O.

    Raises RuntimeError where torchinfo fails on it.
    """
    from torchinfo import summary as torchinfo_summary

    with uncompiled():
        table = torchinfo_summary(
            model,
            input_size=(1, num_channels, *image_size),
            depth=2,
            verbose=0,
            row_settings=["var_names"],
            col_names=["input_size", "output_size", "num_params", "mult_adds"],
        )
    # torchinfo counts a weight for each module that has it, and some of TorchScript's twice.
    parameters = list(model.parameters())
    with_copies = sum(p.numel() for _, p in model.named_parameters(remove_duplicate=False))
    table.total_params = count_parameters(model)
    table.trainable_params = sum(p.numel() for p in parameters if p.requires_grad)
    table.total_param_bytes = sum(p.numel() * p.element_size() for p in parameters)
    text = re.sub(r"\(Units\.([A-Z])[A-Z]*\)", r"(\1)", str(table))  # it prints the name of its constant for the unit
    if with_copies > table.total_params:
        text = re.sub(r"^(Total params: .*)$", r"\1 (what modules share counts once)", text, flags=re.MULTILINE)
    return text


def count_mult_adds(model: nn.Module, num_channels: int, image_size: tuple[int, int]) -> int:
    """Multiply-add operations of `model` on one image of (num_channels, *image_size), as torchinfo counts them."""
    from torchinfo import summary as torchinfo_summary

    return torchinfo_summary(model, input_size=(1, num_channels, *image_size), verbose=0).total_mult_adds


def hardware() -> dict[str, Any]:
    """This machine: processor, its instructions for bf16 (None: it only emulates it), cores this process may use, torch's threads,
    accelerator, system."""
    import torch

    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = found[1] if found else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    capabilities = torch.cpu.get_capabilities()
    bf16 = next((name for name in ("amx_bf16", "avx512_bf16", "bf16") if capabilities.get(name)), None)
    return {
        "processor": processor,
        "bf16": bf16,
        "cores": cores,
        "threads": torch.get_num_threads(),
        "accelerator": accelerator.type if accelerator else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def network_card(
    model: nn.Module, num_channels: int, image_size: tuple[int, int], net: dict[str, Any], /, **more: Any
) -> dict[str, Any]:
    """What a card says of a network itself; `net` are the arguments of model.Net that rebuild it, besides the data's own.

    Of a network of the user's own that torchinfo fails on, the mult-adds are None.
    """
    mult_adds = None
    with contextlib.suppress(RuntimeError):
        mult_adds = count_mult_adds(model, num_channels, image_size)
    return {**more, "net": net, "parameters": count_parameters(model), "mult_adds": mult_adds}


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    import numpy as np
    import torch

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def machine(record: dict[str, Any]) -> str:
    """What a card or a record was measured on, in words: its `hardware` and, where it has them, its `versions`."""
    hardware = record["hardware"]
    bf16 = f" ({hardware['bf16']})" if hardware.get("bf16") else ""  # older records do not say
    words = [f"{hardware['processor']}{bf16}", f"{hardware['cores']} cores"]
    if threads := hardware.get("threads"):
        words.append(f"{threads} thread{'' if threads == 1 else 's'}")
    if hardware.get("accelerator"):
        words.append(hardware["accelerator"])
    if "versions" in record:
        words.append(f"torch {record['versions']['torch']}")
    return ", ".join(words)


def command_line() -> str:
    """The command that started this process, as one would type it in the project's folder."""
    script = Path(sys.argv[0]).resolve()
    if script == ROOT / "main.py":
        return shlex.join(["./run.sh", *sys.argv[1:]])
    name = script.relative_to(ROOT).as_posix() if script.is_relative_to(ROOT) else script.name
    return shlex.join(["python", name, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """What a card or a record says of where its numbers come from."""
    return {"command": command_line(), "hardware": hardware(), "versions": versions()}


@contextlib.contextmanager
def interrupt_flag() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C came; a second Ctrl-C interrupts at once, as ever."""
    came = False

    def handler(signum: int, frame: object) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, previous)

    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in a job that a shell put in the background
    if ignored or threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, previous)


def demand_regular_file(path: Path) -> None:
    """Raise InputError where `path` is missing or no regular file: reading a pipe would never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot read {path}: it is not a regular file")


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` whole or not at all: temporary file beside it, fsync, rename.

    Raises InputError where that fails (unwritable folder, full disk); a file that was there before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = "; the one that was there is untouched" if path.exists() else ""
        raise InputError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a record, atomically. Raises InputError where that fails."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def demand_writable(folder: Path) -> None:
    """Raise InputError unless files can be made in `folder` (itself made where it is missing): better before a training."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
