"""Pre-training: the student alone first, from which it and its baseline start with a fresh optimizer."""

from dataclasses import replace

import pytest
import torch

from kdlab import compose
from kdlab.errors import ConfigError, UserError
from kdlab.models.folder import save_model
from kdlab.models.init import random_init
from kdlab.models.pretrained import pretrained
from kdlab.models.transformer import Transformer, TransformerConfig
from tests.unit.test_recipes import SKIP, default_keys, keys, plan

CONFIG = TransformerConfig(40, 40, 1, 1, 16, 32, 2, dropout=0.1, softmax_bias=True)
ALONE = ["recipe=train_only", "objective=nll"]


def test_all_weights_are_those_of_the_folder(tmp_path):
    first, second = Transformer(CONFIG), Transformer(CONFIG)
    random_init(first, 1)
    with torch.no_grad():
        first.softmax_bias.normal_()
    save_model(tmp_path, first, {})
    random_init(second, 2)
    pretrained(second, 2, tmp_path)
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    with torch.no_grad():
        second.softmax_bias.add_(1.0)
    again = Transformer(CONFIG)
    pretrained(again, 3, tmp_path)
    assert torch.equal(again.softmax_bias, first.softmax_bias)  # training one model changes no other
    other = Transformer(replace(CONFIG, d_ff=64, num_decoder_layers=2))
    with pytest.raises(
        UserError, match="has num_decoder_layers 1 and not 2, d_ff 32 and not 64, so its weights do not"
    ):
        pretrained(other, 1, tmp_path)


def test_student_and_baseline_start_from_what_the_student_alone_has_learnt():
    plans = plan("pretrain_steps=50", *SKIP), plan(*SKIP)
    steps, usual = ({step.name: step for step in steps} for steps in plans)
    assert set(steps) - set(usual) == {"pretrain"}
    first = steps["pretrain"]
    assert first.inputs == {"corpus": "corpus", "teacher": "teacher"} and first.params["max_steps"] == 50
    assert first.params == {**usual["baseline"].params, "max_steps": 50}  # the start that was chosen is the first one's
    for name in ("student", "baseline"):
        assert steps[name].inputs["start"] == "pretrain"
        assert steps[name].params["init"] == {"_target_": "kdlab.models.pretrained.pretrained"}
        assert {**steps[name].params, "init": None} == {**usual[name].params, "init": None}
    assert "teacher" not in steps["baseline"].inputs and "start" not in steps["teacher"].inputs


def test_keys_meet_where_trainings_are_the_same():
    more = keys("pretrain_steps=50")
    assert {name for name, key in default_keys().items() if more[name] != key} == {
        *("student", "evaluate", "baseline", "evaluate_baseline")
    }
    assert more["pretrain"] == keys(*ALONE, "max_steps=50")["student"]
    assert more["baseline"] == keys(*ALONE, "pretrain_steps=50")["student"]
    low = {step.name: step.params for step in plan("pretrain_steps=50", "gold_share=0.1", "source_noise=default")}
    assert low["pretrain"]["gold_share"] == 0.1 and low["pretrain"]["source_noise"] == low["student"]["source_noise"]
    names = [step.name for step in plan("recipe=noisy_student", "pretrain_steps=50")]
    assert names.count("pretrain") == 1 and names.index("pretrain") < names.index("student")


def test_the_step_can_be_asked_for_where_it_is():
    assert compose.compose(["pretrain_steps=5", "until=pretrain"]).cfg.until == "pretrain"
    with pytest.raises(ConfigError, match="until=pretrain is no step of recipe=hybrid"):
        compose.compose(["until=pretrain"])
