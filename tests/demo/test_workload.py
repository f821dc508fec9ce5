"""The bundled workload: sensible prompts, the right mix, the same for the same seed."""

from collections import Counter
from itertools import pairwise

import pytest

from specpilot.demo.workload import MIX, bundled_prompts, make_arrivals


def test_prompts_are_unique_and_of_all_classes() -> None:
    prompts = bundled_prompts()
    assert len(prompts) >= 150
    assert len({prompt.key for prompt in prompts}) == len(prompts)
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert set(MIX) == {prompt.label for prompt in prompts}


def test_lengths_by_class() -> None:
    words: dict[str, list[int]] = {}
    for prompt in bundled_prompts():
        words.setdefault(prompt.label, []).append(len(prompt.text.split()))
    assert min(words["completion"]) >= 5
    assert max(words["completion"]) <= 45
    assert min(words["continuation"]) >= 50
    assert max(words["continuation"]) <= 150
    assert min(words["long"]) >= 150
    assert max(words["session"]) >= 480


def test_each_step_of_a_session_extends_the_one_before() -> None:
    steps = [prompt for prompt in bundled_prompts() if prompt.label == "session"]
    pairs = [(a, b) for a, b in pairwise(steps) if a.document == b.document]
    assert len(pairs) >= 40
    for before, after in pairs:
        assert after.step == before.step + 1
        assert after.text.startswith(before.text)
        assert len(after.text) > len(before.text)


def test_arrivals_follow_the_seed_and_the_mix() -> None:
    prompts = bundled_prompts()
    arrivals = make_arrivals(prompts, 2000, seed=7)
    assert arrivals == make_arrivals(prompts, 2000, seed=7)
    assert arrivals != make_arrivals(prompts, 2000, seed=8)
    counts = Counter(arrival.prompt.label for arrival in arrivals)
    # Four standard deviations of a binomial share: a false failure in about 1 of 3,000 seeds; seeded.
    for label, share in MIX.items():
        assert abs(counts[label] - 2000 * share) <= 4 * (2000 * share * (1 - share)) ** 0.5
    times = [arrival.at for arrival in arrivals]
    assert times == sorted(times)
    assert abs(times[-1] / 2000 - 1.0) <= 4 / 2000**0.5


def test_sessions_are_typed_in_order() -> None:
    last: dict[str, int] = {}
    for arrival in make_arrivals(bundled_prompts(), 1000, seed=3):
        if arrival.session_id is None:
            assert arrival.prompt.label != "session"
            continue
        assert arrival.prompt.step == last.get(arrival.session_id, -1) + 1
        last[arrival.session_id] = arrival.prompt.step


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="requests: 0"):
        make_arrivals(bundled_prompts(), 0, seed=1)
