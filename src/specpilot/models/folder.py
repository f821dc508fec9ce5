"""The JSON files of a model folder: what is wrong with one is said with its name and a remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

AGAIN = "download it again"


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: naming the file, if it is not there or holds no object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: does not exist; give a Hugging Face model folder") from None
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: is not a JSON object; {AGAIN}")
    return found


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number; JSON's true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)
