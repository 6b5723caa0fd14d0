"""Loops of tokens are found, counted and told from what only looks like one."""

import numpy as np
import pytest

from kdlab.data.label_filters import LONGEST_LOOP, repetition


@pytest.mark.parametrize("length", range(1, LONGEST_LOOP + 3))
@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_repetition_counts_loops_of_some_tokens(length, times):
    loop = list(range(10, 10 + length))
    assert repetition([1, 2, *loop * times, *loop[: length // 2], 3]) == (times if length <= LONGEST_LOOP else 1)


def test_repetition_is_what_a_slow_search_finds():
    def slow(ids):
        most = 1
        for length in range(1, LONGEST_LOOP + 1):
            for at in range(len(ids) - length + 1):
                times = 1
                while ids[at + times * length : at + (times + 1) * length] == ids[at : at + length]:
                    times += 1
                most = max(most, times)
        return most

    generator = np.random.default_rng(1)
    found = set()
    for _ in range(500):
        ids = generator.integers(0, generator.choice([2, 3, 20]), generator.integers(0, 30)).tolist()
        assert repetition(ids) == slow(ids), ids
        found.add(slow(ids))
    assert found >= {1, 2, 3, 4, 5}


def test_repetition_of_little():
    assert [repetition(ids) for ids in ([], [4], [4, 5], [4, 4], [4, 4, 5, 5, 5])] == [1, 1, 1, 2, 3]
