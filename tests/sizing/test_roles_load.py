"""Model roles under load: at leisure the idle arithmetic, at a high rate only what keeps up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specpilot.cli.main import main
from specpilot.control import ControllerConfig
from specpilot.sizing import rank_roles, read_models
from specpilot.sizing.roles import Candidates, Model
from specpilot.sizing.roles_load import LoadedRole, costs_of, rank_loaded

LARGE, SMALL = Model("large", 40.0, quality=0.8), Model("small", 4.0, quality=0.7)
CANDIDATES = Candidates([LARGE, SMALL], {("small", "large"): (1.0,)})


def loaded(
    rate: float, candidates: Candidates = CANDIDATES, slo_ms: float = 500.0
) -> dict[tuple[str, str | None], LoadedRole]:
    config = ControllerConfig(slo_p95_ms=slo_ms, burst=0)
    roles = rank_roles(candidates, pass_budget=2.0, slo_ms=slo_ms, prompt_tokens=1, max_tokens=24)
    settings = {"prompts": (1,), "max_tokens": 24, "count": 150, "seed": 1}
    rows = rank_loaded(candidates, roles, config, rate_per_s=rate, **settings)  # type: ignore[arg-type]
    return {(row.target, row.draft): row for row in rows}


def test_costs_by_hand() -> None:
    target = Model("target", 40.0, token_ms=0.5, prefill_token_ms=0.1)
    costs = costs_of(target, Model("draft", 4.0, prefill_token_ms=0.01))
    assert costs.verify_ms(1, 0) == 40.0
    assert costs.verify_ms(5, 0) == pytest.approx(42.0)
    assert costs.verify_ms(117, 0) == pytest.approx(40.0 + 16 * 0.5 + 100 * 0.1)
    assert costs.draft_step(300) == 4.0
    assert costs.draft_forward(101) == pytest.approx(5.0)
    assert costs_of(target, None).draft_step(0) == 0.0


def test_at_leisure_each_request_is_alone() -> None:
    """One request in 100 s; a draft that is always right, two passes: τ = 12 or more gives all 24 tokens."""
    rows = loaded(0.01)
    pair = rows["large", "small"]
    assert pair.tau in (11, 12, 16)
    assert pair.tokens == pytest.approx(24.0, abs=0.5)
    plain = rows["large", None]
    assert plain.tokens == pytest.approx(2.0, abs=0.05)
    assert plain.e2e_p95_ms == pytest.approx(80.0)
    assert plain.utilisation == pytest.approx(0.01 * 0.080)


def test_the_slow_target_is_out_where_it_does_not_keep_up() -> None:
    """50 requests a second: two passes of 4 ms fill 0.4 of the time, two of 40 ms fill it four times."""
    rows = loaded(50.0, slo_ms=200.0)
    assert rows["small", None].excluded == ""
    assert rows["small", None].utilisation == pytest.approx(0.4)
    assert next(iter(rows)) == ("small", None)
    assert {key for key, row in rows.items() if row.excluded} == {("large", None), ("large", "small")}


def test_quality_is_asked_before_speed() -> None:
    rows = loaded(50.0, Candidates(CANDIDATES.models, CANDIDATES.acceptance, least_quality=0.75))
    assert "quality 0.7 is below 0.75" in rows["small", None].excluded


def test_a_rate_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"rate: 0\.0 is not > 0"):
        loaded(0.0)


FILE = """
[[models]]
name = "large"
pass_ms = 40.0
[[models]]
name = "small"
pass_ms = 4.0
[[acceptance]]
draft = "small"
target = "large"
by_position = 0.9
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = tmp_path / "models.toml", tmp_path / "plan.json"
    path.write_text(FILE, encoding="utf-8")
    assert [model.name for model in read_models(path).models] == ["large", "small"]
    count = ("--requests", "60")
    for load, shown in (
        (("--rate", "5", *count), True),
        (("--load", "0.2", *count), True),
        (("--load", "0"), False),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["plan", "--models", str(path), *load, "--json", str(target)])
        assert stop.value.code == 0
        record = json.loads(target.read_text())
        assert bool(record["under_load"]) is shown
        assert ("Under load" in capsys.readouterr().out) is shown
        first = record["under_load" if shown else "roles"][0]
        assert record["recommended"] == {name: first[name] for name in ("target", "draft", "tau")}
