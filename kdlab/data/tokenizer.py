"""SentencePiece vocabularies of a language pair, one for both sides or one each; light to import.

Ids, so that exports to CTranslate2 and Marian are exact: `</s>` 0, `<unk>` 1, then the pieces; padding is the last id,
`vocab_size - 1`, ours and unknown to SentencePiece. Text is normalised by its default rule (nmt_nfkc: compatibility
forms folded, white space squeezed), so decoding an encoded line gives the normalised line.

A vocabulary of Marian's (data/marian.py) has two SentencePiece models and one list of pieces beside them, from which
both sides take their ids.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

from kdlab.errors import UserError
from kdlab.files import read_json, write_json

EOS_ID, UNK_ID = 0, 1  # as in types.py, which needs torch
VOCABULARY, PADDING = "vocab.json", "<pad>"  # the list of pieces, and the name of padding in it
# Every character is a piece where all of them take at most a tenth of the vocabulary; else those that make up one
# character in ten thousand become <unk>: a web corpus would spend thousands of pieces on them.
MAX_CHARACTER_SHARE, CHARACTER_COVERAGE = 0.1, 0.9999


@final
class Tokenizer:
    """Turns text into ids and back, for source and target."""

    def __init__(self, src_model: bytes, tgt_model: bytes | None = None, pieces: Sequence[str] | None = None):
        """From serialised SentencePiece models; without a second one, both sides share the first.

        Args:
            pieces: all but padding in the order of their ids, where these are not the models' own.
        """
        self._models = (src_model, tgt_model)
        self._listed = pieces is not None
        self._src = _Side(src_model, pieces)
        self._tgt = self._src if tgt_model is None else _Side(tgt_model, pieces)

    @classmethod
    def train(
        cls,
        src_lines: Iterable[str],
        tgt_lines: Iterable[str],
        *,
        vocab_size: int,
        joint: bool = True,
        model: Literal["unigram", "bpe"] = "unigram",
        sample_lines: int = 200_000,
        seed: int = 0,
        src_symbols: Sequence[str] = (),
    ) -> Tokenizer:
        """A vocabulary learnt from `sample_lines` lines of each side, drawn at random by `seed`.

        `src_symbols`: texts that are one piece each of the source side, whatever the lines say.
        The same lines and arguments give the same bytes. `vocab_size` counts every id of a side, padding included.
        Memory: about 3 KB for each sampled pair of lines.
        Raises: UserError with the largest (or smallest) possible size.
        """
        src = _sample(src_lines, sample_lines, seed)
        tgt = _sample(tgt_lines, sample_lines, seed)
        if joint:
            return cls(_train(src + tgt, vocab_size, model, "both sides", src_symbols))
        src_model = _train(src, vocab_size, model, "the source side", src_symbols)
        return cls(src_model, _train(tgt, vocab_size, model, "the target side"))

    @classmethod
    def open(cls, folder: Path | str) -> Tokenizer:
        """The tokenizer saved in a folder. Raises: UserError."""
        folder = Path(folder)
        try:
            card = read_json(folder / "tokenizer.json")
            listed = read_json(folder / VOCABULARY) if card.get("listed") else None
            models = [(folder / name).read_bytes() for name in _file_names(card["joint"] and not listed)]
            pieces = sorted(listed, key=listed.__getitem__)[:-1] if listed else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder} holds no kdlab tokenizer ({error}), so text cannot become ids; name a folder with "
                f"tokenizer.json, such as tokenizer/ in a model's folder"
            ) from error
        tokenizer = cls(models[0], models[1] if len(models) > 1 else None, pieces)
        if tokenizer.fingerprint != card.get("fingerprint"):
            raise UserError(
                f"{folder} was changed: its pieces have the fingerprint {tokenizer.fingerprint}, tokenizer.json says "
                f"{card.get('fingerprint')}; ids would mean other words; restore the folder from where it was made"
            )
        return tokenizer

    def save(self, folder: Path | str) -> None:
        """Writes joint.spm, or source.spm and target.spm, and tokenizer.json; vocab.json where ids come from a list."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, model in zip(_file_names(self._tgt is self._src), self._models, strict=False):
            (folder / name).write_bytes(model or b"")
        card: dict[str, Any] = {"joint": self.joint, **({"listed": True} if self._listed else {})}
        if self._listed:  # as Hugging Face's Marian has it
            listed = [*self.src_pieces, PADDING]
            write_json(folder / VOCABULARY, {piece: index for index, piece in enumerate(listed)})
        sizes = {"src_vocab_size": self.src_vocab_size, "tgt_vocab_size": self.tgt_vocab_size}
        write_json(folder / "tokenizer.json", {**card, **sizes, "fingerprint": self.fingerprint})

    def encode_src(self, lines: list[str]) -> list[list[int]]:
        """Ids of source lines, EOS last."""
        return self._src.encode(lines)

    def encode_tgt(self, lines: list[str]) -> list[list[int]]:
        """Ids of target lines as `tgt_out`: EOS last."""
        return self._tgt.encode(lines)

    def decode_tgt(self, ids: Sequence[int]) -> str:
        """The text of target ids up to the first EOS; padding is skipped."""
        kept: list[int] = []
        for token in ids:
            if token == EOS_ID:
                break
            if token != self.tgt_pad_id:
                kept.append(int(token))
        return self._tgt.decode(kept)

    def src_symbol_id(self, text: str) -> int:
        """The id of a text that is one piece of the source side. Raises: UserError where it is none."""
        if text not in self.src_pieces:
            raise UserError(
                f"label_tag={text} is no piece of the vocabulary ({self.src_vocab_size:,} entries), so it cannot mark "
                "sources; leave label_tag out, or have a vocabulary learnt with it (data.tokenizer.path=null)"
            )
        return self.src_pieces.index(text)

    @property
    def joint(self) -> bool:
        """Whether both sides share one vocabulary."""
        return self._tgt is self._src or self._listed

    @property
    def src_pieces(self) -> list[str]:
        """Pieces of the source side in the order of their ids, all but padding."""
        return self._src.pieces

    @property
    def tgt_pieces(self) -> list[str]:
        """Pieces of the target side in the order of their ids, all but padding."""
        return self._tgt.pieces

    @property
    def src_vocab_size(self) -> int:
        return len(self.src_pieces) + 1

    @property
    def tgt_vocab_size(self) -> int:
        return len(self.tgt_pieces) + 1

    @property
    def src_pad_id(self) -> int:
        return self.src_vocab_size - 1

    @property
    def tgt_pad_id(self) -> int:
        return self.tgt_vocab_size - 1

    @cached_property
    def fingerprint(self) -> str:
        """16 hex of SHA-256 over the ordered pieces of both sides: equal where ids mean the same words."""
        pieces = [self.src_pieces, self.tgt_pieces]
        return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()[:16]


