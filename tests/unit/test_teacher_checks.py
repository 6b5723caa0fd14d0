"""What is checked of a teacher in a folder before anything runs."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from kdlab import compose
from kdlab.errors import ConfigError


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose.compose(list(overrides))
    return caught.value.problems


def test_the_teachers_vocabulary_is_compared_where_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": {"tgt_vocab_size": 4000}}), encoding="utf-8")
    (problem,) = problems("teacher=folder", f"teacher.path={tmp_path}")
    assert "a vocabulary of 4000, the student 1200" in problem and "recipe=seq_kd" in problem


def test_layers_are_held_against_the_teacher_in_a_folder(tmp_path: Path) -> None:
    """Without its architecture there is nothing to hold them against, and load_model speaks of that later."""
    sizes = {"d_model": 96, "d_ff": 384, "num_heads": 8, "num_encoder_layers": 1, "num_decoder_layers": 2}
    overrides = ["teacher=folder", f"teacher.path={tmp_path}", "init=layer_skip", "student=toy_2x2"]
    for architecture, expected in (
        ({}, []),
        ({"tgt_vocab_size": 1200}, []),
        (
            {"src_vocab_size": 1200, "tgt_vocab_size": 1200, **sizes},
            ["num_heads is 4 and the teacher's 8", "1 encoder"],
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}), encoding="utf-8")
        found = problems(*overrides, "seed=-1")[1:]  # one more mistake, so that there always is one
        assert len(found) == len(expected)
        assert all(text in problem for text, problem in zip(expected, found, strict=True))


def test_a_teachers_vocabulary_is_that_of_its_tokenizer_and_may_be_adopted(tmp_path: Path) -> None:
    """The model's tables may have more rows; then neither a kd term nor the start from its layers is in the way."""
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 2, "d_model": 96, "d_ff": 384, "num_heads": 4}
    rows = {"src_vocab_size": 1280, "tgt_vocab_size": 1280}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": {**rows, **sizes}}), encoding="utf-8")
    folder = ["teacher=folder", f"teacher.path={tmp_path}"]
    assert len(problems(*folder)) == 1
    compose.compose([*folder, "init=layer_skip", "student=toy_2x2", "data.tokenizer.path=teacher"])
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"tgt_vocab_size": 1200}', encoding="utf-8")
    compose.compose(folder)


def test_models_of_hugging_face_and_of_kdlab_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}), encoding="utf-8")
    (problem,) = problems("teacher=folder", f"teacher.path={tmp_path}")
    assert problem.endswith("choose teacher=marian")
    marian = ["teacher=marian", f"teacher.path={tmp_path}", "data.tokenizer.path=teacher"]
    compose.compose(marian)
    (problem,) = problems(*marian, "teacher.revision=main")
    assert "teacher.revision=main has no effect" in problem
    (tmp_path / "config.json").write_text(json.dumps({"architecture": {}}), encoding="utf-8")
    (problem,) = problems(*marian)
    assert "model_type None" in problem and problem.endswith("choose teacher=folder for a kdlab model")


@pytest.fixture
def seq2seq(tmp_path: Path) -> Path:
    """What can be seen of a Hugging Face model before anything is opened."""
    for name, text in (("config.json", '{"model_type": "t5"}'), ("model.safetensors", ""), ("spiece.model", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


SEQ_KD = ["recipe=seq_kd", "objective=seq_kd", "mix=0", "teacher=huggingface"]
HUB = ["teacher.path=facebook/nllb-200-distilled-600M", f"teacher.revision={'0' * 40}"]


@pytest.mark.parametrize(
    "settings, expected",
    [
        (["teacher.src_code=deu_Latn"], ["teacher.tgt_code=null, but a model of many languages is told both"]),
        (["teacher.revision=main"], ["it needs teacher.revision=<commit>, got main"]),
        (
            ["recipe=hybrid", "objective=hybrid", "mix=0.3"],
            ["kd term \\(kd\\).*teacher=marian data.tokenizer.path=teacher$"],
        ),
        (["init=layer_skip", "student=toy_2x2"], ["those of teacher=huggingface are not ours; choose init=random"]),
        (["data.tokenizer.path=teacher"], ["no vocabulary of ours; leave it out"]),
        (["teacher_cache=hidden"], ["teacher_cache=hidden has no effect"]),
        (["label_decode.engine=ctranslate2"], ["only models of ours are exported"]),
        (["label_decode.precision=int8", "decode.precision=int8"], ["^decode.*=bf16$", "^label_decode.*=bf16$"]),
        (["teacher=marian", "+teacher.prefix=x"], ["prefix=x has no effect: only teacher=huggingface reads it"]),
    ],
)
def test_a_hugging_face_teacher_makes_labels_alone(settings: list[str], expected: list[str]) -> None:
    found = problems(*SEQ_KD, *HUB, *settings)
    assert len(found) == len(expected)
    assert all(re.search(text, problem) for text, problem in zip(expected, found, strict=True)), found


def test_a_hugging_face_folder_is_looked_at_before_any_work(seq2seq: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = [*SEQ_KD, f"teacher.path={seq2seq}"]
    compose.compose(here)
    compose.compose([*SEQ_KD, *HUB, "teacher.src_code=deu_Latn", "teacher.tgt_code=eng_Latn"])
    (problem,) = problems(*here, "teacher=folder")
    assert problem.endswith("choose teacher=huggingface, which makes labels")
    (problem,) = problems(*here, "label_decode.ensemble=[x]")[:1]
    assert "the mean with teacher=huggingface is of other tokens" in problem
    for name, message in (
        ("spiece.model", "has no file of a tokenizer"),
        ("model.safetensors", "no weights in safetensors.*run code.*save_pretrained"),
        ("config.json", "no config.json with a model_type"),
    ):
        (seq2seq / name).rename(seq2seq / "pytorch_model.bin")
        (problem,) = problems(*here)
        assert re.search(message, problem)
        (seq2seq / "pytorch_model.bin").rename(seq2seq / name)
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else known(name, *a)
    )
    (problem,) = problems(*here)
    assert "pip install 'kdlab[hf]'" in problem


OWN_TERMS = """
from dataclasses import dataclass
from typing import Any, ClassVar

@dataclass(frozen=True)
class {name}:
    {fields}
    needs_teacher: ClassVar[bool] = True
"""


@pytest.mark.parametrize(
    ("name", "fields", "told"),
    [
        ("Spread", 'stack: str = "decoder"; layers: Any = "spread"; projection: bool = False', "decoder layers spread"),
        ("Source", 'stack: str = "encoder"; layers: Any = "last"; projection: bool = False', "encoder layers last"),
        ("NoLayers", 'stack: str = "decoder"; projection: bool = False', "decoder layers None"),
        ("Fixed", 'stack: ClassVar[str] = "decoder"; layers: Any = "spread"', "decoder layers spread"),
        ("Kept", 'stack: str = "decoder"; layers: Any = "last"; projection: bool = False', None),
    ],
)
def test_a_term_of_ones_own_is_taken_by_its_own_defaults(tmp_path, monkeypatch, name, fields, told):
    """Where YAML leaves the layers out, the class decides whether a cache has them."""
    (tmp_path / f"own_{name.lower()}.py").write_text(OWN_TERMS.format(name=name, fields=fields), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    term = f"{{weight:1,on:gold,per:tgt_token,term:{{_target_:own_{name.lower()}.{name}}}}}"
    line = ["teacher_cache=hidden", "student=toy_2x2", f"+objective.terms.own={term}"]
    if told is None:
        compose.compose(line)
    else:
        assert any(f"terms.own compares hidden states of {told}, but" in problem for problem in problems(*line))
