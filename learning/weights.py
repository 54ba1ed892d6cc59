"""Weights and checkpoints as files: written whole with a checksum and a card, checked and never run when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import InputError
from utils import demand_regular_file, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

MARK = b"convsprint sha256 "
"""Starts the comment of a checkpoint's zip archive; the digest of all bytes before it follows."""
COMMENT = len(MARK) + hashlib.sha256().digest_size
ARCHIVE_END = struct.Struct("<4s4H2LH")  # of a zip archive without a comment, whose length is the last number
MAX_CARD = 2**20  # characters


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a training's whole state (tensors and plain values), atomically. Raises InputError where it cannot.

    The file is what torch.save writes, with a checksum as the archive's comment: torch.load reads it as well.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()[:-2] + struct.pack("<H", COMMENT)
    write_atomically(path, content + MARK + hashlib.sha256(content).digest())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; no code in the file is run (``weights_only=True``).

    Raises InputError where it is missing, truncated, changed since it was written, or holds anything but tensors and plain values.
    """
    import torch

    content = _read(path)
    _demand_unchanged(path, content)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is not a checkpoint of tensors and plain values (reading it could run code, or it is damaged)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}): copy it again or choose another file"
        ) from error
    if not isinstance(state, dict) or "model" not in state or "card" not in state:
        raise InputError(f"{path} is not a checkpoint of this project: 'model' and 'card' are missing")
    _check(path, state["card"])
    return state


def save_weights(path: Path, state_dict: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Write a trained network as safetensors, its card and a checksum inside the file's header; the card also beside it as .json
    (for people)."""
    import torch
    from safetensors.torch import save

    text = json.dumps(card, indent=2)
    # Copies: safetensors holds no tensor under two names, as a network with shared weights has it.
    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state_dict.items()}
    write_atomically(path, save(tensors, metadata={"convsprint": text, "sha256": _digest(text, tensors)}))
    write_atomically(path.with_suffix(".json"), text.encode() + b"\n")


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and card of a .safetensors file of `save_weights`, or of a checkpoint (any other ending).

    Raises InputError where the file is missing, truncated, changed since it was written, not of this project, or could run code.
    """
    if path.suffix != ".safetensors":
        state = load_checkpoint(path)
        return state["model"], state["card"]
    from safetensors import SafetensorError, safe_open

    demand_regular_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: copy it again or choose another file") from error
    text = header.pop("convsprint", None)
    if text is None:
        raise InputError(f"{path} was not written by this project: its header has no card of the network")
    # What this project wrote before there were checksums has the card alone; a damaged name of a checksum is not that.
    if header and header.get("sha256") != _digest(text, tensors):
        raise InputError(f"{path} is damaged: its checksum does not match; copy it again or choose another file")
    try:
        card: Any = json.loads(text) if len(text) <= MAX_CARD else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its card is not JSON, or too deeply nested") from error
    _check(path, card)
    return tensors, card


def _check(path: Path, card: Any) -> None:
    from learning.cards import check_card  # pydantic takes a tenth of a second, which a sprint can spare

    check_card(path, card)


def _read(path: Path) -> bytes:
    demand_regular_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _demand_unchanged(path: Path, content: bytes) -> None:
    """Raise InputError unless a checkpoint has its checksum; of one that torch.save alone wrote, those of the archive count."""
    damaged = InputError(
        f"{path} is damaged (its checksum does not match) or is not a checkpoint: copy it again or choose another file"
    )
    if content[-COMMENT : -COMMENT + len(MARK)] == MARK:
        if hashlib.sha256(content[:-COMMENT]).digest() != content[-COMMENT + len(MARK) :]:
            raise damaged
        return
    try:
        end = ARCHIVE_END.unpack(content[-ARCHIVE_END.size :])
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            is_whole = end[0] == b"PK\5\6" and end[-1] == 0 and archive.testzip() is None
    except (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise damaged from error
    if not is_whole:
        raise damaged


def _digest(card: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of the card and of names, types, shapes and values of all tensors."""
    import torch

    digest = hashlib.sha256(card.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
