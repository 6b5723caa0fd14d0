"""Between text and ids: an engine from a search over ids and the tokenizer of its models."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kdlab.data.tokenizer import Tokenizer
from kdlab.decoding.beam import Hypothesis
from kdlab.decoding.engine import Candidate, Sources

# Of every batch, given as row ids and source ids (EOS last), the hypotheses of every source, best first, in order.
Batch = tuple[list[int], list[list[int]]]
Search = Callable[[Iterable[Batch]], Iterator[list[list[Hypothesis]]]]

NOTHING = Hypothesis([], 0.0, 0.0, finished=True)  # of a source without tokens


@dataclass(frozen=True)
class TextEngine:
    """An engine (engine.Engine). A source without tokens is not searched: it gets one candidate, which is empty."""

    tokenizer: Tokenizer
    search: Search
    max_positions: int  # sources of more tokens get no candidate
    num_parameters: int

    @property
    def fingerprint(self) -> str:
        return self.tokenizer.fingerprint

    def encode(self, lines: list[str]) -> list[list[int]]:
        """As Engine.encode."""
        return self.tokenizer.encode_src(lines)

    def decode(self, batches: Iterable[Sources]) -> Iterator[list[list[Candidate]]]:
        waiting: deque[list[int]] = deque()  # lengths of the sources of each batch that the search has taken

        def searched() -> Iterator[Batch]:
            for batch in batches:
                src_ids = self.encode(batch.text) if batch.ids is None else batch.ids
                waiting.append([len(ids) for ids in src_ids])
                some = [at for at, ids in enumerate(src_ids) if self._is_searched(len(ids))]
                yield [batch.row_id[at] for at in some], [src_ids[at] for at in some]

        for results in self.search(searched()):
            found = iter(results)
            yield [
                [self._candidate(x) for x in next(found)]
                if self._is_searched(length)
                else ([self._candidate(NOTHING)] if length <= 1 else [])
                for length in waiting.popleft()
            ]

    def _is_searched(self, length: int) -> bool:
        return 1 < length <= self.max_positions

    def _candidate(self, found: Hypothesis) -> Candidate:
        text = self.tokenizer.decode_tgt(found.ids)
        num_tokens = len(found.ids) + found.finished
        return Candidate(text, found.ids, found.score, found.log_prob, num_tokens, found.finished)


def one_line(text: str) -> str:
    """The text with every line break made a space, for whoever writes a hypothesis as one line of a file."""
    return " ".join(text.splitlines())
