"""Every YAML of conf/: each option composes and binds, each leaf says what it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kdlab import compose, schema

CONF = schema.config_dir()
MULTI30K = [f"{part}.{lang}.xz" for part in ("train", "valid", "test2016", "test2017") for lang in ("de", "en")]
HUB = ["teacher.path=Helsinki-NLP/opus-mt-de-en", f"teacher.revision={'0' * 40}"]
ALONE = ["recipe=train_only", "objective=nll"]
# what an option needs beside it to make sense
SMALL = ["data.root={corpus}", "teacher.path={model}"]
STUDY = ("small", *(f"{claim}_small" for claim in ("hinton_1x1", "hinton_3x3", "distilbert_ablation")))
STUDY += tuple(f"{claim}_small" for claim in ("seq_interpolation", "hybrid", "low_data", "kd_weight", "vocabulary"))
STUDY += ("greedy_labels_small",)
COMPANIONS = {
    "recipe=train_only": ["objective=nll"],
    "recipe=word_kd": ["objective=word_kd"],
    "recipe=noisy_student": ["objective=seq_kd", "mix=0"],
    "recipe=seq_kd": ["objective=seq_kd", "mix=0"],
    "objective=nll": ["recipe=train_only"],
    **{
        f"objective={path.stem}": ["recipe=word_kd"]
        for path in (CONF / "objective").glob("*.yaml")
        if path.stem not in ("nll", "tempered_nll", "seq_kd", "hybrid")
    },
    "objective=tempered_nll": ["recipe=train_only"],
    "objective=triple": ["recipe=word_kd", "objective.terms.cos.term.projection=true"],
    "objective=seq_kd": ["recipe=seq_kd", "mix=0"],
    "teacher=none": ALONE,
    "init=layer_skip": ["student=toy_2x2"],
    "teacher=folder": ["teacher.path={model}"],
    "teacher=marian": [*HUB, "data.tokenizer.path=teacher"],
    "teacher=huggingface": [*HUB, "recipe=seq_kd", "objective=seq_kd", "mix=0"],
    "data=multi30k": ["data.root={corpus}"],
    "data=wmt21_deen": ["student=slim_1x1", "teacher=slim_3x3"],
    "data=files": [
        f"data.{node}.{side}={{corpus}}/{part}.{lang}.xz"
        for node, part in (("train.0", "train"), ("valid", "valid"), ("tests.test", "test2016"))
        for side, lang in (("src", "de"), ("tgt", "en"))
    ],
    "data=files_semi": ["data.train.1.src={corpus}/train.de.xz"],
    **{f"labels={name}": ["label_decode.n_best=5"] for name in ("best_bleu", "best_chrf", "all")},
    "+experiment=hybrid_multi30k": ["data.root={corpus}"],
    **dict.fromkeys(("+experiment=label_modes_small", "+experiment=low_data_multi30k"), SMALL),
    **{f"+experiment={name}": ["data.root={corpus}"] for name in STUDY},
}
COMPANIONS["data=files_semi"] += COMPANIONS["data=files"]
YAML = sorted(path for path in CONF.rglob("*.yaml"))
OPTIONS = [
    f"{'+' if path.parent.name in compose.NEEDS_PLUS else ''}{path.parent.relative_to(CONF)}={path.stem}"
    for path in YAML
    if path.parent != CONF and path.parent.name not in ("sweep", "launcher")  # no groups of a run: tests of sweeps
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    corpus, model = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("model")
    for name in MULTI30K:
        (corpus / name).write_bytes(b"not empty")
    (model / "config.json").write_text(json.dumps({"tgt_vocab_size": 1000}), encoding="utf-8")
    return {"corpus": str(corpus), "model": str(model)}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_binds(option: str, places: dict[str, str]) -> None:
    composed = compose.compose([option, *(text.format(**places) for text in COMPANIONS.get(option, []))])
    group, _, choice = option.partition("=")
    assert composed.choices[group.lstrip("+")] == choice
    assert schema.validate(composed.cfg) == []
    assert OmegaConf.missing_keys(composed.cfg) == set()


@pytest.mark.parametrize("path", YAML, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_leaf_says_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# "), "the first line says when to choose it"
    if path.parent != CONF:
        assert len(lines) <= 33
    inside_defaults = False
    for line in lines:
        inside_defaults = line.startswith("defaults:") or (inside_defaults and line.startswith("  - "))
        value = re.fullmatch(r"\s*(- )?(\"?[\w.]+\"?: .+|- \{.+|\w+: \{.+)", line)
        if value and not inside_defaults:
            assert re.search(r"\s# \S", line), f"no comment: {line}"
