"""Cleaning: each rule drops what it says, once, and tells how many; memory is hashes."""

import numpy as np
import pytest

from kdlab.data.cleaning import RULES, Cleaner, CleaningRules, HashSet, HeldOut, hash_lines, hash_pairs
from kdlab.errors import UserError

HELD_SRC, HELD_TGT = ["Der alte Mann liest ein Buch.", "Danke."], ["The old man is reading a book.", "Thank you."]


def clean(pairs, rules=None, cleaner=None, start=0):
    cleaner = cleaner or Cleaner(rules or CleaningRules(), HeldOut(HELD_SRC, HELD_TGT))
    src, tgt = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    keep = cleaner.keep_text(np.arange(start, start + len(pairs)), src, tgt, hash_lines(src))
    return keep.tolist(), cleaner


def test_each_rule_on_text_counts_what_it_drops():
    pairs = [
        ("a b", "c d"),
        ("", "c"),
        ("x", " \u00a0"),
        ("a b", "c d"),  # duplicate within the batch
        ("a b", "other"),  # same source, another target: kept
        ("Der alte Mann liest ein Buch.", "new text"),  # held-out source
        ("neuer Text", "The old man is reading a book."),  # held-out target
        ("Danke.", "Thanks."),  # a short held-out source alone is kept
        ("Danke.", "Thank you."),  # the held-out pair itself
        ("The old man is reading a book.", "y"),  # the other side's line: kept
    ]
    keep, cleaner = clean(pairs)
    assert keep == [True, False, False, False, True, False, False, True, False, True]
    assert cleaner.dropped == {"empty": 2, "overlap": 3, "duplicate": 1, "too_long": 0, "length_ratio": 0}
    assert [example["row_id"] for example in cleaner.examples["overlap"]] == [5, 6, 8]
    keep, cleaner = clean([("a b", "c d"), ("new", "new")], cleaner=cleaner, start=10)  # duplicate of an earlier batch
    assert keep == [False, True]
    assert cleaner.num_read == 12 and cleaner.examples["duplicate"][1]["row_id"] == 10


def test_rules_can_be_switched_off():
    pairs = [("Danke.", "Thank you.")] * 2
    rules = CleaningRules(drop_duplicates=False, drop_overlap=False)
    assert clean(pairs, rules)[0] == [True, True]
    with pytest.raises(UserError, match="max_ratio must be at least 1, got 0.5"):
        CleaningRules(max_ratio=0.5)


def test_lengths_are_tokens_with_eos_and_limits_are_allowed():
    cleaner = Cleaner(CleaningRules(max_tokens=12, max_ratio=3.0), HeldOut(HELD_SRC, HELD_TGT))
    src_len, tgt_len = np.array([12, 13, 4, 4, 1], np.int32), np.array([12, 12, 12, 1, 1], np.int32)
    text = ["text"] * 5
    assert cleaner.keep_tokens(np.arange(5), text, text, src_len, tgt_len).tolist() == [True, False, True, False, False]
    assert [cleaner.dropped[rule] for rule in RULES] == [2, 0, 0, 1, 0]
    assert cleaner.keep_tokens(np.arange(1), ["a"], ["b"], np.array([10]), np.array([3])).tolist() == [False]
    assert cleaner.dropped["length_ratio"] == 1


def test_hash_set_equals_a_python_set_across_growth():
    rng = np.random.default_rng(0)
    seen, told = HashSet(), []
    pool = np.append(rng.integers(0, 2**64, 30_000, np.uint64), np.arange(500, dtype=np.uint64) * np.uint64(1 << 20))
    stream = rng.choice(pool, 60_000)  # half of it repeated, 0 and crowded low bits included
    for start in range(0, len(stream), 7_000):
        told += seen.add(stream[start : start + 7_000]).tolist()
    expected: set[int] = set()
    for value, is_new in zip(stream.tolist(), told, strict=True):
        assert is_new == (value not in expected)
        expected.add(value)


def test_hashes_are_stable_and_order_matters():
    assert hash_lines(["", "Häuser"]).tolist() == [13020603013274838756, 8135242804416988013]
    a, b = hash_lines(["a"]), hash_lines(["b"])
    assert hash_pairs(a, b) != hash_pairs(b, a)
