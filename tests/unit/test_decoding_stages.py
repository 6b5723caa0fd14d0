"""Stages that decode: labels survive a kill byte by byte, scores carry signatures, foreign models are refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from kdlab import files
from kdlab.data.labels import PseudoLabels
from kdlab.data.prepared import PreparedCorpus
from kdlab.errors import UserError
from kdlab.models.folder import save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.stages import decode_sources, evaluate_model, fetch_model, prepare_corpus, pseudo_label

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


def label(folder, made, decode):
    """Hypotheses and the labels chosen from them."""
    params = {"decode": DECODE | decode}
    summary = decode_sources.run(folder / "hypotheses", made, params, LOCAL)
    inputs = {"corpus": made["corpus"], "hypotheses": folder / "hypotheses"}
    return summary, pseudo_label.run(folder / "labels", inputs, {}, LOCAL)


def test_labels_are_tied_to_their_rows(made, tmp_path):
    _, summary = label(tmp_path, made, {})
    rows = PreparedCorpus.open(made["corpus"]).train
    labels = PseudoLabels.open(tmp_path / "labels", rows)
    without = {rule: counts["rows"] for rule, counts in summary["rules"].items() if counts["rows"]}
    assert set(without) <= {"empty", "unfinished"} and "unfinished" in without
    assert summary["rows"] == len(rows) == summary["labels"] + sum(without.values())
    assert 0 < labels.has_label.sum() == summary["labels"] < len(rows)
    index = np.flatnonzero(labels.has_label)
    tokenizer = PreparedCorpus.open(made["corpus"]).tokenizer
    for ids, text in zip(labels.tgt_ids(index), labels.text(index), strict=True):
        assert ids[-1] == 0 and 0 not in ids[:-1] and tokenizer.decode_tgt(ids.tolist()) == text
    assert summary["tokens"] == labels.tgt_len.sum()


def test_a_teacher_with_another_vocabulary_labels_through_text(made, tmp_path):
    other = prepare(tmp_path / "corpus", 200, 60)
    _, summary = label(tmp_path, {"corpus": other.folder, "teacher": made["teacher"]}, {})
    labels = PseudoLabels.open(tmp_path / "labels", other.train)
    index = np.flatnonzero(labels.has_label)
    assert len(index) == summary["labels"] > 0
    for ids, text in zip(labels.tgt_ids(index), labels.text(index), strict=True):
        assert ids.tolist() == other.tokenizer.encode_tgt([text])[0]


def test_the_second_engine_gives_the_same_labels_and_says_how_far_it_agrees(made, tmp_path):
    pytest.importorskip("ctranslate2")
    own, mine = label(tmp_path / "own", made, {})
    other, theirs = label(tmp_path / "other", made, {"engine": "ctranslate2"})
    assert "agreement" not in own and mine["labels"] > 0
    found = other["agreement"]
    assert found["rows"] == found["same"] == decode_sources.SAMPLE_ROWS and found["mean_score_difference"] < 1e-4
    assert mine == theirs
    rows = PreparedCorpus.open(made["corpus"]).train
    labels = [PseudoLabels.open(tmp_path / name / "labels", rows) for name in ("own", "other")]
    index = np.flatnonzero(labels[0].has_label)
    assert labels[0].text(index) == labels[1].text(index)


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
