"""What a server knows at its start: the state an earlier run has learned, and what the engine costs."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

from specpilot.atomic import replace_file
from specpilot.control import Controller
from specpilot.control.curves import KNOTS
from specpilot.models.base import CausalLM
from specpilot.serving.engine import Engine
from specpilot.simulation.measure import measure_costs
from specpilot.trace.compressed import COMPRESSED

LOG = logging.getLogger("specpilot.serving")


class SnapshotFile:
    """A file with the controller's learned state, replaced as a whole.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def restore(self, controller: Controller) -> bool:
        """Take up what is in the file; False, with a warning, if there is nothing that can be used.

        A server starts without it as well: it learns anew.
        """
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            LOG.warning("snapshot %s cannot be read (%s); learning starts anew", self._path, error)
            return False
        try:
            controller.restore(data)
        except ValueError as error:
            LOG.warning("snapshot %s cannot be used (%s); learning starts anew", self._path, error)
            keep_aside(self._path)  # it may be of another version, or no snapshot at all
            return False
        return True

    def save(self, engine: Engine) -> bool:
        """Write the state, so that a crash leaves the old file or the new one; False if it cannot."""
        with engine.lock:
            data = engine.controller.snapshot()
        try:
            replace_file(self._path, data)
        except OSError as error:
            LOG.error("snapshot %s cannot be written (%s)", self._path, error)
            return False
        return True


def keep_aside(path: Path) -> Path | None:
    """Give a file that is about to be written anew another name, with a number before its endings: what an
    earlier run wrote is not lost by a restart. None, and nothing is done, where there is no such file or it
    is empty.
    """
    if not path.is_file() or not path.stat().st_size:
        return None
    endings = "".join(path.suffixes[-2:] if path.suffix in COMPRESSED else path.suffixes[-1:])
    stem = path.name.removesuffix(endings)
    free = (path.with_name(f"{stem}.{number}{endings}") for number in count(1))
    other = next(name for name in free if not name.exists())
    try:
        path.rename(other)
    except OSError as error:
        LOG.warning("%s cannot be renamed (%s); it is written anew", path, error)
        return None
    LOG.warning("%s was there already; it is %s now", path, other.name)
    return other


def measure_engine(controller: Controller, target: CausalLM, draft: CausalLM) -> None:
    """Time both models and tell the controller, so that it need not guess for its first requests.

    It also is their warm-up: buffers are allocated and pages read before anybody waits.
    """
    costs = measure_costs(target, draft, rounds=2)
    cost = controller.cost
    limit = min(target.context_limit, draft.context_limit)
    for _ in range(2):  # two rounds over the knots make the model calibrated
        for width in KNOTS:
            if width <= limit:
                cost.observe_verify(width, 0, costs.verify_ms(width, 0))
                cost.observe_draft(0, 0.0, width, costs.draft_forward(width))
        for steps in range(1, 9):
            cost.observe_draft(steps, costs.draft_ms(steps, 0), 0, 0.0)
