"""Model roles: the cast by hand, the exact distribution against a simulation, and the file's errors."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from specpilot.sizing import PassCosts, rank_roles, read_models
from specpilot.sizing.roles import Model, expected, quality_reason

FILE = """
least_quality = 0.6
[[models]]
name = "large"
pass_ms = 40.0
quality = 0.8
[[models]]
name = "middle"
pass_ms = 10.0
quality = 0.65
[[models]]
name = "small"
pass_ms = 2.0
quality = 0.4
[[acceptance]]
draft = "small"
target = "middle"
by_position = [0.5]
[[acceptance]]
draft = "small"
target = "large"
by_position = 0.6
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(FILE, encoding="utf-8")
    return file


def test_expected_by_hand() -> None:
    costs = PassCosts(1.0, lambda width: 10.0)
    # One pass of τ = 1: 1 + 0.5 tokens in 11 ms. Two: twice that, while enough is wanted.
    assert expected((0.5,), 1, 1.0, 10, costs) == pytest.approx((1.5, 1.0, 11.0))
    assert expected((0.5,), 1, 2.0, 10, costs) == pytest.approx((3.0, 2.0, 22.0))
    # Half of the requests get the second pass.
    assert expected((0.5,), 1, 1.5, 10, costs) == pytest.approx((2.25, 1.5, 16.5))
    # Two tokens wanted: a block of 1 finishes half of the requests; the rest takes a plain pass.
    assert expected((0.5,), 4, 2.0, 2, costs) == pytest.approx((2.0, 1.5, 11.0 + 5.0))


def test_expected_against_a_simulation() -> None:
    """30,000 requests; the standard error of the mean is below 0.02, so 0.1 is five of them."""
    rng = random.Random(5)
    hazards, tau, wanted = (0.8, 0.6), 3, 9
    total = 0
    for _ in range(30_000):
        left = wanted
        for _ in range(3):
            length, run = min(tau, left - 1) if left else -1, 0
            while run < length and rng.random() < hazards[min(run, 1)]:
                run += 1
            left -= (run + 1) if left else 0
        total += wanted - left
    tokens, _, _ = expected(hazards, tau, 3.0, wanted, PassCosts(1.0, lambda width: 1.0))
    assert tokens == pytest.approx(total / 30_000, abs=0.1)


def test_the_best_cast(path: Path) -> None:
    roles = rank_roles(read_models(path), pass_budget=2.0, slo_ms=250.0, prompt_tokens=1, max_tokens=24)
    assert (roles[0].target, roles[0].draft) == ("middle", "small")
    assert {role.target for role in roles if role.excluded} == {"small"}  # quality 0.4
    plain = next(role for role in roles if role.target == "large" and role.draft is None)
    assert (plain.tokens, plain.passes, plain.e2e_ms) == (2.0, 2.0, 80.0)


def test_a_cast_that_is_too_slow_is_out(path: Path) -> None:
    roles = rank_roles(read_models(path), pass_budget=2.0, slo_ms=60.0, prompt_tokens=1, max_tokens=24)
    out = {(role.target, role.draft): role.excluded for role in roles if role.excluded}
    assert "exceed the SLO" in out["large", None]
    assert roles[0].target == "middle"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pass_ms = 2.0", "pass_ms = 0.0", "models.small.pass_ms"),
        ("pass_ms = 2.0", "speed = 2.0", "'speed' is unknown"),
        ('draft = "small"', 'draft = "tiny"', "'tiny' is no model"),
        ("[0.5]", "[1.5]", "acceptance[0].by_position[0]: 1.5 is not in 0…1"),
        ("0.6\n[[models]]", "0.6\nspeed = 1\n[[models]]", "'speed' is unknown"),
        ('"middle"\npass', '"large"\npass', "unique"),
        ("least_quality = 0.6", "least_quality", "not TOML"),
        ("least_quality = 0.6", 'least_quality = "high"', "least_quality: 'high' is not a number"),
        ("pass_ms = 2.0", 'pass_ms = "9"', "models.small.pass_ms: '9' is not a number"),
    ],
)
def test_a_bad_file(path: Path, old: str, new: str, message: str) -> None:
    assert old in FILE
    path.write_text(FILE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r".*") as error:
        read_models(path)
    assert message in str(error.value)


def test_a_model_without_a_quality_is_said_to_have_none() -> None:
    assert quality_reason(Model("a", 3.0), 0.5) == "no quality is given, 0.5 is asked for"
    assert quality_reason(Model("a", 3.0, quality=0.4), 0.5) == "quality 0.4 is below 0.5"
    assert quality_reason(Model("a", 3.0), None) == ""


def test_a_table_in_the_wrong_place(path: Path) -> None:
    path.write_text('acceptance = 0.7\n[[models]]\nname = "a"\npass_ms = 1.0\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"acceptance: 0\.7 is no list of tables"):
        read_models(path)
