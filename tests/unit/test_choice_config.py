"""Settings of labels that cannot work, said before anything runs."""

import json

import pytest

from kdlab import compose
from kdlab.errors import ConfigError

NBEST = ["label_decode.n_best=5"]


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        compose.compose(list(overrides))
    return caught.value.problems


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("labels=best_bleu", "labels.choose=bleu but label_decode.n_best=1, so there is one hypothesis and no choice"),
        ("labels.choose=best", "labels.choose must be one of first, bleu, chrf, all, got 'best'"),
        ("labels.max_length_ratio=0.5", "labels.max_length_ratio must be >= 1, got 0.5"),
        ("labels.max_repetition=0", "labels.max_repetition must be >= 1, got 0"),
        ("labels.reverse.drop_share=0", "labels.reverse.drop_share must be between 0 and 1, got 0"),
        ("labels.reverse.path=nowhere", "labels.reverse.path=nowhere holds no config.json of a kdlab model"),
        (
            "labels=all label_decode.n_best=5 teacher_cache=hidden",
            "labels.choose=all but teacher_cache=hidden: a cache keeps what the teacher says of one label a row",
        ),
        ("until=reverse", "until=reverse is no step of recipe=hybrid"),
    ],
)
def test_one_mistake_gives_one_clear_message(line, expected):
    (problem,) = problems(*line.split())
    assert expected in problem


def test_what_goes_together_is_let_through(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": {}}))
    compose.compose(["labels=all", *NBEST, "labels.max_repetition=4", "labels.min_score=-3"])
    compose.compose([f"labels.reverse.path={tmp_path}", "until=reverse"])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}))
    (problem,) = problems(f"labels.reverse.path={tmp_path}")
    assert "no config.json of a kdlab model" in problem
