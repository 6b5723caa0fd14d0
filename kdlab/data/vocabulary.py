"""The vocabulary contract of word-level distillation: teacher and student mean the same words by the same ids."""

from __future__ import annotations

from kdlab.data.tokenizer import Tokenizer
from kdlab.errors import UserError


def refuse_another_vocabulary(teacher: Tokenizer, corpus: Tokenizer) -> None:
    """Compares by content, the ordered pieces of both sides; where they came from does not matter.

    Rows that a model has beyond its tokenizer are not its vocabulary: models/folder.py and models/huggingface.py leave
    them out when they read a model.

    Raises: UserError where the target side differs (probabilities would be compared between different words), or only
        the source side (the teacher would read other words).
    """
    if teacher.fingerprint == corpus.fingerprint:
        return
    tgt = _difference(teacher.tgt_pieces, corpus.tgt_pieces)
    src = _difference(teacher.src_pieces, corpus.src_pieces)
    if tgt:
        problem = f"the teacher's target vocabulary {tgt}, but word-level KD compares probabilities token by token"
    else:
        problem = f"the teacher's source vocabulary {src}, so the corpus's source ids would be other words to it"
    raise UserError(
        f"{problem}; use recipe=seq_kd (it needs no common vocabulary), or let corpus and student adopt the teacher's: "
        "data.tokenizer.path=teacher"
    )


def _difference(theirs: list[str], ours: list[str]) -> str:
    """How two vocabularies differ, or nothing."""
    if theirs == ours:
        return ""
    if sorted(theirs) == sorted(ours):
        first = next(index for index, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1])
        return f"has the corpus's pieces in another order (from id {first} on)"
    shared = len(set(theirs) & set(ours))
    return f"({len(theirs):,} pieces) is not the corpus's ({len(ours):,} pieces, {shared:,} of them in both)"
