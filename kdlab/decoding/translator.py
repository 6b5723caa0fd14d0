"""Lines in, lines out: a model folder with its tokenizer, ready to translate text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdlab.data.lines import read_lines
from kdlab.data.tokenizer import Tokenizer
from kdlab.decoding.beam import BeamConfig
from kdlab.decoding.engine import Candidate, Engine, Sources
from kdlab.decoding.pytorch import pytorch_engine
from kdlab.decoding.text import one_line
from kdlab.decoding.translate import Precision, for_decoding, planned, refuse_nan
from kdlab.errors import UserError
from kdlab.models.folder import load_model, read_config
from kdlab.models.transformer import Transformer, num_parameters


@dataclass(frozen=True)
class Translator:
    """A model and the tokenizer that it was trained with."""

    model: Transformer
    tokenizer: Tokenizer
    num_parameters: int  # of the model as it is stored: int8 layers have none

    @classmethod
    def open(cls, folder: Path, *, precision: Precision, device: str) -> Translator:
        """From a model folder. Raises: UserError where model and tokenizer do not belong together."""
        model, tokenizer = load_model(folder), open_tokenizer(folder)
        return cls(for_decoding(model, precision=precision, device=device), tokenizer, num_parameters(model))

    def translate(
        self,
        lines: Sequence[str],
        config: BeamConfig,
        *,
        batch_tokens: int,
        progress: Callable[[int], object] | None = None,
        first_line: int = 1,
    ) -> list[list[Candidate]]:
        """As `translate_lines`."""
        return translate_lines(
            pytorch_engine([self.model], self.tokenizer, config, self.num_parameters),
            lines,
            batch_tokens=batch_tokens,
            beam_size=config.beam_size,
            progress=progress,
            first_line=first_line,
        )


def translate_lines(
    engine: Engine,
    lines: Sequence[str],
    *,
    batch_tokens: int,
    beam_size: int,
    progress: Callable[[int], object] | None = None,
    first_line: int = 1,
) -> list[list[Candidate]]:
    """Candidates of every line, each of one line; a line without tokens gets one that is empty, and is not searched.

    Args:
        first_line: number of the first line, for messages.
    Raises: UserError where a line is too long for the engine, or scores are not numbers.
    """
    src_ids, limit = engine.encode(list(lines)), engine.max_positions
    for number, ids in enumerate(src_ids, first_line):
        if limit is not None and len(ids) > limit:
            raise UserError(
                f"line {number} has {len(ids)} tokens, but this model was built for at most {limit} "
                "(max_positions); split it or leave it out"
            )

    def search(batches: list[list[int]]) -> Iterator[list[list[Candidate]]]:
        return engine.decode(
            Sources(batch, [lines[at] for at in batch], [src_ids[at] for at in batch]) for batch in batches
        )

    lengths = [len(ids) for ids in src_ids]
    found = planned(search, lengths, batch_tokens=batch_tokens, beam_size=beam_size, progress=progress)
    refuse_nan(found)
    return [[replace(candidate, text=one_line(candidate.text)) for candidate in row] for row in found]


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises: UserError where it is missing or not the one of the model."""
    config = read_config(folder)
    tokenizer = Tokenizer.open(folder / "tokenizer")
    architecture, known = config["architecture"], config["card"].get("tokenizer")
    built = (architecture["src_vocab_size"], architecture["tgt_vocab_size"])
    sizes = (tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    # A model may have more rows than its tokenizer has ids (models/folder.py); then the card must vouch for the two.
    fits = known == tokenizer.fingerprint or (known is None and built == sizes)
    if not fits or built[0] < sizes[0] or built[1] < sizes[1]:
        raise UserError(
            f"{folder / 'tokenizer'} ({tokenizer.fingerprint}, {tokenizer.src_vocab_size} and "
            f"{tokenizer.tgt_vocab_size} ids) is not the tokenizer of this model ({known or 'not recorded'}, "
            f"{built[0]} and {built[1]} ids): ids would mean other words; put back the one it was trained with"
        )
    return tokenizer


def input_lines(path: str | None) -> Iterator[str]:
    """Lines of a file (plain, .gz, .xz, .zst) or, for None, of standard input; checked for UTF-8."""
    if path is not None:
        yield from read_lines(path)
        return
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            yield raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input, line {number} is not UTF-8 ({error.reason} at byte {error.start}), so its characters "
                "are unknown; convert it first, e.g. with iconv -f latin1 -t utf-8"
            ) from None
