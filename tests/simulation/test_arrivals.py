"""Arrivals from a CSV: the Azure columns, times relative to the first, and what is wrong said by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from specpilot.simulation.arrivals import Arrival, read_arrivals

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def arrivals(tmp_path: Path, text: str) -> list[Arrival]:
    path = tmp_path / "arrivals.csv"
    path.write_text(text, encoding="utf-8")
    return list(read_arrivals(path))


def test_dates_with_seven_digits_and_plain_seconds(tmp_path: Path) -> None:
    dated = HEADER + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:48.1805900,396,109\n"
    first, second = arrivals(tmp_path, dated)
    assert first == Arrival(0.0, 374, 44)
    assert second.at_s == pytest.approx(1.5)
    assert arrivals(tmp_path, HEADER + "5,10,2\n5.25,20,3\n")[1] == Arrival(0.25, 20, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n1,2\n", "column GeneratedTokens is missing"),
        (HEADER, "there are no arrivals"),
        (HEADER + "noon,1,1\n", "line 2: TIMESTAMP 'noon' is no time"),
        (HEADER + "1,1,1\n2,x,1\n", "line 3: ContextTokens 'x' is not a whole number"),
        (HEADER + "1,1,0\n", "GeneratedTokens 0 is not ≥ 1"),
        (HEADER + "2,1,1\n1,1,1\n", "line 3: TIMESTAMP is before the line above"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arrivals(tmp_path, text)
