"""Model roles: of several models, which should draft, which should verify, or should none draft at all.

The target decides what the text is like, so quality is a property of the target alone; the draft only
decides how fast it comes. Candidates are compared here by closed forms for one request on an idle engine,
under the pass budget and the SLO; :mod:`specpilot.sizing.roles_load` compares them where requests queue.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specpilot.sizing.arithmetic import MAX_DRAFT, PassCosts, check, survival
from specpilot.trace.lines import text_of

MODEL_FIELDS = {"name", "pass_ms", "token_ms", "prefill_token_ms", "quality", "role"}
ROLES = ("any", "draft", "target")


@dataclass(frozen=True, slots=True)
class Model:
    """A candidate. Times in ms: a pass over one token, each further token of a block, each prompt token.

    ``quality`` is on whatever scale the file uses, higher is better; ``role`` is one of :data:`ROLES`.

    Raises:
        ValueError: naming the model and the field, for a value that is no number, a time out of range, or an
            unknown role.
    """

    name: str
    pass_ms: float
    token_ms: float = 0.0
    prefill_token_ms: float = 0.0
    quality: float | None = None
    role: str = "any"

    def __post_init__(self) -> None:
        for name in ("pass_ms", "token_ms", "prefill_token_ms", "quality"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise ValueError(f"models.{self.name}.{name}: {value!r} is not a number; give one")
        if not (self.pass_ms > 0.0 and math.isfinite(self.pass_ms)):
            raise ValueError(f"models.{self.name}.pass_ms: {self.pass_ms} is not > 0; give milliseconds")
        for name in ("token_ms", "prefill_token_ms"):
            if not getattr(self, name) >= 0.0:
                raise ValueError(
                    f"models.{self.name}.{name}: {getattr(self, name)} is not ≥ 0; give milliseconds"
                )
        if self.role not in ROLES:
            raise ValueError(f"models.{self.name}.role: {self.role!r} is not one of {', '.join(ROLES)}")


@dataclass(frozen=True, slots=True)
class Candidates:
    """The file: models, acceptance of drafts against targets, and the least quality that will do."""

    models: Sequence[Model]
    acceptance: Mapping[tuple[str, str], tuple[float, ...]]
    least_quality: float | None = None


@dataclass(frozen=True, slots=True)
class Role:
    """One way to cast the models; ``draft`` is ``None`` for plain decoding.

    ``tokens`` are expected of a request within budget and SLO, ``e2e_ms`` is what they take on an idle
    engine, ``tokens_per_s`` their ratio. ``speed_up`` is over the same target decoding plainly to the same
    length without a budget. ``excluded`` says why a cast is out, empty if it is not.
    """

    target: str
    draft: str | None
    tau: int
    tokens: float
    passes: float
    e2e_ms: float
    tokens_per_s: float
    speed_up: float
    excluded: str = ""


def read_models(path: Path) -> Candidates:
    """Read a TOML file of candidates.

    ``[[models]]`` tables with the fields of :class:`Model`; ``[[acceptance]]`` tables with ``draft``,
    ``target`` and ``by_position`` (a number, or a list by position in the block); ``least_quality``.

    Raises:
        ValueError: naming the field, its value, the range and the remedy.
        OSError: if it cannot be read.
    """
    try:
        with text_of(path):
            record = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path.name}: not TOML ({error})") from None
    unknown = set(record) - {"models", "acceptance", "least_quality"}
    if unknown:
        raise ValueError(
            f"{path.name}: {sorted(unknown)[0]!r} is unknown; use models, acceptance, least_quality"
        )
    least = record.get("least_quality")
    if isinstance(least, bool) or not isinstance(least, int | float | None):
        raise ValueError(f"least_quality: {least!r} is not a number; give one, or leave it out")
    for name in ("models", "acceptance"):
        rows = record.get(name, [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{name}: {rows!r} is no list of tables; write [[{name}]] before each")
    models = [_model(row, index) for index, row in enumerate(record.get("models", []))]
    names = [model.name for model in models]
    if not models or len(set(names)) != len(names):
        raise ValueError(f"models: names {names} are not at least one and unique; give each model its own")
    acceptance: dict[tuple[str, str], tuple[float, ...]] = {}
    for index, row in enumerate(record.get("acceptance", [])):
        pair = (str(row.get("draft")), str(row.get("target")))
        for name in pair:
            if name not in names:
                raise ValueError(f"acceptance[{index}]: {name!r} is no model; choose of {', '.join(names)}")
        values = row.get("by_position")
        hazards = tuple(values) if isinstance(values, list) else (values,)
        if not all(isinstance(value, int | float) for value in hazards):
            raise ValueError(f"acceptance[{index}].by_position: {values!r} is not a number or a list of them")
        check(hazards, f"acceptance[{index}].by_position")
        acceptance[pair] = hazards
    return Candidates(models, acceptance, least)


def _model(row: Mapping[str, Any], index: int) -> Model:
    unknown = set(row) - MODEL_FIELDS
    if unknown:
        raise ValueError(
            f"models[{index}]: {sorted(unknown)[0]!r} is unknown; use {', '.join(sorted(MODEL_FIELDS))}"
        )
    for name in ("name", "pass_ms"):
        if name not in row:
            raise ValueError(f"models[{index}].{name}: missing; each model needs a name and a pass_ms")
    return Model(**row)


def rank_roles(
    candidates: Candidates,
    *,
    pass_budget: float,
    slo_ms: float,
    prompt_tokens: int,
    max_tokens: int,
) -> list[Role]:
    """Every cast, best first: those that are allowed by tokens a second, then the excluded ones.

    A cast is judged at its best τ: the one with the most tokens a second among those that fit the SLO.
    """
    casts: list[Role] = []
    for target in candidates.models:
        if target.role == "draft":
            continue
        for draft in (None, *candidates.models):
            if draft is not None and (
                draft.role == "target" or (draft.name, target.name) not in candidates.acceptance
            ):
                continue
            hazards = candidates.acceptance[draft.name, target.name] if draft else (0.0,)
            taus = range(1, MAX_DRAFT + 1) if draft else range(1)
            rows = [cast(target, draft, hazards, tau, pass_budget, prompt_tokens, max_tokens) for tau in taus]
            fits = [row for row in rows if row.e2e_ms <= slo_ms]
            best = max(fits or rows, key=lambda row: row.tokens_per_s)
            reason = quality_reason(target, candidates.least_quality)
            if not reason and not fits:
                reason = f"{best.e2e_ms:.0f} ms exceed the SLO of {slo_ms:.0f} ms"
            casts.append(replace(best, excluded=reason))
    return sorted(casts, key=lambda row: (bool(row.excluded), -row.tokens_per_s))


def quality_reason(target: Model, least: float | None) -> str:
    """Why a target's quality will not do; empty if it does."""
    if least is None:
        return ""
    if target.quality is None:
        return f"no quality is given, {least} is asked for"
    return f"quality {target.quality} is below {least}" if target.quality < least else ""


