"""Tags: one piece before the sources of pseudo-labels, for the student alone."""

from itertools import islice

import numpy as np
import pytest
import torch

from kdlab import compose
from kdlab.data.mixing import Mixing
from kdlab.data.tokenizer import Tokenizer
from kdlab.errors import ConfigError, UserError
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.teachers.frozen import FrozenTeacher
from tests.unit.test_batching import contents, corpus, stream
from tests.unit.test_recipes import changed, default_keys, keys, plan
from tests.unit.test_source_only import prepare, toy
from tests.unit.test_tokenizer import SRC, TGT, trained

TAG = 95


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_the_tag_is_one_piece_of_the_source_side(tmp_path, joint, model):
    tokenizer = trained(joint=joint, model=model, src_symbols=["<pseudo>"])
    tag = tokenizer.src_symbol_id("<pseudo>")
    assert tokenizer.src_pieces[tag] == "<pseudo>" and tokenizer.src_vocab_size == 120
    assert ("<pseudo>" in tokenizer.tgt_pieces) == joint
    assert not any(tag in ids for ids in tokenizer.encode_src(SRC)) and tag in tokenizer.encode_src(["<pseudo> abc"])[0]
    tokenizer.save(tmp_path)
    assert Tokenizer.open(tmp_path).src_symbol_id("<pseudo>") == tag
    assert [tokenizer.decode_tgt(ids) for ids in tokenizer.encode_tgt(TGT)] == TGT
    plain = trained(joint=joint, model=model)
    assert trained(joint=joint, model=model, src_symbols=[]).fingerprint == plain.fingerprint
    with pytest.raises(UserError, match="label_tag=<pseudo> is no piece of the vocabulary.*data.tokenizer.path=null"):
        plain.src_symbol_id("<pseudo>")


def test_a_given_vocabulary_without_the_piece_is_refused_before_the_text_is_read(tmp_path, monkeypatch):
    made, _ = prepare(tmp_path / "tagged", toy("train", 60), label_tag="<pseudo>")
    assert made.tokenizer.src_symbol_id("<pseudo>") == 2
    prepare(tmp_path / "again", toy("train", 60), label_tag="<pseudo>", tokenizer=str(made.folder / "tokenizer"))
    other, _ = prepare(tmp_path / "other", toy("train", 60))
    monkeypatch.setattr("kdlab.data.corpus.Toy.lines", None)
    for tokenizer in ({"tokenizer": str(other.folder / "tokenizer")}, {"inputs": {"teacher": other.folder}}):
        with pytest.raises(UserError, match="label_tag=<pseudo> is no piece of the vocabulary"):
            prepare(tmp_path / str(len(list(tmp_path.iterdir()))), toy("train", 60), label_tag="<pseudo>", **tokenizer)


def test_sources_of_pseudo_labels_begin_with_the_tag_and_teachers_do_not_see_it():
    rows, labels = corpus()
    settings = {"labels": labels, "mixing": Mixing(0.4)}
    tagged, plain = stream(rows, tag_id=TAG, **settings), stream(rows, **settings)
    model = Transformer(TransformerConfig(100, 100, 1, 1, 16, 32, 2))
    random_init(model, 1)
    teacher, seen = FrozenTeacher(model), {True: 0, False: 0}
    for (_, steps), (_, others) in zip(islice(tagged, 12), plain, strict=False):
        assert contents(steps) == contents(others)
        for batch in steps:
            pseudo = np.zeros(len(batch.row_id_B), bool)
            pseudo[batch.targets.source_R[batch.targets.is_pseudo_R]] = True
            for row, is_pseudo in enumerate(pseudo.tolist()):
                own = rows.src[int(batch.row_id_B[row]) - 1000].tolist()
                assert batch.src_BS[row][batch.src_mask_BS[row]].tolist() == ([TAG, *own] if is_pseudo else own)
                clean = batch.clean
                assert clean.src_BS[row][clean.src_mask_BS[row]].tolist() == own
                seen[is_pseudo] += 1
            assert batch.src_BS.numel() + batch.targets.tgt_out_RT.numel() <= 150 or len(pseudo) == 1
            same = torch.equal(teacher(batch).decoder_ND, teacher(clean).decoder_ND)
            assert same and clean.clean is clean
            assert not pseudo.any() or not torch.equal(batch.src_BS, clean.src_BS)
    assert min(seen.values()) > 30
    both = stream(rows, tag_id=TAG, labels=labels, mixing=Mixing(0.4, "weights"))
    with pytest.raises(ValueError, match="encoded once"):
        next(iter(both))
    assert all(batch.clean is batch for _, steps in islice(plain, 3) for batch in steps)


def test_where_the_tag_is_read_and_where_it_makes_no_sense():
    tagged = ["label_tag='<pseudo>'"]
    params = {step.name: step.params.get("label_tag") for step in plan(*tagged)}
    assert {name for name, tag in params.items() if tag} == {"corpus", "student"}
    assert changed(*tagged) == set(default_keys())  # another vocabulary
    alone = ["recipe=word_kd", "objective=word_kd"]
    assert keys(*alone) == keys(*alone, *tagged)  # so that it is refused as a value that nothing reads
    cosine = "_target_:kdlab.objectives.hidden_cosine.HiddenCosine,stack:encoder,projection:true"
    cosine = f"+objective.terms.cos={{weight:1,on:gold,per:src_token,term:{{{cosine}}}}}"
    for more, message in (
        (["mix_by=weights"], "write mix_by=sampling"),
        ([cosine], "term.stack=decoder"),
        (["data.cleaning.max_tokens=256", "student.max_positions=256"], "lower the first"),
        (["label_tag='a b'"], "null or one word"),
        (["label_tag='<unk>'"], "null or one word"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            compose.compose([*tagged, *more])
        assert len(caught.value.problems) == 1
