"""Where a Hugging Face folder's tensors lie: the headers of its safetensors files, read without loading any.

A safetensors file is eight bytes with the header's length N (little endian), N bytes of JSON, then the data;
a tensor's ``data_offsets`` count from the data's start. Only the headers are read here.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from specpilot.models.folder import is_whole, read_object

_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4}
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor: ``file`` is in the index's folder; ``offset`` (from its start) and ``length`` in bytes."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class TensorIndex:
    """All tensors by name; ``digest`` changes whenever one could lie elsewhere.

    ``folder`` is where the files really are: a hub cache's folder holds links to them.
    """

    folder: Path
    tensors: dict[str, TensorPlace]
    digest: str

    @property
    def elements(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(place.shape) for place in self.tensors.values())


def read_index(folder: Path) -> TensorIndex:
    """Read the header of ``model.safetensors``, or of all shards of ``model.safetensors.index.json``.

    Raises:
        ValueError: if the folder has neither, or a file is damaged or not whole.
    """
    single = folder / "model.safetensors"
    listing = folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single.name]
    elif listing.is_file():
        files = _shards(listing)
    else:
        raise ValueError(
            f"{folder}: has no model.safetensors (nor model.safetensors.index.json); "
            "give a Hugging Face folder with safetensors weights"
        )
    paths = [(folder / file).resolve() for file in files]
    if len({path.parent for path in paths}) > 1:
        raise ValueError(f"{folder}: its shards are links into several folders; copy them into one")
    digest = hashlib.sha256()
    tensors: dict[str, TensorPlace] = {}
    for path in paths:
        raw, header = _read_header(path)
        start = 8 + len(raw)
        held = path.stat().st_size - start
        digest.update(path.name.encode() + b"\0" + raw)
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = _place(path, name, entry, start, held)
    return TensorIndex(paths[0].parent, tensors, digest.hexdigest())


def _shards(listing: Path) -> list[str]:
    files = read_object(listing).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(
            f"{listing}: weight_map: {_short(files)} is not an object that names a file for each tensor; "
            "download it again"
        )
    return sorted(set(files.values()))


def _short(value: object) -> str:
    """A value as it is named in an error: a list of thousands of tensors is not."""
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _read_header(path: Path) -> tuple[bytes, dict[str, Any]]:
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= _MOST_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            raw = stream.read(length)
            header = json.loads(raw)
    except FileNotFoundError:
        raise ValueError(f"{path}: is listed but does not exist; download the whole folder") from None
    except (struct.error, ValueError) as error:
        raise ValueError(
            f"{path}: is not a safetensors file ({error}); download or convert it again"
        ) from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: its header is not a JSON object; download or convert it again")
    return raw, header


def _place(path: Path, name: str, entry: Any, start: int, held: int) -> TensorPlace:
    """Where a tensor lies in a file whose data begins at ``start`` and has ``held`` bytes."""
    if not isinstance(entry, dict):
        raise _damaged(path, name, f"{_short(entry)} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise _damaged(path, name, f"dtype: {_short(dtype)} is not a type's name")
    if not _counts(shape):
        raise _damaged(path, name, f"shape: {_short(shape)} is not a list of whole numbers ≥ 0")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        said = f"data_offsets: {_short(offsets)} is not two whole numbers 0 ≤ begin ≤ end"
        raise _damaged(path, name, said)
    begin, end = offsets
    # Rotary tables and the like may have other types; whoever needs this tensor says so.
    if dtype in _ITEM_BYTES and end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(
            f"{path}: tensor {name} of shape {shape} and type {dtype} cannot have {end - begin} bytes; "
            "download or convert the file again"
        )
    if end > held:
        raise ValueError(
            f"{path}: tensor {name} ends at byte {end} of the data, of which there are {held}; "
            "the file is not whole, download it again"
        )
    return TensorPlace(path.name, dtype, tuple(shape), start + begin, end - begin)


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(is_whole(part) and part >= 0 for part in value)


def _damaged(path: Path, name: str, what: str) -> ValueError:
    return ValueError(f"{path}: tensor {name}: {what}; download or convert the file again")