def cast(
    target: Model,
    draft: Model | None,
    hazards: Sequence[float],
    tau: int,
    budget: float,
    prompt: int,
    wanted: int,
) -> Role:
    """One cast at one τ on an idle engine; see :class:`Role`."""
    verify = PassCosts(
        draft.pass_ms if draft else 0.0, lambda width: target.pass_ms + target.token_ms * (width - 1)
    )
    prefill = prompt * (target.prefill_token_ms + (draft.prefill_token_ms if draft else 0.0))
    tokens, passes, ms = expected(hazards, tau, budget, wanted, verify)
    plain_ms = prompt * target.prefill_token_ms + wanted * target.pass_ms
    e2e = prefill + ms
    return Role(
        target.name,
        draft.name if draft else None,
        tau,
        tokens,
        passes,
        e2e,
        1000.0 * tokens / e2e,
        tokens / e2e / (wanted / plain_ms),
    )


def expected(
    hazards: Sequence[float], tau: int, budget: float, wanted: int, costs: PassCosts
) -> tuple[float, float, float]:
    """(tokens, passes, ms without prefill) of a request that wants ``wanted`` tokens.

    Exact over the distribution of tokens so far; a budget's fraction is the share of requests that get one
    pass more. A block is never longer than what is still wanted.
    """
    reach = survival(hazards, tau)
    whole = math.floor(min(budget, wanted))
    rest = min(budget, wanted) - whole
    left = {wanted: 1.0}  # tokens still wanted → probability
    passes = ms = 0.0
    for number in range(whole + (rest > 0.0)):
        share = 1.0 if number < whole else rest
        after: dict[int, float] = {}
        for still, weight in left.items():
            if not still:
                after[0] = after.get(0, 0.0) + weight
                continue
            length = min(tau, still - 1)
            passes += weight * share
            ms += weight * share * costs.cycle_ms(length)
            if share < 1.0:
                after[still] = after.get(still, 0.0) + weight * (1.0 - share)
            for accepted in range(length + 1):
                tail = reach[accepted + 1] if accepted < length else 0.0
                chance = weight * share * (reach[accepted] - tail)
                key = still - accepted - 1
                after[key] = after.get(key, 0.0) + chance
        left = after
    tokens = wanted - sum(still * weight for still, weight in left.items())
    return tokens, passes, ms
