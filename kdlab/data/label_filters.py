"""Which hypotheses may become labels: rules that hold for each by itself, the first that it breaks counts.

Always on:
    unfinished    it was cut off at the greatest length, so it repeats itself or lacks its end
    empty         its text has no characters
    not_finite    its score or log-probability is NaN or infinite
    line_break    its text holds a line break, and would shift every line after it in a text file
On where a value is given:
    length_ratio  tokens of one side are more than max_length_ratio times those of the other (EOS counted)
    repetition    the same 1 to LONGEST_LOOP tokens come more than max_repetition times in a row
    copy          its text is the source's (spaces aside)
    low_score     its score, as the search ranks, is below min_score

A row without any hypothesis (a source that is too long for the teacher) counts as `missing`.
Source: OpusFilter's RepetitionFilter counts in a row too, characters where this counts tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from kdlab.data.candidates import Candidate, Row

RULES = ("unfinished", "empty", "not_finite", "line_break", "length_ratio", "repetition", "copy", "low_score")
MISSING = "missing"
LONGEST_LOOP = 8  # tokens


@dataclass(frozen=True)
class LabelFilters:
    """The values of the rules; None or False: off."""

    max_length_ratio: float | None = None
    max_repetition: int | None = None
    drop_copies: bool = False
    min_score: float | None = None

    def broken(self, row: Row, candidate: Candidate) -> str | None:
        """The first rule of RULES that a hypothesis breaks."""
        if not candidate.finished:
            return "unfinished"
        if not candidate.text.strip():
            return "empty"
        if not (math.isfinite(candidate.score) and math.isfinite(candidate.log_prob)):
            return "not_finite"
        if " ".join(candidate.text.splitlines()) != candidate.text:
            return "line_break"
        if self.max_length_ratio is not None:
            shorter, longer = sorted((len(candidate.tgt), row.src_len))
            if longer > self.max_length_ratio * shorter:
                return "length_ratio"
        if self.max_repetition is not None and repetition(candidate.tgt[:-1]) > self.max_repetition:
            return "repetition"
        if self.drop_copies and candidate.text.split() == row.src_text.split():
            return "copy"
        if self.min_score is not None and candidate.score < self.min_score:
            return "low_score"
        return None


def repetition(ids: Sequence[int]) -> int:
    """How many times in a row the same 1 to LONGEST_LOOP tokens come, at most; 1: nothing is repeated."""
    most = 1
    often = max(Counter(ids).values(), default=1)  # no loop comes more often than its tokens: this spares most texts
    for length in range(1, min(LONGEST_LOOP, len(ids) // 2) + 1):
        if most >= min(often, len(ids) // length):
            break
        same = longest = 0
        for one, before in zip(ids[length:], ids, strict=False):
            same = same + 1 if one == before else 0
            if same > longest:
                longest = same
        most = max(most, longest // length + 1)
    return most
