"""A trained network as one file for other programs: ONNX, ONNX with 8-bit integers, or torch.export; compared with the original.

Preprocessing is a part of the exported graph: it takes uint8 images (N, H, W, C) of any size and gives probabilities (N, classes).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config import InputError
from images.data import ImageDataset
from learning.inference import TrainedNetwork, for_inference
from model import Net
from utils import write_atomically

ENDINGS = {"onnx": ".onnx", "int8": ".int8.onnx", "torch": ".pt2"}
BATCH = 250
OPSET = 20
MAX_DIFFERENCE = 1e-3
"""Between two fp32 probabilities, at most: what rounding in another order can do."""
MAX_LOSS = 0.005
"""Of accuracy through 8-bit integers, before there is a warning."""
INSTALL = "pip install -r requirements-export.txt"


class Deployed(nn.Module):
    """A network with its preprocessing: (N, H, W, C) uint8 of any size -> (N, classes) probabilities, float32.

    An image of another size is scaled to cover the network's, by Pillow's bicubic filter, and its middle is taken. The filter is a
    product with a matrix each for rows and columns, which is the identity for images of the network's size.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, card: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.height, self.width = card["image_size"]
        self.register_buffer("scale", 1 / (255 * torch.tensor(card["std"]).view(1, -1, 1, 1)))
        self.register_buffer("shift", (torch.tensor(card["mean"]) / torch.tensor(card["std"])).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.permute(0, 3, 1, 2).float()
        rows = torch.arange(images.shape[1], dtype=torch.float32, device=images.device)
        columns = torch.arange(images.shape[2], dtype=torch.float32, device=images.device)
        ratio = torch.minimum((rows[-1] + 1) / self.height, (columns[-1] + 1) / self.width)  # pixels of the image for one of ours
        pixels = _filter(rows, self.height, ratio) @ pixels @ _filter(columns, self.width, ratio).T
        pixels = pixels.round().clamp(0, 255)
        return self.network(pixels * self.scale - self.shift).softmax(1)


def _filter(places: Tensor, size: int, ratio: Tensor) -> Tensor:
    """(size, len(places)): the weights of the pixels at `places` 0, 1, 2, ... in each of `size` pixels of the scaled middle."""
    start = (places[-1] + 1 - size * ratio) / 2
    centres = start + (torch.arange(size, device=places.device) + 0.5) * ratio
    distance = ((places[None] + 0.5 - centres[:, None]) / ratio.clamp_min(1)).abs()
    near = (1.5 * distance - 2.5) * distance.square() + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))
    return weights / weights.sum(1, keepdim=True)


def export(network: TrainedNetwork, kind: str, path: Path, calibration: np.ndarray | None = None) -> None:
    """Write `network`, which is on the CPU, to `path` as `kind`, one of ENDINGS.

    For int8, `calibration` are training images (N, H, W, C) uint8 of the network's size. Raises InputError where a package is
    missing, or the network cannot be exported.
    """
    card = network.card
    model = for_inference(network.model, torch.float32) if isinstance(network.model, Net) else network.model
    deployed = Deployed(model.to(memory_format=torch.contiguous_format), card).eval()
    # Another size than the network's, so that nothing is taken for constant.
    example = torch.zeros(2, card["image_size"][0] + 9, card["image_size"][1] + 5, card["num_channels"], dtype=torch.uint8)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    about = {"classes": json.dumps(card["classes"]), "card": json.dumps(card)}
    with _needs_packages(), _quietly(), tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "network"
        try:
            if kind == "torch":
                program = torch.export.export(deployed, (example,), dynamic_shapes=(sizes,))
                torch.export.save(program, plain.with_suffix(".pt2"), extra_files=about)
                plain = plain.with_suffix(".pt2")
            else:
                import onnx

                onnx_program = torch.onnx.export(
                    deployed,
                    (example,),
                    dynamo=True,
                    dynamic_shapes=({0: "N", 1: "height", 2: "width"},),
                    input_names=["images"],
                    output_names=["probabilities"],
                    opset_version=OPSET,
                    verbose=False,
                )
                assert onnx_program is not None, "dynamo=True returns the program"
                onnx_program.save(plain)
                if kind == "int8":
                    assert calibration is not None, "int8 comes with images to calibrate on"
                    plain = _quantise(plain, calibration)
                exported = onnx.load(plain)
                _strip(exported.graph)
                onnx.helper.set_model_props(exported, about)
                onnx.checker.check_model(exported)
                plain.write_bytes(exported.SerializeToString())
        except (InputError, ImportError):
            raise
        except Exception as error:  # exporters fail in any way, and with pages of text
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            raise InputError(f"the network cannot be exported as {kind}: {type(error).__name__}: {lines[0][:200]}") from error
        write_atomically(path, plain.read_bytes())


