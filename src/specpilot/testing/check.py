"""A named check, and the comparisons that checks are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specpilot.decoding.types import Block

TOLERANCE = 1e-3
"""Logits of a position may differ by this much between passes of different shapes (float32 kernels)."""
CONTEXT = (1, 5, 2, 7, 3)
BLOCK = (4, 4, 6, 1)
TREE = Block((4, 6, 4, 1, 2), (-1, -1, 0, 1, 3))
"""Two branches: 4 → 4 and 6 → 1 → 2."""


@dataclass(frozen=True, slots=True)
class Check:
    """A named check; call it to run it."""

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Run the check.

        Raises:
            AssertionError: saying what is wrong.
        """
        self.run()

    def __str__(self) -> str:
        return self.name


def true(condition: bool, message: str) -> None:
    """Fail with ``message`` unless ``condition`` holds."""
    if not condition:
        raise AssertionError(message)


def equal(got: object, wanted: object, message: str) -> None:
    """Fail with ``message`` and both values unless they are equal."""
    true(got == wanted, f"{message}: got {got}, wanted {wanted}")


def close(got: npt.ArrayLike, wanted: npt.ArrayLike, message: str) -> None:
    """Fail with ``message`` and the largest difference unless both agree within :data:`TOLERANCE`."""
    left, right = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    equal(left.shape, right.shape, f"{message} (shape)")
    worst = float(np.abs(left - right).max()) if left.size else 0.0
    true(worst <= TOLERANCE, f"{message}: by up to {worst:.3g}, allowed {TOLERANCE:g}")


def raises(run: Callable[[], object], what: str) -> None:
    """Fail unless ``run`` raises ``ValueError``."""
    try:
        run()
    except ValueError:
        return
    raise AssertionError(f"{what} must raise ValueError; it was taken without a word")
