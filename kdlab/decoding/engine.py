"""What decodes: batches of sources in, candidates with text and scores out, whatever searches behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Sources:
    """A batch of lines that are decoded together; the batch is kept as it is, since it decides the last bits."""

    row_id: list[int]  # of the corpus: what is drawn at random for a line depends on it and on no neighbour
    text: list[str]
    ids: list[list[int]] | None = None  # of the engine's own tokenizer, EOS last; None: the engine encodes the text


@dataclass(frozen=True)
class Candidate:
    """One translation of a line.

    `log_prob` in nats over `num_tokens` tokens, EOS counted; `score` as the search ranks; not `finished`: cut off at
    the greatest length.
    """

    text: str  # as the tokenizer gives it, line breaks too
    ids: list[int] | None  # of the engine's tokenizer, without EOS; None where that is no tokenizer of ours
    score: float
    log_prob: float
    num_tokens: int
    finished: bool


@runtime_checkable  # for the tests, which check annotations
class Engine(Protocol):
    """A teacher ready to decode, with how it searches."""

    @property
    def fingerprint(self) -> str | None:
        """Of its tokenizer (data.tokenizer.Tokenizer.fingerprint); None where that is no tokenizer of ours."""

    @property
    def num_parameters(self) -> int:
        """Of the model, or of all models together."""

    @property
    def max_positions(self) -> int | None:
        """Most tokens of a line; None where there is no limit."""

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Ids of every line as the model reads them: what batches are planned by."""

    def decode(self, batches: Iterable[Sources]) -> Iterator[list[list[Candidate]]]:
        """For every batch, in order: the candidates of every line, best first; none where a line is too long for it.

        It may read ahead. Candidates of a line depend on the lines of its batch only within rounding.
        """
