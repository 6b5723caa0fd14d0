"""Source-only text: rows whose only target is the teacher's, from the file to the epoch."""

import json
from pathlib import Path

import numpy as np
import pytest

from kdlab import compose
from kdlab.checks.sentences import choose
from kdlab.data.batching import StepStream
from kdlab.data.cleaning import Cleaner, CleaningRules, HeldOut, hash_lines
from kdlab.data.corpus import SourceText, Toy
from kdlab.data.identity import identities
from kdlab.data.labels import LabelWriter, PseudoLabels
from kdlab.data.mixing import Mixing
from kdlab.data.prepared import PreparedCorpus
from kdlab.errors import ConfigError, UserError
from kdlab.stages import prepare_corpus

TOY = "kdlab.data.corpus.Toy"


def toy(split, num_lines, seed=1, **more):
    return {"_target_": TOY, "split": split, "num_lines": num_lines, "seed": seed, **more}


def prepare(folder, *train, valid=None, tokenizer=None, inputs=None, **params):
    folder.mkdir()
    sources = {"train": list(train), "valid": valid or toy("valid", 9), "tests": {"one": toy("test", 5)}}
    wanted = {"model": "unigram", "joint": True, "vocab_size": 200, "sample_lines": 1000}
    local = {"sources": sources, "tokenizer_path": tokenizer, "threads": 1}
    summary = prepare_corpus.run(
        folder, inputs or {}, {"cleaning": {}, "tokenizer": wanted, "seed": 1, **params}, local
    )
    return PreparedCorpus.open(folder), summary


def label(folder: Path, corpus: PreparedCorpus, rows) -> PseudoLabels:
    """Each of the rows gets its own source as label."""
    rows = np.asarray(rows)
    with LabelWriter(folder) as writer:
        keys = {"row_id": corpus.train.row_id[rows], "src_hash": corpus.train.src_hash[rows]}
        zeros, ids = np.zeros(len(rows)), corpus.train.src_ids(rows)
        writer.write(**keys, tgt=ids, text=["x"] * len(rows), score=zeros, log_prob=zeros)
    return PseudoLabels.open(folder, corpus.train)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """60 pairs and 40 lines without target, in one corpus of two sources."""
    return prepare(
        tmp_path_factory.mktemp("mixed") / "corpus",
        toy("train", 80, source_only=0.25),
        toy("train", 20, 2, source_only=1.0),
    )


def test_sources_say_which_share_has_no_target(tmp_path):
    (tmp_path / "mono.de").write_text("eins\nzwei\n", encoding="utf-8")
    text = SourceText(str(tmp_path / "mono.de"))
    assert list(text.lines()) == [("eins", None), ("zwei", None)] and text.source_only == 1.0
    assert text.check() == [] and "does not exist" in SourceText("nowhere").check()[0]
    pairs = list(Toy("train", 7, 1).lines())
    assert list(Toy("train", 7, 1, 0.4).lines()) == [*pairs[:4], *((src, None) for src, _ in pairs[4:])]
    assert "source_only" not in Toy("train", 7, 1).identity()  # the key that it had before
    assert Toy("train", 7, 1).identity() != Toy("train", 7, 1, 0.4).identity()


def test_rules_look_at_the_source_alone():
    held_out = HeldOut(["Der alte Mann liest ein Buch."], ["The old man is reading a book."])
    cleaner = Cleaner(CleaningRules(max_tokens=9, max_ratio=2.0), held_out, source_only=True)
    lines = [
        ("a", "b"),
        ("a", None),  # has a target already
        ("c", None),
        ("c", None),
        ("c", "d"),  # a target for what had none: kept
        (" ", None),
        ("Der alte Mann liest ein Buch.", None),
        ("e", ""),  # a pair whose target is empty is no source-only text
    ]
    src, tgt = [line[0] for line in lines], [line[1] for line in lines]
    keep = cleaner.keep_text(np.arange(len(lines)), src, tgt, hash_lines(src))
    assert keep.tolist() == [True, False, True, False, True, False, False, False]
    assert cleaner.dropped == {"empty": 2, "overlap": 1, "duplicate": 2, "too_long": 0, "length_ratio": 0}
    keep = cleaner.keep_text(np.arange(1), ["a"], [None], hash_lines(["a"]))  # of an earlier batch
    assert keep.tolist() == [False]
    lengths = np.array([9, 10, 1], np.int32), np.zeros(3, np.int32)
    assert cleaner.keep_tokens(np.arange(3), ["x"] * 3, [""] * 3, *lengths).tolist() == [True, False, False]
    assert cleaner.dropped["length_ratio"] == 0


