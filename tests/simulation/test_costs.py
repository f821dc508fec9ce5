"""Engine costs: interpolation by hand, the file, and refusals."""

from pathlib import Path

import pytest

from specpilot.simulation.costs import EngineCosts, Table, read_costs, write_costs

COSTS = EngineCosts(
    draft_step=Table((0.0, 100.0), (1.0, 2.0)),
    draft_forward=Table((1.0, 101.0), (1.0, 11.0)),
    verify=((1.0, Table((0.0, 100.0), (10.0, 12.0))), (9.0, Table((0.0, 100.0), (18.0, 22.0)))),
    host=0.5,
    engine="test",
)


def test_tables() -> None:
    table = Table((1.0, 3.0, 5.0), (10.0, 20.0, 25.0))
    assert [table(x) for x in (0, 1, 2, 3, 4, 5, 7)] == [10, 10, 15, 20, 22.5, 25, 30]
    assert Table((0.0,), (3.0,))(99) == 3.0


def test_verification_is_bilinear() -> None:
    assert COSTS.verify_ms(1, 0) == 10.0
    assert COSTS.verify_ms(9, 100) == 22.0
    assert COSTS.verify_ms(5, 0) == 14.0
    assert COSTS.verify_ms(5, 50) == pytest.approx((11.0 + 20.0) / 2)
    assert COSTS.verify_ms(17, 0) == 26.0


def test_scaling() -> None:
    scaled = COSTS.scaled(draft=2.0, verify=0.5, host=0.0)
    assert (scaled.draft_step(0), scaled.draft_forward(1), scaled.verify_ms(1, 0)) == (2.0, 2.0, 5.0)
    assert scaled.host == 0.0
    assert COSTS.scaled() == COSTS


def test_round_trip(tmp_path: Path) -> None:
    write_costs(tmp_path / "costs.json", COSTS)
    assert read_costs(tmp_path / "costs.json") == COSTS


def test_three_numbers() -> None:
    costs = EngineCosts.from_numbers(draft_ms=2.0, verify_ms=10.0, verify_token_ms=0.5)
    assert costs.verify_ms(1, 500) == 10.0
    assert costs.verify_ms(5, 0) == 12.0
    assert costs.draft_step(300) == 2.0
    assert costs.draft_forward(101) == pytest.approx(12.0)
    with pytest.raises(ValueError, match="verify_ms: 0"):
        EngineCosts.from_numbers(draft_ms=1.0, verify_ms=0.0)
    with pytest.raises(ValueError, match="draft_ms: -1"):
        EngineCosts.from_numbers(draft_ms=-1.0, verify_ms=1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "is not an object"),
        ('{"version": 3}', "version: 3 is not 1"),
        ('{"version": 1}', "verify_ms: there is no list"),
        ('{"version": 1, "verify_ms": [], "draft_step_ms": {"at": [0], "ms": [-1]}}', "ms: "),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"costs\.json: .*{message}"):
        read_costs(path)
