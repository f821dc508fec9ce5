"""The agreement trace: what is written is read back, and bad files are refused with their line."""

import json
from pathlib import Path

import pytest

from specpilot.trace.agreement import AgreementTrace, loop_start, read_agreement, write_agreement

FULL = AgreementTrace(
    request="a",
    prompt_tokens=12,
    agree=(1, 0, None, 1),
    confidence=(0.9, 0.25, 0.5, 1.0),
    rank=(0, 3, 1, 0),
    margin_target=(2.5, 0.0005, 1.0, 4.0),
    margin_draft=(1.5, 0.1, 0.2, 3.0),
    drafter="draft_model",
    ended="eos",
    loop_from=3,
    label="completion",
)


def test_round_trip_keeps_every_field(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    bare = AgreementTrace("b", 0, (1,))
    assert write_agreement(path, [FULL, bare]) == 2
    assert read_agreement(path) == [FULL, bare]


def test_the_line_has_the_documented_names(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_agreement(path, [FULL])
    record = json.loads(path.read_text())
    assert record["version"] == 1
    assert record["agree"] == [1, 0, None, 1]
    lists = {"agree", "confidence", "rank", "margin_target", "margin_draft"}
    assert {"version", "request", "prompt_tokens", "drafter"} | lists <= record.keys()


def test_counts() -> None:
    assert FULL.unknown == 1
    assert FULL.near_ties(4) == 1
    assert FULL.near_ties(1) == 0
    assert FULL.loop_tokens(4) == 1
    assert FULL.loop_tokens(2) == 0


GOOD = '{"version": 1, "request": "a", "prompt_tokens": 1, "agree": [1]'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"version": 2, "request": "a", "prompt_tokens": 1, "agree": [1]}', "version: 2 is not 1"),
        ('{"request": "a", "prompt_tokens": 1, "agree": [1]}', "version: None is not 1"),
        ('{"version": 1, "request": "a", "prompt_tokens": 1, "agree": [2]}', r"agree\[0\]: 2"),
        ('{"version": 1, "request": "a", "prompt_tokens": 1, "agree": [true]}', r"agree\[0\]: True"),
        ('{"version": 1, "request": "a", "prompt_tokens": 1, "agree": []}', "agree: the list is empty"),
        ('{"version": 1, "request": "a", "prompt_tokens": 1}', "agree: there is no list"),
        ('{"version": 1, "request": "a", "prompt_tokens": -1, "agree": [1]}', "prompt_tokens: -1"),
        ('{"version": 1, "request": "", "prompt_tokens": 1, "agree": [1]}', "request: '' is empty"),
        ('{"version": 1, "request": 7, "prompt_tokens": 1, "agree": [1]}', "request: 7 is not a string"),
        (GOOD + ', "confidence": [1.2]}', "confidence"),
        (GOOD + ', "rank": [1, 2]}', "rank: 2 values"),
        (GOOD + ', "ended": "tired"}', "ended: 'tired'"),
        ("[1]", "is not an object"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"version": 1, "request": "ok", "prompt_tokens": 1, "agree": [1]}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"trace\.jsonl, line 3: .*" + message):
        read_agreement(path)


def test_names_must_be_unique_and_a_file_not_empty(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    line = '{"version": 1, "request": "a", "prompt_tokens": 1, "agree": [1]}\n'
    path.write_text(line + line)
    with pytest.raises(ValueError, match="occurs twice"):
        read_agreement(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="no records"):
        read_agreement(path)


def test_loop_start() -> None:
    assert loop_start([1, 2, 3, 4, 5, 6, 7, 8]) is None
    # "7 7 7 7" ends at positions 3, 4 and 5; what follows the third is a loop.
    assert loop_start([7, 7, 7, 7, 7, 7, 7]) == 6
    # "1 2 3 4" three times, 12 tokens; each other 4-gram of the cycle has occurred twice by then.
    assert loop_start([1, 2, 3, 4] * 3) == 12
    assert loop_start([1, 2, 3, 4] * 2) is None
