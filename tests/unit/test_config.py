"""The configuration from a command line: what composes, and every mistake reported, clearly and with all others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kdlab import compose, label_checks, schema
from kdlab.errors import ConfigError

CONF = schema.config_dir()
HUB = ["teacher.path=Helsinki-NLP/opus-mt-de-en", f"teacher.revision={'0' * 40}"]


def problems(*overrides: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose.compose(list(overrides), config_dir=config_dir)
    return caught.value.problems


def test_the_default_is_the_toy_and_groups_refer_up_to_the_dials() -> None:
    cfg = compose.compose(["temperature=2", "vocab_size=512", "weight_kd=0.5"]).cfg
    assert (cfg.name, cfg.data.name) == ("toy", "toy")
    assert cfg.objective.terms.kd.term.temperature == 2.0
    assert cfg.objective.terms.kd.weight == 0.5
    assert {cfg.student.src_vocab_size, cfg.teacher.model.tgt_vocab_size, cfg.data.tokenizer.vocab_size} == {512}
    assert cfg.baseline_objective.terms.keys() == {"nll"}


def test_layers_of_the_triple_loss_are_a_rule_or_pairs() -> None:
    """Also the deck's choice of the rows that the hybrid's KL runs over: gold, pseudo-labels or both."""
    for layers in ("last", "spread", "[[0,0],[1,1]]"):
        compose.compose([*TRIPLE.split(), "student=toy_2x2", f"objective.terms.cos.term.layers={layers}"])
    for rows in ("gold", "pseudo", "all"):
        assert compose.compose([f"objective.terms.kd.on={rows}"]).cfg.objective.terms.kd.on == rows


def test_presets_of_the_deck_have_its_sizes() -> None:
    expected = {
        "slim_1x1": (1, 1, 256, 1024, 4),
        "slim_3x3": (3, 3, 256, 1024, 4),
        "wide_1x1": (1, 1, 1024, 4096, 16),
        "wide_3x3": (3, 3, 1024, 4096, 16),
        "wide_24x6": (24, 6, 1024, 4096, 16),
    }
    for name, sizes in expected.items():
        node = OmegaConf.load(CONF / "student" / f"{name}.yaml")
        assert (node.num_encoder_layers, node.num_decoder_layers, node.d_model, node.d_ff, node.num_heads) == sizes
        assert (node.tie, node.softmax_bias, node.norm) == ("decoder_softmax", True, "post")
    cfg = compose.compose(["+experiment=hybrid_wmt20"]).cfg
    assert (cfg.teacher.optim.lr, cfg.teacher.optim.warmup_steps, cfg.teacher.max_steps) == (4e-4, 15000, 150000)
    assert (cfg.vocab_size, cfg.mix, cfg.temperature, cfg.max_steps) == (32000, 0.34, 1.0, 150000)
    assert [test.name for test in cfg.data.tests.values()] == ["wmt13", "wmt14/full", "wmt18", "wmt19", "wmt20"]


def test_words_of_the_schema_are_those_of_the_model() -> None:
    from kdlab.models.transformer import CHOICES

    for argument, choices in CHOICES.items():
        assert schema.ARGUMENTS[argument].metadata["want"] == f"one of {', '.join(choices)}"


TRIPLE = "recipe=word_kd objective=triple"
COSINE = "_target_:kdlab.objectives.hidden_cosine.HiddenCosine"
COSINE = f"+objective.terms.cos={{weight:1,on:gold,per:tgt_token,term:{{{COSINE}}}}}"
ENCODER_COSINE = COSINE.replace(",term:{", ",term:{stack:encoder,").replace("tgt_", "src_")
ONE_MISTAKE = [
    ("temprature=1.0", "unknown key 'temprature'; did you mean 'temperature'?"),
    ("+temprature=1", "unknown key 'temprature'; did you mean 'temperature'?"),
    ("temperature=-1", "temperature must be > 0, got -1.0"),
    ("temperature=abc", "temperature must be a number, got 'abc'"),
    ("seed=1.5", "seed must be a whole number, got 1.5"),
    ("baseline=1", "baseline must be true or false, got 1"),
    ("mix=1.2", "mix must be in [0, 1], got 1.2"),
    ("weight_kd=-0.1", "weight_kd must be >= 0, got -0.1"),
    ("max_steps=0", "max_steps must be >= 1, got 0"),
    ("decode.beam_size=0", "decode.beam_size must be >= 1, got 0"),
    ("objective.terms.gold.term.label_smoothing=1", "label_smoothing must be in [0, 1), got 1"),
    ("optim.schedule=steps", "optim.schedule must be one of inverse_sqrt, linear, cosine, constant, got 'steps'"),
    ("optim.betas=[0.9]", "optim.betas must be two numbers in [0, 1), got [0.9]"),
    ("name=a/b", "name must be a name for a folder"),
    ("objective=word_kd teacher=none", "objective has a kd term but teacher=none; choose e.g. teacher=wide_24x6"),
    ("teacher=none objective=seq_kd mix=0", "recipe=hybrid learns from a teacher but teacher=none"),
    ("objective=word_kd", "recipe=hybrid makes pseudo-labels but objective=word_kd has no term on them"),
    ("recipe=word_kd", "objective=hybrid has a term on pseudo-labels (pseudo) but recipe=word_kd makes none"),
    ("recipe=word_kd objective=nll", "recipe=word_kd has a teacher but objective=nll has no kd term"),
    ("recipe=train_only", "objective=hybrid has a kd term but recipe=train_only has no teacher"),
    ("recipe=seq_kd objective=seq_kd", "mix=0.34 draws gold rows but objective=seq_kd has no term on them"),
    ("weight_pseudo=0.5 objective=nll recipe=train_only", "weight_pseudo=0.5 has no effect: no term of objective=nll"),
    ("temperature=2 objective=seq_kd recipe=seq_kd mix=0", "temperature=2 has no effect"),
    (
        "init=layer_skip",
        "its d_model is 64 and the teacher's 96, d_ff is 256 and the teacher's 384; choose init=random",
    ),
    ("init=layer_skip student=toy_2x2 student.norm=pre", "or write student.norm=post"),
    (
        "init=layer_skip student=toy_2x2 recipe=train_only objective=nll",
        "init=layer_skip starts the student from a teac",
    ),
    ("init=layer_skip student=toy_2x2 teacher=none", "objective has a kd term but teacher=none"),
    ("init=layer_skip student=toy_2x2 recipe=train_only objective=nll teacher=none", "but recipe=train_only has none"),
    ("init=layer_skip student=toy_2x2 init.encoder=last", "init.encoder=last is no rule for choosing layers; did you"),
    (
        "init=layer_skip student=toy_2x2 init.encoder=[0]",
        "init.encoder=[0] names 1 layers, but the student has 2 encod",
    ),
    ("init=layer_skip student=toy_2x2 init.decoder=[1,2]", "init.decoder=[1,2] names layer 2, but the teacher's decod"),
    ("init=layer_skip student=toy_2x2 init.decoder=3", "init.decoder must be one of every_n, last_of_block, spread"),
    (
        "init=layer_skip student=toy_2x2 student.num_decoder_layers=3",
        "student has 3; write student.num_decoder_layers=2",
    ),
    ("init=layer_skip student=toy_2x2 init.layers=3", "unknown key 'init.layers': layer_skip takes no 'layers'"),
    ("weight_cos=2", "weight_cos=2 has no effect: no term of objective=hybrid"),
    ("objective.terms.kd.per=position", "objective.terms.kd.per=position counts padding, which this term never sees"),
    ("data.valid=null", "data.valid must be a source of text with a _target_"),
    ("data.tests.toy=null", "data.tests.toy must be a source of text with a _target_, as in conf/data, got None"),
    ("data.train=[{src:a}]", "data.train.0 must be a source of text with a _target_"),
    ("objective.terms.kd.term.temperature=null", "objective.terms.kd.term.temperature must be a number, got None"),
    ("student.d_model=null", "student.d_model must be a whole number, got None"),
    ("strategy=fsdp strategy.replicas=0", "strategy.replicas must be >= 1, got 0"),
    ("cluster.time_min=5 cluster.signal_s=200", "cluster.signal_s=200 but cluster.time_min=5 is 300 s"),
    ("logger=wandb logger.wandb.tags=mytag", "logger.wandb.tags must be a list of words, got 'mytag'"),
    ("data.tgt_lang=ja", "trainer.select=bleu but data.tgt_lang=ja: BLEU counts words between spaces"),
    ("data.tgt_lang=zh trainer.select=loss labels=best_bleu label_decode.n_best=2", "labels.choose=bleu but"),
    ("+objective.terms.kd.mixed=true", "objective.terms.kd.mixed=true with on=all, but the mixture is of gold and"),
    ("objective.terms.kd.per=padding", "per must be one of tgt_token, src_token, sentence, position"),
    ("recipe=word_kd objective=ancestor objective.terms.kd.per=tgt_token", "per=tgt_token but this term sums over pad"),
    ("recipe=word_kd objective=jensen_shannon objective.terms.kd.term.teacher_share=1", "between 0 and 1, got 1"),
    ("recipe=word_kd objective=deck_weights temperature=3", "temperature=3 has no weight in objective.terms.kd.term"),
    ("recipe=word_kd objective=deck_weights objective.terms.kd.term.weight_at=[1,2]", "must be pairs [temperature,"),
    (TRIPLE, "student's width is 64 and the teacher's 96; write objective.terms.cos.term.projection=true"),
    (f"{TRIPLE} student=toy_2x2 objective.terms.cos.term.layers=first", "layers=first is no rule; write last, spread"),
    (
        f"{TRIPLE} student=toy_2x2 objective.terms.cos.term.layers=[[0,2]]",
        "has the pair [0, 2], but the teacher has layers 0 to 1",
    ),
    (f"{TRIPLE} student=toy_2x2 objective.terms.cos.term.layers=[0,2]", "layers=[0, 2] are no pairs of layers"),
    (
        f"recipe=word_kd objective=ancestor student=toy_2x2 {COSINE}",
        "counts padding, where cos knows no hidden",
    ),
    ("teacher=folder", "teacher=folder has no path"),
    ("teacher=folder teacher.path=/nowhere", "teacher.path=/nowhere holds no readable config.json"),
    ("teacher=marian data.tokenizer.path=teacher", "teacher=marian has no path"),
    (f"teacher=marian {HUB[0]} data.tokenizer.path=teacher", "it needs teacher.revision=<commit>, got None"),
    (f"teacher=marian {HUB[0]} teacher.revision=main data.tokenizer.path=teacher", "=<commit>, got main: what a name"),
    (
        "teacher=marian teacher.path=/no/where data.tokenizer.path=teacher",
        "is no folder, and no name on the hub either",
    ),
    (f"teacher=marian {' '.join(HUB)}", "a Marian teacher has a vocabulary of its own, but a kd term"),
    (
        f"teacher=marian {' '.join(HUB)} data.tokenizer.path=teacher vocab_size=4000",
        "vocab_size=4000 has no effect: data",
    ),
    ("data.tokenizer.path=teacher", "but one trained here takes the corpus's"),
    ("recipe=train_only objective=nll data.tokenizer.path=teacher", "but recipe=train_only has no teacher"),
    ("+teacher.revision=main", "teacher.revision=main has no effect"),
    ("data=multi30k data.root=/nowhere", "data.root=/nowhere, which is no folder; write data.root=<folder with"),
    ("data=multi30k", "data=multi30k has no data.root; write data.root=<folder with train.de.xz, train.en.xz"),
    ("data.root=/tmp", "data.root=/tmp has no effect: data=toy reads nothing below it"),
    ("+experiment=nosuch", "+experiment=nosuch does not exist; there are: distilbert_ablation_small,"),
    ("experiment=hybrid_wmt20", "write +experiment=hybrid_wmt20"),
    ("student=slim_1x2", "student=slim_1x2 does not exist; did you mean 'slim_1x1'? There are: eighth_slim_1x1,"),
    ("+student=slim_1x1", "student is there already; write student=slim_1x1"),
    ("+debug=small +experiment=hybrid_wmt20", "+debug=small stands before +experiment=hybrid_wmt20"),
    ("temperature=1,2", "'temperature=1,2' holds several values: to run each of them add -m"),
    ("+temperature=3", "temperature is there already; write it without the plus"),
    ("optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
    ("+optim.lrr=1", "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
    ("lr=0.1", "unknown key 'lr'; did you mean 'optim.lr'?"),
    ("student.dropot=0.1", "unknown key 'student.dropot': TransformerConfig takes no 'dropot'; did you mean"),
    ("+objective.terms.kd.term.tau=2", "WordKD takes no 'tau'; it takes temperature, t_squared"),
    ("~objective.terms.kd.term.temperature", "objective.terms.kd.term lacks 'temperature', which WordKD needs"),
    ("student.norm=middle", "student.norm must be one of post, pre, got 'middle'"),
    ("student._target_=kdlab.models.transformer.Transfomer", "has no 'Transfomer'; did you mean 'Transformer'?"),
    ("student._target_=kdlab.modls.X", "kdlab has no 'modls'; did you mean 'models'?"),
    ("student.d_model=66", "student.d_model=66 does not split evenly over student.num_heads=4"),
    ("student.tie=all data.tokenizer.joint=false teacher.model.tie=none", "student.tie=all shares one matrix"),
    ("until=studnt", "until=studnt is no step of recipe=hybrid; did you mean 'student'?"),
    ("evaluate.tests=[toi]", "evaluate.tests names 'toi', which data.tests does not have; did you mean 'toy'?"),
    ("optim.lr=${temprature}", "optim.lr refers to ${temprature}: there is no key 'temprature'; did you mean"),
    ("seed.x=1", "seed is a value, it has no keys below it"),
    ("data.tests.more={_target_:kdlab.data.corpus.Toy,split:test,num_lines:3,seed:5}", "to add it write +data.tests"),
    ("nonsense", "cannot read 'nonsense'"),
    ("~optim", "'~optim' takes a group away"),
    ("teacher_cache.dtype=bf16", "teacher_cache.dtype=bf16 has no effect: teacher_cache=none does not read it"),
    ("teacher_cache=hidden teacher_cache.top_k=4", "teacher_cache.top_k=4 has no effect: teacher_cache=hidden"),
    ("strategy=ddp strategy.teacher=sharded weight_kd=0", "strategy.teacher=sharded has no effect: no teacher stands"),
    ("strategy=ddp strategy.teacher=sharded teacher_cache=hidden", "strategy.teacher=sharded has no effect"),
    ("teacher_cache=hidden weight_kd=0", "teacher_cache=hidden has no effect: no term of objective=hybrid that has a"),
    ("teacher_cache=hidden recipe=train_only objective=nll", "teacher_cache=hidden has no effect: no term"),
    ("teacher_cache=top_k temperature=3", "terms.kd is at temperature 3, but teacher_cache=top_k knows the mass of"),
    ("teacher_cache=top_k teacher_cache.top_k=0", "teacher_cache.top_k must be >= 1, got 0"),
    ("teacher_cache=top_k teacher_cache.top_k=1200", "top_k=1200 of a vocabulary of 1200, one of which is padding"),
    ("teacher_cache=top_k teacher_cache.temperatures=[1,0]", "must be a list of different numbers > 0, got [1, 0]"),
    ("teacher_cache=top_k teacher_cache.temperatures=null", "needs teacher_cache.top_k and .temperatures"),
    (
        f"teacher_cache=hidden student=toy_2x2 {COSINE} +objective.terms.cos.term.layers=spread",
        "terms.cos compares hidden states of decoder layers spread, but teacher_cache=hidden keeps the decoder's last",
    ),
    (
        f"teacher_cache=hidden student=toy_2x2 {ENCODER_COSINE}",
        "terms.cos compares hidden states of encoder layers last, but teacher_cache=hidden keeps the decoder's last",
    ),
    (
        f"teacher_cache=top_k student=toy_2x2 {COSINE} +objective.terms.cos.term.layers=last",
        "decoder layers last, but teacher_cache=top_k keeps no hidden states; choose teacher_cache=hidden, or take",
    ),
    ("teacher_cache=top_k objective=logits_mse recipe=word_kd", "logits of all tokens, but teacher_cache=top_k keeps"),
    ("trainer.teacher_precision=int8 trainer.device=auto", "int8 but trainer.device=auto: int8 teachers are for CPUs"),
    ("label_decode.precision=int8 trainer.device=cuda", "label_decode.precision=int8 but trainer.device=cuda"),
    ("label_decode.n_best=6", "label_decode.n_best=6 but label_decode.beam_size=5: a search finishes beam_size"),
    (
        "label_decode=sampling label_decode.sampling.temperature=0",
        "label_decode.sampling.temperature must be > 0, got 0",
    ),
    ("label_decode=sampling label_decode.sampling.top_p=1.1", "label_decode.sampling.top_p must be > 0 and <= 1, got"),
    ("label_decode=sampling label_decode.sampling.top_k=0", "label_decode.sampling.top_k must be >= 1, got 0"),
    ("label_decode=sampling label_decode.engine=ctranslate2", "no run could be repeated; write label_decode.engine="),
    (
        "label_decode.precision=fp16",
        "label_decode.precision=fp16 but label_decode.engine=pytorch, which does not know it",
    ),
    ("label_decode.ensemble=[nowhere]", "label_decode.ensemble names nowhere, which holds no readable tokenizer/"),
    ("label_decode.ensemble=nowhere", "label_decode.ensemble must be a list, got 'nowhere'"),
    ("recipe=word_kd objective=ancestor objective.terms.kd.weight=2", "terms.kd.term.weight=1 but"),
    (f"{TRIPLE} student=toy_2x2 objective.terms.cos.term.stack=encoder", "sums over encoder positions; write"),
    ("until=cache_teacher", "until=cache_teacher is no step of recipe=hybrid"),
    ("hydra/launcher=nosuch", "hydra/launcher=nosuch does not exist; there are: basic"),
]


@pytest.mark.parametrize(("line", "expected"), ONE_MISTAKE, ids=[line for line, _ in ONE_MISTAKE])
def test_one_mistake_gives_one_clear_message(line: str, expected: str) -> None:
    (problem,) = problems(*line.split(" "))
    assert expected in problem
    assert "\n" not in problem


def test_a_missing_engine_is_named_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (problem,) = problems("label_decode.engine=ctranslate2")
    assert "pip install 'kdlab[ct2]'" in problem
    (problem,) = problems("label_decode.engine=marian")
    assert "pytorch, ctranslate2" in problem


def test_an_ensemble_has_one_vocabulary_and_an_engine_that_can(tmp_path: Path) -> None:
    folders = []
    for name, fingerprint in (("one", "aa"), ("two", "aa"), ("other", "bb")):
        folders.append(tmp_path / name)
        (folders[-1] / "tokenizer").mkdir(parents=True)
        (folders[-1] / "tokenizer/tokenizer.json").write_text(json.dumps({"fingerprint": fingerprint}))
    assert label_checks.members(compose.compose([f"label_decode.ensemble=[{folders[0]},{folders[1]}]"]).cfg) == [
        "teacher_2",
        "teacher_3",
    ]
    (problem,) = problems(f"label_decode.ensemble=[{folders[0]},{folders[1]},{folders[2]}]")
    assert f"{folders[2]}, whose vocabulary is not that of {folders[0]}" in problem and "one tokenizer" in problem
    wrong = ["label_decode.engine=ctranslate2", "label_decode=sampling", f"label_decode.ensemble=[{folders[0]}]"]
    found = problems(*wrong, "label_decode.n_best=9")
    assert len(found) == 2 and "could be repeated" in found[0] and "asks one model, but label_decode.ens" in found[1]


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        compose.compose(["temprature=1.0", "temperature=-1.0", "objective=word_kd", "teacher=none"])
    assert str(caught.value) == (
        "3 problems in the configuration:\n"
        "  - unknown key 'temprature'; did you mean 'temperature'?\n"
        "  - temperature must be > 0, got -1.0\n"
        "  - objective has a kd term but teacher=none; choose e.g. teacher=wide_24x6"
    )
    assert len(problems("student=nosuch", "mix=2", "data=multi30k", "data.root=/nowhere", "seed=1,2")) == 4
    assert len(problems("+experiment=nosuch", "objective=word_kd", "teacher=none", "recipe=hybrid")) == 2


def test_mistakes_in_the_users_own_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /student: slim_1x1\ntempereture: 4\noptim: {lrr: 1}\nseed: x\n",
        encoding="utf-8",
    )
    (tmp_path / "experiment" / "bad.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /student: slim_9x9\n", encoding="utf-8"
    )
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text(
        "terms: {nll: {weight: 1, on: gold, per: tgt_token, term: {_target_: kdlab.objectives.nll.Nll}}}",
        encoding="utf-8",
    )
    assert problems("+experiment=mine", config_dir=tmp_path) == [
        "unknown key 'tempereture'; did you mean 'temperature'?",
        "seed must be a whole number, got 'x'",
        "unknown key 'optim.lrr'; did you mean 'optim.lr'?",
    ]
    (bad,) = problems("+experiment=bad", config_dir=tmp_path)
    assert "student/slim_9x9" in bad
    assert "slim_3x3" in bad
    found = problems("objective=mine", "recipe=train_only", config_dir=tmp_path)
    assert any("write the key in quotes" in problem for problem in found)
    (tmp_path / "objective" / "mine.yaml").write_text("terms: [", encoding="utf-8")
    assert len(problems("objective=mine", "recipe=train_only", config_dir=tmp_path)) == 1
    assert problems("seed=2", config_dir=tmp_path / "absent") == [
        f"--config-dir {tmp_path / 'absent'} is no folder; name the one with your own YAML"
    ]


def test_a_users_experiment_is_used_and_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - override /student: small_1x1\nmix: 0.5\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    composed = compose.compose(["+experiment=mine", "mix=0.6"], config_dir=tmp_path)
    assert (composed.cfg.mix, composed.cfg.student.d_model) == (0.6, 128)
    assert composed.point == "experiment=mine,mix=0.6"


@pytest.mark.parametrize(
    ("line", "point"),
    [
        ("", "default"),
        ("seed=1 temperature=1 dry_run=true until=corpus trainer.threads=2 paths.store=/s logger=wandb", "default"),
        ("temperature=1 seed=2", "seed=2"),
        ("temperature=2 seed=2", "seed=2,temperature=2.0"),
        ("+experiment=hybrid_wmt20 student=slim_3x3", "default"),
        ("+experiment=hybrid_wmt20 student=wide_1x1 +debug=small", "debug=small,student=wide_1x1"),
        ("baseline=false", "baseline=false"),
    ],
)
def test_point_names_say_what_differs(line: str, point: str) -> None:
    assert compose.compose(line.split()).point == point


def test_point_names_are_safe_and_kept_apart() -> None:
    names = {compose.compose([f"data.tests.toy.split={split}"]).point for split in ("a/b", "a:b", "a b", "x" * 300)}
    assert len(names) == 4
    assert all(re.fullmatch(r"[\w.=,+@-]{1,130}", name) for name in names)


def test_a_sweep_expands_to_its_points() -> None:
    points = compose.expand(["seed=1,2", "temperature=1", "student=toy_1x1,toy_2x2", "hydra.sweep.dir=x"])
    assert points == [
        [f"seed={seed}", "temperature=1", f"student={student}"] for seed in (1, 2) for student in ("toy_1x1", "toy_2x2")
    ]


def test_the_name_of_a_test_set_may_have_a_dot(tmp_path):
    source = "{_target_: kdlab.data.corpus.Toy, split: test, num_lines: 10, seed: 2}"
    (tmp_path / "data").mkdir()
    toy = (schema.config_dir() / "data" / "toy.yaml").read_text()
    (tmp_path / "data" / "dotted.yaml").write_text(toy.replace("tests:", f"tests:\n  v1.5: {source}", 1))
    found = compose.compose(["data=dotted"], config_dir=tmp_path)
    assert list(found.cfg.data.tests) == ["v1.5", "toy"]
