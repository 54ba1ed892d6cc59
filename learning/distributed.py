"""Several processes, one training: torchrun's group, sums over it, BatchNorm over the whole batch, the loss of a process.

Every process holds the whole network and trains on its part of each batch; the gradients' mean over the processes is that of the
whole batch, because the parts are equal and the loss is a mean. In a process that was started alone all of this does nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config import InputError

_terminated = False  # whether SIGTERM came; see `group`


def rank() -> int:
    """The number of this process in its group, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files."""
    return rank() == 0


@contextlib.contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Belong, inside the block, to the group that torchrun's environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    With accelerators, each process has the one of its LOCAL_RANK. Process 0 alone prints. An error is reported by the process that
    has it first: the others, which lose that one by it, leave with the same status and say nothing. SIGTERM, by which torchrun
    ends the rest after a loss, waits for `any_interrupted`.

    Raises InputError where the environment or the device does not allow a group, or where not all processes come within
    CONVSPRINT_JOIN_SECONDS (60 where it is not set).
    """
    processes = _setting("WORLD_SIZE", 1)
    if processes == 1:
        yield
        return
    if device.type not in ("cpu", "cuda", "xpu"):
        raise InputError(f"several processes can train on cpu, cuda and xpu, not on {device.type}: choose --device cpu")
    if device.type != "cpu":
        local, devices = _setting("LOCAL_RANK", _setting("RANK")), torch.accelerator.device_count()
        if local >= devices:
            raise InputError(
                f"{local + 1} processes on a machine with {devices} devices of type {device.type}: start at most one "
                "for each (torchrun --nproc_per_node)"
            )
        torch.accelerator.set_device_index(local)
    store = _join(processes, device)
    previous = signal.signal(signal.SIGTERM, _remember_termination)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as silence, watch(lambda: ""):
            if not is_main():
                silence.enter_context(contextlib.redirect_stdout(nowhere))
                silence.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    except (Exception, KeyboardInterrupt) as error:
        # The group is not taken down: with a process lost, that could wait for it.
        if _is_first_to_report(store):
            raise
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, InputError) else 1) from None
    dist.destroy_process_group()
    signal.signal(signal.SIGTERM, previous)


def _setting(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, default)
    if text is None or not str(text).isdecimal():
        raise InputError(
            f"{name} is {text!r} in the environment: it must be a whole number; start the processes with torchrun, or "
            "unset WORLD_SIZE to train in one"
        )
    return int(text)


def _join(processes: int, device: torch.device) -> dist.Store:
    rank, seconds = _setting("RANK"), _setting("CONVSPRINT_JOIN_SECONDS", 60)
    # Gloo for what is on the CPU in any case: a sum of the interrupt flags waits for no accelerator.
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    if rank >= processes:
        raise InputError(f"RANK is {rank} and WORLD_SIZE {processes}: ranks go from 0 to {processes - 1}")
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))
        store.set(f"here/{rank}", "")
        store.wait([f"here/{each}" for each in range(processes)], timedelta(seconds=seconds))
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
    except ValueError as error:  # MASTER_ADDR or MASTER_PORT
        raise InputError(
            f"{str(error).rpartition(': ')[2]}: start the processes with torchrun, or unset WORLD_SIZE to train in one"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"process {rank} could not join the {processes} processes (WORLD_SIZE) at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} within {seconds} s ({str(error).splitlines()[0]}): start all of them, as "
            "torchrun does, or give them longer with CONVSPRINT_JOIN_SECONDS"
        ) from error
    return store


def _remember_termination(signum: int, frame: object) -> None:
    global _terminated
    _terminated = True


def _is_first_to_report(store: dist.Store) -> bool:
    try:
        return store.add("reports", 1) == 1
    except RuntimeError:  # it went down with the process that kept it
        return True


@contextlib.contextmanager
def watch(where: Callable[[], str]) -> Iterator[None]:
    """Turn the loss of another process inside the block into an InputError; `where()` ends its text."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL name the connection, not the process
        if size() == 1 or not (isinstance(error, dist.DistError) or re.search("gloo|NCCL", str(error))):
            raise
        raise InputError(f"another of the {size()} processes was lost{where()}") from error


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Let process 0 go through the block before the others: what it downloads or writes there is there for them."""
    if not is_main():
        total(torch.zeros(1))  # waits for all
    yield
    if is_main():
        total(torch.zeros(1))


def any_interrupted(interrupted: bool) -> bool:
    """Whether any process is `interrupted` or was sent SIGTERM: the same answer in all."""
    if size() == 1:
        return interrupted
    return bool(total(torch.tensor(float(interrupted or _terminated))))


def total(values: Tensor) -> Tensor:
    """The sum of `values` over the processes, in `values` itself."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def from_main(text: str) -> str:
    """The text that process 0 has, in all."""
    texts = [text]
    if size() > 1:
        dist.broadcast_object_list(texts, device=torch.device("cpu"))
    return texts[0]


def part(count: int) -> slice:
    """Which of `count` things are this process's: contiguous parts, as equal as can be, each thing in one."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())


def wrap(model: nn.Module, compiled: bool) -> nn.Module:
    """What to train `model` through: in a group, DistributedDataParallel over it with its BatchNorm2d over the whole batch;
    through torch.compile where `compiled`.

    The parameters and the state dict stay those of `model`, which is given the weights that process 0 has.
    """
    network = model
    if size() > 1:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GroupBatchNorm2d  # the same parameters under the same names, only computed otherwise
                # Not a decorator, which would import torch._dynamo (one to two seconds) where nothing is compiled.
                module.group_mean = torch.compiler.disable(_GroupMean.apply) if compiled else _GroupMean.apply
        # A 1x1 kernel has one layout under two descriptions; DDP warns that the gradient is described by the other one.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        network = DistributedDataParallel(model)
    return cast(nn.Module, torch.compile(network)) if compiled else network  # torch's stubs only know functions


class GroupBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics, in training, are those of the batch of all processes together, on any device.

    What torch's SyncBatchNorm is for GPUs. The parts of the batch must be equal. Costs four sums over the group a step, of as
    many numbers as there are channels.

    Shape: (N, C, H, W), any float dtype -> the same.
    """

    group_mean: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        pixels = x.float()
        var, mean = torch.var_mean(pixels, (0, 2, 3), correction=0)
        group_mean = self.group_mean(mean)
        group_var = self.group_mean(var + (mean - group_mean).square())
        with torch.no_grad():
            count = size() * x.numel() // x.shape[1]
            assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(group_mean, self.momentum)
            self.running_var.lerp_(group_var * (count / (count - 1)), self.momentum)
        scale = self.weight * (group_var + self.eps).rsqrt()
        shift = self.bias - group_mean * scale
        return (pixels * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


class _GroupMean(torch.autograd.Function):
    """The mean over the processes. Its gradient is the mean of the gradients: each output depends on every input alike."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return total(x.clone()).div_(size())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return total(gradient.clone()).div_(size())