@final
class _Side:
    """One language: a SentencePiece model and what its pieces are numbered by, itself or a list."""

    def __init__(self, model: bytes, pieces: Sequence[str] | None):
        self._processor = _processor(model, own_ids=pieces is None)
        self._ids = None if pieces is None else {piece: index for index, piece in enumerate(pieces)}
        own = range(self._processor.get_piece_size())
        self.pieces = [self._processor.id_to_piece(index) for index in own] if pieces is None else list(pieces)

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Ids, EOS last."""
        if self._ids is None:
            return self._processor.encode(lines, add_eos=True, num_threads=1)
        codes, texts = zip(*map(self._language_code, lines), strict=True) if lines else ((), ())
        found = self._processor.encode(list(texts), out_type=str, num_threads=1)
        get = self._ids.get
        return [[*code, *(get(piece, UNK_ID) for piece in row), EOS_ID] for code, row in zip(codes, found, strict=True)]

    def decode(self, ids: list[int]) -> str:
        """Text of ids, none of them EOS or padding."""
        if self._ids is None:
            return self._processor.decode(ids)
        text = self._processor.decode([self.pieces[token] for token in ids]) if ids else ""
        return text.replace("\u2581", " ").strip()  # in pieces of the other language, which the model does not know

    def _language_code(self, line: str) -> tuple[list[int], str]:
        """Takes off a code such as >>fra<< that says into which language; the list has it, SentencePiece does not."""
        written = re.match(r">>.+?<<", line)
        code = self._ids.get(written[0]) if self._ids and written else None
        return ([], line) if written is None or code is None else ([code], line[written.end() :])


def _file_names(joint: bool) -> tuple[str, ...]:
    return ("joint.spm",) if joint else ("source.spm", "target.spm")


def _processor(model: bytes, *, own_ids: bool) -> Any:
    from sentencepiece import SentencePieceProcessor

    try:
        side = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise UserError(f"a damaged SentencePiece model ({error}): text cannot become ids; restore the file") from error
    ids = (side.eos_id(), side.unk_id(), side.bos_id(), side.pad_id())
    if own_ids and ids != (EOS_ID, UNK_ID, -1, -1):
        raise UserError(
            f"a SentencePiece model with (eos, unk, bos, pad) = {ids}: models here count on (0, 1, -1, -1), with which "
            f"exports are exact; train it with --eos_id=0 --unk_id=1 --bos_id=-1 --pad_id=-1"
        )
    return side


def _train(lines: list[str], vocab_size: int, model: str, what: str, symbols: Sequence[str] = ()) -> bytes:
    from sentencepiece import SentencePieceTrainer

    writer = io.BytesIO()
    more: dict[str, Any] = (
        {"user_defined_symbols": list(symbols)} if symbols else {}
    )  # an empty list would change the model's bytes
    num_characters = len(set().union(*lines))
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=writer,
            model_type=model,
            vocab_size=vocab_size - 1,  # padding is ours
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            pad_id=-1,
            character_coverage=1.0 if num_characters <= MAX_CHARACTER_SHARE * vocab_size else CHARACTER_COVERAGE,
            num_threads=1,  # the pieces' scores depend on the number of threads
            minloglevel=2,
            **more,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(_size_problem(str(error), vocab_size, len(lines), what)) from error
    return writer.getvalue()


def _size_problem(error: str, vocab_size: int, num_lines: int, what: str) -> str:
    learnt = f"vocab_size={vocab_size}: no vocabulary of that size can be learnt from {num_lines} lines of {what}"
    if found := re.search(r"value <= (\d+)", error):
        return f"{learnt}, whose text has fewer pieces; the largest possible is vocab_size={int(found[1]) + 1}"
    if found := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return f"{learnt}, whose characters alone need more; write at least vocab_size={int(found[1]) + 1}"
    return f"{learnt} ({error}); check that the lines hold text"


def _sample(lines: Iterable[str], size: int, seed: int) -> list[str]:
    """`size` lines drawn without replacement from a stream of unknown length (reservoir sampling), or all of them."""
    rng = random.Random(seed)
    kept: list[str] = []
    for index, line in enumerate(lines):
        if index < size:
            kept.append(line)
        elif (slot := int(rng.random() * (index + 1))) < size:
            kept[slot] = line
    return kept
