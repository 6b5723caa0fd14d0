"""Vocabularies: ids as exports want them, deterministic, saved and refused as told."""

import random

import pytest

from kdlab import types
from kdlab.data import tokenizer as module
from kdlab.data.tokenizer import Tokenizer
from kdlab.errors import UserError


def sentences(seed: int, letters: str, num_lines: int = 400) -> list[str]:
    rng = random.Random(seed)
    words = ["".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(200)]
    return [" ".join(rng.choices(words, k=rng.randint(3, 9))) + "." for _ in range(num_lines)]


SRC, TGT = sentences(1, "abcdeäöß"), sentences(2, "fghijkl")


def trained(**changes):
    return Tokenizer.train(SRC, TGT, **({"vocab_size": 120, "joint": True, "sample_lines": 300, "seed": 1} | changes))


def test_ids_are_those_that_exports_count_on():
    assert (module.EOS_ID, module.UNK_ID) == (types.EOS_ID, types.UNK_ID) == (0, 1)
    tokenizer = trained()
    assert tokenizer.src_vocab_size == tokenizer.tgt_vocab_size == 120
    assert tokenizer.src_pad_id == tokenizer.tgt_pad_id == 119
    ids = tokenizer.encode_tgt([*TGT, "", "ЖЖ"])
    assert all(row[-1] == 0 and 0 not in row[:-1] for row in ids)
    assert max(map(max, ids)) < 119
    assert ids[-2] == [0] and 1 in ids[-1]


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_text_goes_round_and_folders_give_the_same_tokenizer(tmp_path, joint, model):
    tokenizer = trained(joint=joint, model=model)
    assert [tokenizer.decode_tgt(ids) for ids in tokenizer.encode_tgt(TGT)] == TGT
    tokenizer.save(tmp_path)
    again = Tokenizer.open(tmp_path)
    assert again.joint == joint and again.fingerprint == tokenizer.fingerprint and len(again.fingerprint) == 16
    assert again.encode_src(SRC) == tokenizer.encode_src(SRC)
    if not joint:  # each side knows its own letters only
        assert 1 in tokenizer.encode_tgt(SRC[:1])[0] and 1 not in tokenizer.encode_src(SRC[:1])[0]


def test_rare_characters_are_pieces_where_there_is_room():
    few = Tokenizer.train([*SRC * 20, "ц"], TGT * 20, vocab_size=200, sample_lines=99_999)
    many = Tokenizer.train([*SRC * 20, "ц"], TGT * 20, vocab_size=120, sample_lines=99_999)
    assert few.decode_tgt(few.encode_tgt(["aц"])[0]) == "aц"
    assert 1 in many.encode_tgt(["aц"])[0]


def test_decoding_stops_at_eos_and_skips_padding():
    tokenizer = trained()
    ids = tokenizer.encode_tgt(["fghi jkl"])[0]
    assert tokenizer.decode_tgt([119, *ids, 119, *ids]) == "fghi jkl"
    assert tokenizer.decode_tgt([]) == ""


def test_training_is_a_function_of_lines_and_seed(capfd):
    first, again = trained(), trained()
    assert first._models == again._models
    assert trained(seed=2).fingerprint != first.fingerprint
    assert trained(sample_lines=10_000, seed=3)._models == trained(sample_lines=10_000, seed=4)._models
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_an_impossible_size_says_the_nearest_possible_one(model):
    with pytest.raises(UserError, match="vocab_size=50000.*largest possible is vocab_size=") as caught:
        trained(vocab_size=50_000, model=model)
    largest = int(str(caught.value).rpartition("=")[2])
    assert trained(vocab_size=largest, model=model).src_vocab_size == largest
    with pytest.raises(UserError, match="at least vocab_size="):
        trained(vocab_size=8, model=model)
    with pytest.raises(UserError, match="check that the lines hold text"):
        Tokenizer.train(["", " "], [""], vocab_size=100)


def test_line_breaks_of_unicode_become_spaces():
    tokenizer = Tokenizer.train(SRC, [f"{line}\nmore\u2028text" for line in TGT], vocab_size=120, sample_lines=999)
    assert tokenizer.decode_tgt(tokenizer.encode_tgt(["fgh\nijk\u2028l\u00a0 f"])[0]) == "fgh ijk l f"


def test_foreign_folders_and_models_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no kdlab tokenizer"):
        Tokenizer.open(tmp_path)
    trained().save(tmp_path / "a")
    trained(seed=2).save(tmp_path / "b")
    (tmp_path / "b" / "joint.spm").write_bytes((tmp_path / "a" / "joint.spm").read_bytes())
    with pytest.raises(UserError, match="was changed"):
        Tokenizer.open(tmp_path / "b")
    with pytest.raises(UserError, match="damaged SentencePiece model"):
        Tokenizer(b"nothing of the kind")
