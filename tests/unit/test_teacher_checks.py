"""What is checked of a teacher in a folder before anything runs."""

from __future__ import annotations

import json
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