def test_rows_without_target_stand_in_the_corpus_and_teach_no_vocabulary(mixed, tmp_path):
    corpus, summary = mixed
    has_gold = [True] * 60 + [False] * 40
    assert corpus.train.has_gold.tolist() == has_gold and summary["train"]["rows_without_target"] == 40
    assert (corpus.train.tgt_len[60:] == 0).all() and corpus.train.tgt_text(np.array([60, 99])) == ["", ""]
    assert (corpus.train.src_len >= 2).all() and corpus.valid.has_gold.all()
    report = json.loads((corpus.folder / "report.json").read_text())["train"]
    assert report["mean_tgt_len"] == pytest.approx(corpus.train.tgt_len[:60].mean(), abs=1e-3)
    gold = next(identities(corpus, None)["gold"])
    assert (
        (gold["tgt_len"][60:] == 0).all() and (gold["tgt_hash"][60:] == 0).all() and (gold["tgt_hash"][:60] != 0).all()
    )
    with pytest.raises(UserError, match="no training line has a target.*data.tokenizer.path"):
        prepare(tmp_path / "alone", toy("train", 20, source_only=1.0))
    alone, _ = prepare(
        tmp_path / "given", toy("train", 20, source_only=1.0), tokenizer=str(corpus.folder / "tokenizer")
    )
    assert not alone.train.has_gold.any()
    with pytest.raises(UserError, match="no training row of the corpus has a target"):
        choose(alone.train, None)
    with pytest.raises(UserError, match="the set 'valid' has 3 lines without a target"):
        prepare(tmp_path / "valid", toy("train", 20), valid=toy("valid", 6, source_only=0.5))


def stream(corpus, labels=None, **more):
    return StepStream(
        corpus.train,
        seed=1,
        tokens_per_step=200,
        microbatch_tokens=150,
        src_pad_id=199,
        tgt_pad_id=199,
        labels=labels,
        **more,
    )


def taught(stream):
    """(row, is pseudo) of every target row of the first epoch."""
    epoch = stream.epoch(0)
    batches = [batch for step in range(len(epoch.steps)) for batch in stream.microbatches(epoch, step)]
    assert all(bool(batch.targets.mask_RT.any(1).all()) for batch in batches)  # no empty target
    return sorted(
        (int(batch.row_id_B[source]), bool(is_pseudo))
        for batch in batches
        for source, is_pseudo in zip(batch.targets.source_R, batch.targets.is_pseudo_R, strict=True)
    )


def test_a_row_without_target_brings_its_pseudo_label_alone(mixed, tmp_path):
    """Rows 0-59 have gold, rows 30-59 and 70-99 a label. So 70-99 have a label alone, and 60-69 nothing."""
    labelled = [*range(30, 60), *range(70, 100)]
    corpus, labels = mixed[0], label(tmp_path, mixed[0], labelled)
    gold, pseudo = [(row, False) for row in range(60)], [(row, True) for row in labelled]
    assert taught(stream(corpus)) == gold
    assert taught(stream(corpus, labels, mixing=Mixing(0.5, "weights"))) == sorted(gold + pseudo)
    assert taught(stream(corpus, labels, mixing=Mixing(0.0))) == gold[:30] + pseudo
    assert taught(stream(corpus, labels, mixing=Mixing(1.0))) == gold + pseudo[30:]
    drawn = taught(stream(corpus, labels, mixing=Mixing(0.5)))
    assert [row for row, _ in drawn] == [*range(60), *range(70, 100)]
    assert {drawn[row][1] for row in range(30, 60)} == {True, False}
    sentences, found = choose(corpus.train, labels)
    assert found is not None and set(sentences.row_id) <= set(range(30, 60)) and (sentences.tgt_len > 0).all()


def test_an_epoch_without_any_target_is_refused(mixed, tmp_path):
    alone, _ = prepare(
        tmp_path / "alone", toy("train", 20, source_only=1.0), tokenizer=str(mixed[0].folder / "tokenizer")
    )
    with pytest.raises(UserError, match="none of the 20 training rows has a target"):
        stream(alone).epoch(0)


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        compose.compose(list(overrides))
    return caught.value.problems


def test_what_nobody_could_learn_from_is_refused_before_any_work():
    (problem,) = problems("+data.valid.source_only=0.5")
    assert problem.startswith("data.valid brings lines without a target")
    (problem,) = problems("+data.tests.toy.source_only=0.5")
    assert problem.startswith("data.tests.toy brings lines without a target")
    alone = "data.train.0.source_only=1"
    (problem,) = problems(alone, "recipe=word_kd", "objective=word_kd")
    assert "recipe=word_kd makes no pseudo-labels" in problem
    found = problems(alone)
    assert [problem.partition("; ")[2] for problem in found] == [
        "choose teacher=folder or teacher=marian, or add such lines",
        "write data.tokenizer.path=<folder of a tokenizer>",
        "write baseline=false, or add such lines",
        "write mix=0",
    ]
    compose.compose(["data.train.0.source_only=0.99"])
    assert "in [0, 1], got 2" in problems("data.train.0.source_only=2")[0]
