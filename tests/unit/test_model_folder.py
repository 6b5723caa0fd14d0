"""A model comes back from its folder bit by bit, and every folder that is no such model is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kdlab.errors import UserError
from kdlab.models.folder import load_model, read_config, save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig


def build(**shape):
    model = Transformer(TransformerConfig(14, 14, 1, 2, 16, 32, 2, max_positions=20, **shape))
    random_init(model, 1)
    return model.eval()


@pytest.mark.parametrize("shape", [dict(tie="all"), dict(tie="none", softmax_bias=True, norm="pre")])
def test_a_model_comes_back_bit_by_bit(tmp_path, shape):
    model = build(**shape)
    save_model(tmp_path / "model", model, {"tokenizer": "abc", "objective": "nll"})
    again = load_model(tmp_path / "model")
    assert again.config == model.config and not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    src, mask, tgt = torch.tensor([[3, 4, 0]]), torch.ones(1, 3).bool(), torch.tensor([[13, 5]])
    assert torch.equal(again(src, mask, tgt).decoder_ND, model(src, mask, tgt).decoder_ND)
    assert again.head().weight_VD.requires_grad
    assert read_config(tmp_path / "model")["card"]["tokenizer"] == "abc"
    assert "- objective: nll\n" in (tmp_path / "model" / "card.md").read_text()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "card.md",
        "config.json",
        "weights.safetensors",
    ]


def test_folders_that_are_no_model_are_refused(tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(UserError, match="does not exist"):
        load_model(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="has no config.json"):
        load_model(folder)
    save_model(folder, build(), {})
    (folder / "config.json").rename(folder / "kept")
    for text, message in (("{", "is not JSON"), ('{"model_type": "marian"}', "format None"), ("[]", "format None")):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_model(folder)


def test_weights_that_are_damaged_foreign_or_of_another_shape_are_refused(tmp_path):
    save_model(tmp_path, build(), {})
    path = tmp_path / "weights.safetensors"
    whole, weights = path.read_bytes(), {name: value.clone() for name, value in load_file(path).items()}
    for content in (whole[: len(whole) // 2], b"", b"PK\x03\x04 a pickle in a zip", whole[:20]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged or no safetensors file"):
            load_model(tmp_path)
    name = "decoder.1.feed_forward.fc1.weight"
    save_file({**weights, name: weights[name][:-1].clone()}, path)
    with pytest.raises(UserError, match=r"fc1.weight of shape \(31, 16\) where config.json tells \(32, 16\)"):
        load_model(tmp_path)
    save_file({"bert.embeddings": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="do not belong together"):
        load_model(tmp_path)
    path.write_bytes(whole)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architecture"]["num_heds"] = config["architecture"].pop("num_heads")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'num_heds'; did you mean 'num_heads'"):
        load_model(tmp_path)