def _quantise(path: Path, images: np.ndarray) -> Path:
    """The ONNX file `path` with 7 bits for the weights and 8 for the inputs of its layers, as another file beside it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images[first : first + 64] for first in range(0, len(images), 64))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    quantised = path.with_name("int8.onnx")
    quantize_static(
        path,
        quantised,
        Reader(),
        quant_format=QuantFormat.QOperator,
        op_types_to_quantize=["Conv", "Gemm", "Clip"],  # Clip is ReLU6: else what it cuts off takes up the range
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # of weights, to 7 bits: processors without VNNI add two products up in 16 bits, which overflow with 8
        extra_options={"CalibMovingAverage": True, "CalibMovingAverageConstant": 0.1},  # single bright pixels count for less
    )
    return quantised


def _strip(graph: Any) -> None:
    """Leave out what an ONNX graph says of our sources, and give its values short names: a third of a small network's file."""
    names = {value.name: value.name for value in (*graph.input, *graph.output)} | {"": ""}
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = node.name = ""
    del graph.value_info[:]
    if any(attribute.g.node or attribute.graphs for node in graph.node for attribute in node.attribute):
        return  # graphs within graphs use the names too
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.setdefault(value, str(len(names))) for value in values]
    for tensor in graph.initializer:
        tensor.name = names.setdefault(tensor.name, str(len(names)))


@contextlib.contextmanager
def _needs_packages() -> Any:
    try:
        yield
    except ImportError as error:
        raise InputError(f"this format needs {error.name}, which is not installed: {INSTALL}") from error


@contextlib.contextmanager
def _quietly() -> Any:
    """Without what the exporters say of themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def runner(path: Path, kind: str) -> Callable[[np.ndarray], np.ndarray]:
    """What computes the probabilities (N, classes) of images (N, H, W, C) uint8 with an exported file."""
    if kind == "torch":
        module = torch.export.load(path).module()
        return lambda images: module(torch.from_numpy(images)).detach().numpy()
    with _needs_packages():
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["probabilities"], {"images": images})[0]


@dataclass
class Comparison:
    """An exported file beside the network that it was made of, on a test split."""

    images: int
    accuracy: float
    """Of the exported file, 0 to 1."""
    original_accuracy: float
    agreement: float
    """Share of the images for which both name the same class."""
    difference: float
    """The largest between two probabilities."""
    size: int
    """Bytes of the exported file."""
    milliseconds: float
    """For a single image, the median of some."""
    images_per_second: float
    """In batches of BATCH."""


def compare(network: TrainedNetwork, path: Path, kind: str, dataset: ImageDataset) -> Comparison:
    """Run the exported file and the original, in fp32, on the test split of `dataset`."""
    run, images, labels = runner(path, kind), dataset.test.images, dataset.test.labels
    original = network.logits(images, torch.float32).softmax(1).numpy()
    run(images[:BATCH])
    started = time.perf_counter()
    exported = np.concatenate([run(images[first : first + BATCH]) for first in range(0, len(images), BATCH)])
    seconds = time.perf_counter() - started
    singles = []
    for i in range(50):
        one = images[i % len(images)][None]
        before = time.perf_counter()
        run(one)
        singles.append(time.perf_counter() - before)
    answers, ours = exported.argmax(1), original.argmax(1)
    return Comparison(
        images=len(images),
        accuracy=float((answers == labels).mean()),
        original_accuracy=float((ours == labels).mean()),
        agreement=float((answers == ours).mean()),
        difference=float(np.abs(exported - original).max()),
        size=path.stat().st_size,
        milliseconds=1000 * float(np.median(singles)),
        images_per_second=len(images) / seconds,
    )


def show(found: Comparison, kind: str, path: Path) -> int:
    """Print the comparison; 2, with a line on stderr, where a file in fp32 differs by more than rounding, else 0."""
    print(
        f"{path}: {found.size:,} bytes\n"
        f"accuracy {found.accuracy:.2%} on {found.images:,} test images, {found.original_accuracy:.2%} by the original; "
        f"{found.agreement:.2%} equal answers, probabilities differ by up to {found.difference:.1e}\n"
        f"{found.milliseconds:.2f} ms for one image, {found.images_per_second:,.0f} images a second in batches of {BATCH}"
    )
    if kind != "int8" and found.difference > MAX_DIFFERENCE:
        print(
            f"error: {path} differs from the original by up to {found.difference:.2g}: more than rounding; do not use it",
            file=sys.stderr,
        )
        return 2
    if kind == "int8" and round(found.original_accuracy - found.accuracy, 6) > MAX_LOSS:
        loss = 100 * (found.original_accuracy - found.accuracy)
        print(f"note: 8-bit integers cost {loss:.2f} points of accuracy: more than {100 * MAX_LOSS:g}", file=sys.stderr)
    return 0
