"""The vocabulary contract: what is compared is content, and every refusal says what differs and the way out."""

import pytest

from kdlab.data.tokenizer import Tokenizer
from kdlab.data.toy import generate
from kdlab.data.vocabulary import refuse_another_vocabulary
from kdlab.errors import UserError

PAIRS = list(generate("train", 300, 1))
SRC, TGT = [src for src, _ in PAIRS], [tgt for _, tgt in PAIRS]


def trained(src: list[str] = SRC, tgt: list[str] = TGT) -> Tokenizer:
    return Tokenizer.train(src, tgt, vocab_size=150, joint=False, sample_lines=400)


def listed(pieces: list[str]) -> Tokenizer:
    """The pieces numbered by a list."""
    models = trained()._models
    return Tokenizer(models[0], models[1], pieces)


def test_t12_equal_pieces_are_one_vocabulary_whatever_numbers_them() -> None:
    joint = Tokenizer.train(SRC, TGT, vocab_size=150, sample_lines=400)
    refuse_another_vocabulary(trained(), trained())
    refuse_another_vocabulary(listed(joint.tgt_pieces), joint)


def test_t12_another_order_or_another_piece_is_refused() -> None:
    pieces = trained().tgt_pieces
    for changed, message in (
        (
            [*pieces[:5], *reversed(pieces[5:])],
            r"target vocabulary has the corpus's pieces in another order \(from id 5",
        ),
        ([*pieces[:5], "anders", *pieces[6:]], r"target vocabulary \(149 pieces\) is not .* 148 of them in both"),
        (
            [*pieces, "anders"],
            r"target vocabulary \(150 pieces\) is not the corpus's \(149 pieces, 149 of them in both",
        ),
    ):
        with pytest.raises(UserError, match=f"{message}.*recipe=seq_kd.*data.tokenizer.path=teacher"):
            refuse_another_vocabulary(listed(changed), listed(pieces))


def test_t12_a_source_side_of_its_own_is_refused_too() -> None:
    ours, others = trained(), trained(src=SRC[:200])
    assert ours.tgt_pieces == others.tgt_pieces
    with pytest.raises(UserError, match="source vocabulary .* source ids would be other words to it"):
        refuse_another_vocabulary(others, ours)
