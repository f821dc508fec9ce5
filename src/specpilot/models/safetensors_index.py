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
from typing import Any

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
        ValueError: if the folder has neither, or a header is not a safetensors header.
    """
    single = folder / "model.safetensors"
    listing = folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single.name]
    elif listing.is_file():
        files = sorted(set(json.loads(listing.read_text(encoding="utf-8"))["weight_map"].values()))
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
        digest.update(path.name.encode() + b"\0" + raw)
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = _place(path, name, entry, 8 + len(raw))
    return TensorIndex(paths[0].parent, tensors, digest.hexdigest())


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


def _place(path: Path, name: str, entry: dict[str, Any], start: int) -> TensorPlace:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if dtype not in _ITEM_BYTES:
        # Rotary tables and the like may have other types; whoever needs this tensor says so.
        return TensorPlace(path.name, dtype, shape, start + begin, end - begin)
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise ValueError(
            f"{path}: tensor {name} of shape {list(shape)} and type {dtype} cannot have {end - begin} bytes; "
            "download or convert the file again"
        )
    return TensorPlace(path.name, dtype, shape, start + begin, end - begin)
