"""Stages that decode: labels survive a kill byte by byte, scores carry signatures, foreign models are refused."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from kdlab import files
from kdlab.data.labels import PseudoLabels
from kdlab.data.prepared import PreparedCorpus
from kdlab.decoding import translate as translating
from kdlab.decoding.beam import Hypothesis
from kdlab.errors import UserError
from kdlab.models.folder import save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.stages import evaluate_model, fetch_model, prepare_corpus, pseudo_label

DECODE = {
    "beam_size": 2,
    "length_penalty": 1.0,
    "max_length_ratio": 0.4,
    "max_length_extra": 2,
    "batch_tokens": 300,
    "precision": "fp32",
}
LOCAL = {"device": "cpu", "threads": 1, "min_labelled": 0.0}


def prepare(folder, vocab_size, num_lines):
    def toy(split, number, seed):
        return {"_target_": "kdlab.data.corpus.Toy", "split": split, "num_lines": number, "seed": seed}

    tests = {"one": toy("test", 12, 1), "two": toy("test", 5, 2)}
    sources = {"train": [toy("train", num_lines, 1)], "valid": toy("valid", 5, 1), "tests": tests}
    params = {
        "cleaning": {},
        "tokenizer": {"model": "unigram", "joint": True, "vocab_size": vocab_size, "sample_lines": 1000},
        "seed": 1,
    }
    prepare_corpus.run(folder, {}, params, {"sources": sources, "tokenizer_path": None, "threads": 1})
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    return PreparedCorpus.open(folder)


def model_folder(folder, tokenizer):
    """A random model of which about one hypothesis in two ends."""
    sizes = (tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    model = Transformer(TransformerConfig(*sizes, 1, 1, 16, 32, 2, softmax_bias=True, max_positions=128))
    random_init(model, 2)
    with torch.no_grad():
        model.softmax_bias[0] = 3.0
    save_model(folder, model, {"tokenizer": tokenizer.fingerprint})
    tokenizer.save(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoding")
    corpus = prepare(folder / "corpus", 300, 120)
    return {"corpus": corpus.folder, "teacher": model_folder(folder / "teacher", corpus.tokenizer)}


def test_labels_are_byte_identical_after_a_kill_and_tied_to_their_rows(made, tmp_path, monkeypatch):
    monkeypatch.setattr(pseudo_label, "CHUNK_ROWS", 16)
    summary = pseudo_label.run(tmp_path / "whole", made, {"decode": DECODE}, LOCAL)
    calls, search = itertools.count(), translating.beam_search

    def killed(*arguments):
        if next(calls) == 25:
            raise KeyboardInterrupt
        return search(*arguments)

    monkeypatch.setattr(translating, "beam_search", killed)
    with pytest.raises(KeyboardInterrupt):
        pseudo_label.run(tmp_path / "killed", made, {"decode": DECODE}, LOCAL)
    chunks = len(list((tmp_path / "killed" / "scratch").glob("chunk_*.json")))
    assert 1 <= chunks < 7
    again = pseudo_label.run(tmp_path / "killed", made, {"decode": DECODE}, LOCAL)
    assert (tmp_path / "killed/labels.arrow").read_bytes() == (tmp_path / "whole/labels.arrow").read_bytes()
    timings = {"tokens_per_s", "tokens_per_cpu_s", "cpu_s"}
    assert {k: v for k, v in again.items() if k not in timings} == {
        k: v for k, v in summary.items() if k not in timings
    }

    rows = PreparedCorpus.open(made["corpus"]).train
    labels = PseudoLabels.open(tmp_path / "whole", rows)
    assert summary["rows"] == len(rows) == summary["labels"] + summary["empty"] + summary["unfinished"]
    assert 0 < labels.has_label.sum() == summary["labels"] < len(rows)
    index = np.flatnonzero(labels.has_label)
    tokenizer = PreparedCorpus.open(made["corpus"]).tokenizer
    for ids, text in zip(labels.tgt_ids(index), labels.text(index), strict=True):
        assert ids[-1] == 0 and 0 not in ids[:-1] and tokenizer.decode_tgt(ids.tolist()) == text
    assert summary["tokens"] == labels.tgt_len.sum()


def test_empty_and_unfinished_hypotheses_give_no_label(made, tmp_path, monkeypatch):
    word = PreparedCorpus.open(made["corpus"]).tokenizer.encode_tgt(["the man"])[0][:-1]
    kinds = itertools.cycle([(word, True), (word, False), ([1], True), ([], True)])

    def fake(model, batch, config):
        return [[Hypothesis(ids, -1.0, -2.0, finished)] for _, (ids, finished) in zip(batch, kinds, strict=False)]

    monkeypatch.setattr(translating, "beam_search", fake)
    monkeypatch.setattr(pseudo_label, "CHUNK_ROWS", 4)
    summary = pseudo_label.run(tmp_path, made, {"decode": DECODE | {"batch_tokens": 10**6}}, LOCAL)
    rows, unknown = summary["rows"], "⁇" in PreparedCorpus.open(made["corpus"]).tokenizer.decode_tgt([1])
    assert unknown  # <unk> has a text of its own: it is no empty hypothesis
    quarter = rows // 4
    assert abs(summary["unfinished"] - quarter) <= 1 and abs(summary["empty"] - quarter) <= 1


def test_a_teacher_with_another_vocabulary_labels_through_text(made, tmp_path):
    other = prepare(tmp_path / "corpus", 200, 60)
    inputs = {"corpus": other.folder, "teacher": made["teacher"]}
    summary = pseudo_label.run(tmp_path / "labels", inputs, {"decode": DECODE}, LOCAL)
    labels = PseudoLabels.open(tmp_path / "labels", other.train)
    index = np.flatnonzero(labels.has_label)
    assert len(index) == summary["labels"] > 0
    for ids, text in zip(labels.tgt_ids(index), labels.text(index), strict=True):
        assert ids.tolist() == other.tokenizer.encode_tgt([text])[0]


def test_the_second_engine_gives_the_same_labels_and_says_how_far_it_agrees(made, tmp_path):
    pytest.importorskip("ctranslate2")
    own = pseudo_label.run(tmp_path / "own", made, {"decode": DECODE}, LOCAL)
    other = pseudo_label.run(tmp_path / "other", made, {"decode": DECODE | {"engine": "ctranslate2"}}, LOCAL)
    assert "agreement" not in own and own["labels"] > 0
    found = other["agreement"]
    assert found["rows"] == found["same"] == pseudo_label.SAMPLE_ROWS and found["mean_score_difference"] < 1e-4
    counts = ("labels", "empty", "unfinished", "too_long", "tokens")
    assert [other[name] for name in counts] == [own[name] for name in counts]
    rows = PreparedCorpus.open(made["corpus"]).train
    mine, theirs = (PseudoLabels.open(tmp_path / name, rows) for name in ("own", "other"))
    index = np.flatnonzero(mine.has_label)
    assert theirs.text(index) == mine.text(index)


def test_models_are_scored_on_every_test_set(made, tmp_path):
    params = {"decode": DECODE, "metrics": ["bleu", "chrf"], "tests": ["one", "two"]}
    inputs = {"corpus": made["corpus"], "model": made["teacher"]}
    summary = evaluate_model.run(tmp_path, inputs, params, LOCAL)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores) == ["one", "two"]
    one = scores["one"]
    assert 0 <= one["bleu"]["score"] < 10 and one["chrf"]["signature"].startswith("nrefs:1|case:mixed")
    assert summary["scores"]["one"]["chrf"] == pytest.approx(one["chrf"]["score"], abs=0.005)
    assert (one["sentences"], one["device"], one["parameters"]) == (12, "cpu", summary["parameters"])
    assert one["sentences_per_s"] > 0 and one["tokens_per_cpu_s"] > one["sentences_per_cpu_s"]
    assert len((tmp_path / "one.hyp.txt").read_text().splitlines()) == 12
    statistics = json.loads((tmp_path / "two.statistics.json").read_text())
    assert [len(statistics[metric]) for metric in ("bleu", "chrf")] == [5, 5]


def test_a_model_folder_is_fetched_whole_or_refused(made, tmp_path):
    folder = tmp_path / "given"
    shutil.copytree(made["teacher"], folder)
    hashes = {str(p.relative_to(folder)): files.sha256_file(p) for p in folder.rglob("*") if p.is_file()}
    fetch_model.run(tmp_path / "out", {}, {"sha256": hashes}, {"path": str(folder)})
    assert all(files.sha256_file(tmp_path / "out" / name) == digest for name, digest in hashes.items())

    other = prepare(tmp_path / "corpus", 200, 60)
    shutil.rmtree(folder / "tokenizer")
    inputs = {"corpus": made["corpus"], "model": folder}
    params = {"decode": DECODE, "metrics": ["bleu"], "tests": ["two"]}
    with pytest.raises(UserError, match="holds no kdlab tokenizer"):
        fetch_model.run(tmp_path / "again", {}, {"sha256": hashes}, {"path": str(folder)})
    other.tokenizer.save(folder / "tokenizer")
    for stage in (fetch_model, evaluate_model):
        with pytest.raises(UserError, match="is not the tokenizer of this model"):
            stage.run(tmp_path / "again", inputs, params | {"sha256": hashes}, LOCAL | {"path": str(folder)})
