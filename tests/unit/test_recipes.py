"""Plans: which steps, what feeds what, and which dial reaches which key."""

import shutil
from functools import lru_cache

import pytest
from hydra.utils import get_method

from kdlab.artifacts.stage import canonical_json, plan_keys
from kdlab.compose import compose


def plan(*overrides):
    cfg = compose(list(overrides)).cfg
    return get_method(cfg.recipe._target_)(cfg)


def keys(*overrides):
    return plan_keys(plan(*overrides))


@lru_cache
def default_keys():
    return keys()


def changed(*overrides):
    """The steps whose key differs from the default's."""
    before, after = default_keys(), keys(*overrides)
    assert set(before) == set(after)
    return {name for name in before if before[name] != after[name]}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the store, with its remembered hashes, is below the current folder


ALONE = ["baseline", "evaluate_baseline"]
SKIP = ["student=toy_2x2", "init=layer_skip"]


@pytest.mark.parametrize(
    "overrides, names, student_inputs",
    [
        (["recipe=train_only", "objective=nll"], ["corpus", "student", "evaluate"], {"corpus"}),
        (
            ["recipe=word_kd", "objective=word_kd"],
            ["corpus", "teacher", "evaluate_teacher", "student", "evaluate", *ALONE],
            {"corpus", "teacher"},
        ),
        (
            ["recipe=seq_kd", "objective=seq_kd", "mix=0", "baseline=false"],
            ["corpus", "teacher", "evaluate_teacher", "hypotheses", "pseudo_label", "student", "evaluate"],
            {"corpus", "labels"},
        ),
        (
            [],
            ["corpus", "teacher", "evaluate_teacher", "hypotheses", "pseudo_label", "student", "evaluate", *ALONE],
            {"corpus", "teacher", "labels"},
        ),
        (
            ["weight_kd=0"],
            ["corpus", "teacher", "evaluate_teacher", "hypotheses", "pseudo_label", "student", "evaluate", *ALONE],
            {"corpus", "labels"},
        ),
        (
            ["recipe=seq_kd", "objective=seq_kd", "mix=0", "baseline=false", *SKIP],
            ["corpus", "teacher", "evaluate_teacher", "hypotheses", "pseudo_label", "student", "evaluate"],
            {"corpus", "teacher", "labels"},
        ),
    ],
)
def test_steps_and_what_the_student_is_given(overrides, names, student_inputs):
    steps = plan(*overrides)
    assert [step.name for step in steps] == names
    assert set(next(step for step in steps if step.name == "student").inputs) == student_inputs
    for step in steps:
        canonical_json([step.params, step.local])  # plain values alone


@pytest.mark.parametrize(
    "dials",
    [
        [],
        ["gold_share=0.05", "subset_seed=4"],
        ["seed=3", "max_steps=77", "optim.lr=0.001", "trainer.tokens_per_step=512"],
    ],
)
def test_the_baseline_is_the_student_of_train_only(dials):
    hybrid, alone = keys(*dials), keys("recipe=train_only", "objective=nll", *dials)
    assert hybrid["baseline"] == alone["student"]
    assert hybrid["evaluate_baseline"] == alone["evaluate"]
    assert hybrid["corpus"] == alone["corpus"]
    word_kd = keys("recipe=word_kd", "objective=word_kd", *dials)
    assert word_kd["baseline"] == alone["student"] and word_kd["teacher"] == hybrid["teacher"]


def test_t23_a_start_from_the_teacher_is_the_students_and_the_baselines_and_not_the_teachers():
    """The key that an ordinary run had before there was another start than `random_init` must stay."""
    plans = plan("student=toy_2x2"), plan(*SKIP)
    ordinary, skipping = ({step.name: step for step in steps} for steps in plans)
    assert ordinary["baseline"].inputs == {"corpus": "corpus"}
    assert skipping["baseline"].inputs == {"corpus": "corpus", "teacher": "teacher"}
    for name in ("student", "baseline"):
        assert skipping[name].params["init"]["_target_"] == "kdlab.models.layer_skip.layer_skip"
        assert {**skipping[name].params, "init": None} == {**ordinary[name].params, "init": None}
    assert skipping["teacher"].params["init"] == {"_target_": "kdlab.models.init.random_init"}
    before, after = map(plan_keys, plans)
    assert {name for name in before if before[name] != after[name]} == {*STUDENT, *ALONE}
    for other in ("teacher.seed=2", "init.decoder=last_n"):
        assert keys(*SKIP, other)["baseline"] != after["baseline"]


STUDENT = {"student", "evaluate"}
LABELS = {"hypotheses", "pseudo_label", *STUDENT}
TEACHER = {"teacher", "evaluate_teacher", *LABELS}
EVALUATIONS = {"evaluate", "evaluate_teacher", "evaluate_baseline"}


@pytest.mark.parametrize(
    "override, steps",
    [
        ("temperature=2.0", STUDENT),
        ("mix=0.5", STUDENT),
        ("gold_share=0.05", STUDENT | set(ALONE)),
        ("pseudo_share=0.05", STUDENT),
        ("mix_by=weights", STUDENT),
        ("weight_nll=0.5", STUDENT),
        ("weight_kd=0", STUDENT),
        ("seed=2", STUDENT | set(ALONE)),
        ("max_steps=10", STUDENT | set(ALONE)),
        ("optim.lr=0.01", STUDENT | set(ALONE)),
        ("student=toy_2x2", STUDENT | set(ALONE)),
        ("teacher.seed=2", TEACHER),
        ("teacher.max_steps=10", TEACHER),
        ("label_decode.beam_size=2", LABELS),
        ("label_decode.engine=ctranslate2", LABELS),
        ("label_decode.n_best=2", LABELS),
        ("label_decode=greedy", LABELS),
        ("labels.max_repetition=3", LABELS - {"hypotheses"}),
        ("labels.min_score=-2", LABELS - {"hypotheses"}),
        ("label_decode=sampling", LABELS),
        ("decode.beam_size=2", EVALUATIONS),
        ("evaluate.metrics=[bleu]", EVALUATIONS),
        ("trainer.precision=bf16", {*TEACHER, *STUDENT, *ALONE}),
        ("data.cleaning.max_tokens=50", {"corpus", *TEACHER, *STUDENT, *ALONE}),
    ],
)
def test_a_dial_reaches_the_steps_that_depend_on_it_and_no_other(override, steps):
    assert changed(override) == steps


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "trainer.device=auto",
        "trainer.threads=2",
        "trainer.microbatch_tokens=100",
        "trainer.chunk_size=10",
        "trainer.checkpoint_every=7",
        "trainer.log_every=7",
        "logger=wandb",
        "paths.store=elsewhere",
        "evaluate.metrics=[chrf,bleu]",
        "evaluate.tests=[toy]",
        "subset_seed=2",  # of no subset
    ],
)
def test_what_changes_no_result_changes_no_key(override):
    assert changed(override) == set()


def test_one_cache_serves_all_temperatures_objectives_and_students():
    steps = plan("teacher_cache=hidden")
    names = [step.name for step in steps]
    before = [
        "corpus",
        "teacher",
        "evaluate_teacher",
        "hypotheses",
        "pseudo_label",
        "cache_teacher",
        "student",
        "evaluate",
    ]
    assert names == [*before, *ALONE]
    inputs = {step.name: set(step.inputs) for step in steps}
    assert inputs["cache_teacher"] == {"corpus", "teacher", "labels"} and inputs["baseline"] == {"corpus"}
    assert inputs["student"] == {"corpus", "teacher", "labels", "cache"}
    cached, online = keys("teacher_cache=hidden"), default_keys()
    assert {name for name in online if online[name] != cached[name]} == STUDENT
    same = ["temperature=2", "weight_kd=0.5", "mix=0.7", "mix_by=weights", "seed=9", "student=toy_2x2", "optim.lr=0.01"]
    assert keys("teacher_cache=hidden", *same)["cache_teacher"] == cached["cache_teacher"]
    local = ["trainer.microbatch_tokens=100", "trainer.chunk_size=10", "trainer.threads=2"]
    assert keys("teacher_cache=hidden", *local) == cached
    others = [
        ["teacher.seed=2"], ["label_decode.beam_size=2"], ["trainer.precision=bf16"], ["teacher_cache.dtype=bf16"],
        ["data.cleaning.max_tokens=50"], ["teacher_cache=top_k"], ["teacher_cache=top_k", "teacher_cache.top_k=9"],
    ]  # fmt: skip
    found = {keys("teacher_cache=hidden", *other)["cache_teacher"] for other in others}
    assert len(found) == len(others) and cached["cache_teacher"] not in found
    assert keys("teacher_cache=hidden", "teacher_cache.dtype=fp32") == cached  # null: that of trainer.precision
    triple = ["recipe=word_kd", "objective=triple", "teacher_cache=hidden", "student=toy_2x2"]
    kept = {w: {s.name: s for s in plan(*triple, f"weight_cos={w}")}["cache_teacher"].params for w in (0, 1)}
    assert kept[1] == kept[0] | {"last_layer": True}  # only where a term looks at it: the other caches keep their keys
    word_kd = plan("recipe=word_kd", "objective=word_kd", "teacher_cache=top_k", "baseline=false")
    assert [step.name for step in word_kd][3:] == ["cache_teacher", "student", "evaluate"]


def test_shares_of_targets_reach_whoever_looks_at_them():
    params = {step.name: step.params for step in plan("gold_share=0.1", "pseudo_share=0.2", "subset_seed=3")}
    names = ("gold_share", "pseudo_share", "subset_seed")
    told = {step: {name: params[step][name] for name in names if name in params[step]} for step in params}
    assert told["student"] == {"gold_share": 0.1, "pseudo_share": 0.2, "subset_seed": 3}
    assert told["baseline"] == {"gold_share": 0.1, "subset_seed": 3} and told["teacher"] == {}
    seq_kd = ["recipe=seq_kd", "objective=seq_kd", "mix=0"]
    assert keys(*seq_kd)["student"] == keys(*seq_kd, "gold_share=0.1")["student"]  # it looks at no gold
    assert (
        keys("teacher_cache=hidden")["cache_teacher"] == keys("teacher_cache=hidden", "gold_share=0.1")["cache_teacher"]
    )


def write_corpus(folder):
    folder.mkdir()
    for part in ("train", "valid", "test"):
        for language in ("de", "en"):
            (folder / f"{part}.{language}").write_text(f"{part} {language}\n" * 3, encoding="utf-8")
    return folder


def aligned(folder):
    places = {"data.train.0": "train", "data.valid": "valid", "data.tests.test": "test"}
    sides = (("src", "de"), ("tgt", "en"))
    paths = [f"{key}.{side}={folder}/{part}.{end}" for key, part in places.items() for side, end in sides]
    return ["data=files", *paths]


def test_a_corpus_is_known_by_content_and_not_by_path(tmp_path):
    first = write_corpus(tmp_path / "first")
    moved = shutil.copytree(first, tmp_path / "moved")
    key = keys(*aligned(first))["corpus"]
    assert key != default_keys()["corpus"] and keys(*aligned(moved))["corpus"] == key
    (moved / "test.en").write_text("another reference\n" * 3, encoding="utf-8")
    assert keys(*aligned(moved))["corpus"] != key


def test_a_teacher_folder_is_known_by_content_and_not_by_path(tmp_path):
    first = tmp_path / "first"
    (first / "tokenizer").mkdir(parents=True)
    for name in ("weights.safetensors", "tokenizer/spm.model"):
        (first / name).write_text(name, encoding="utf-8")
    (first / "config.json").write_text('{"tgt_vocab_size": 1000}', encoding="utf-8")
    moved = shutil.copytree(first, tmp_path / "moved")

    def teacher(folder):
        return keys("teacher=folder", f"teacher.path={folder}", f"data.tokenizer.path={folder}/tokenizer")

    key = teacher(first)
    assert teacher(moved) == key
    (moved / "weights.safetensors").write_text("other weights", encoding="utf-8")
    assert teacher(moved)["teacher"] != key["teacher"] and teacher(moved)["corpus"] == key["corpus"]
    step = next(step for step in plan("teacher=folder", f"teacher.path={first}") if step.name == "teacher")
    assert step.stage == "fetch_model" and step.inputs == {} and step.local == {"path": str(first)}
    assert set(step.params["sha256"]) == {"config.json", "tokenizer/spm.model", "weights.safetensors"}


def test_members_of_an_ensemble_are_known_by_content_and_given_to_the_step_that_decodes(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        (folder / "tokenizer").mkdir(parents=True)
        (folder / "tokenizer/tokenizer.json").write_text('{"fingerprint": "same"}')
        (folder / "config.json").write_text(f'"{folder.name}"')
    chosen = f"label_decode.ensemble=[{folders[0]},{folders[1]}]"
    steps = {step.name: step for step in plan(chosen)}
    (decoding,) = [step for step in steps.values() if "teacher_2" in step.inputs]
    assert [name for name in decoding.inputs if name.startswith("teacher")] == ["teacher", "teacher_2", "teacher_3"]
    assert all(
        decoding.inputs[name] == name and steps[name].stage == "fetch_model" for name in ("teacher_2", "teacher_3")
    )
    alone, together = default_keys(), keys(chosen)
    assert {name for name in alone if alone[name] != together[name]} == LABELS
    shutil.copytree(folders[0], tmp_path / "copy")
    assert keys(f"label_decode.ensemble=[{tmp_path}/copy,{folders[1]}]") == together
    assert keys(f"label_decode.ensemble=[{folders[1]},{folders[0]}]")["pseudo_label"] != together["pseudo_label"]


def test_sampling_reads_no_beam_and_old_settings_keep_their_keys():
    assert "beam_size" not in {step.name: step for step in plan("label_decode=sampling")}["hypotheses"].params["decode"]
    usual = {step.name: step for step in plan()}["hypotheses"].params["decode"]
    assert set(usual) == {
        *("beam_size", "length_penalty", "max_length_ratio", "max_length_extra"),
        "batch_tokens",
        "precision",
    }


def test_a_marian_teacher_is_known_by_content_or_commit_and_its_vocabulary_can_be_adopted(tmp_path):
    folder = tmp_path / "marian"
    folder.mkdir()
    for name, text in (("config.json", '{"model_type": "marian"}'), ("vocab.json", "{}"), ("pytorch_model.bin", "x")):
        (folder / name).write_text(text, encoding="utf-8")
    adopt = ["teacher=marian", "data.tokenizer.path=teacher"]
    steps = plan(*adopt, f"teacher.path={folder}")
    assert [step.name for step in steps][:3] == ["teacher", "corpus", "evaluate_teacher"]
    found = {step.name: step for step in steps}
    assert found["teacher"].stage == "convert_model" and found["corpus"].inputs == {"teacher": "teacher"}
    assert set(found["teacher"].params["sha256"]) == {"config.json", "vocab.json"}  # what is read, and nothing else
    for name in ("student", "baseline"):
        assert (found[name].params["model"]["src_vocab_size"], found[name].params["model"]["tgt_vocab_size"]) == (
            None,
            None,
        )
    key = plan_keys(steps)
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert keys(*adopt, f"teacher.path={moved}") == key
    (moved / "vocab.json").write_text('{"a": 1}', encoding="utf-8")
    assert not set(keys(*adopt, f"teacher.path={moved}").values()) & set(key.values())
    hub = [*adopt, "teacher.path=a/b", f"teacher.revision={'0' * 40}"]
    assert plan(*hub)[0].params == {"hub": "a/b", "revision": "0" * 40}
    assert keys(*hub)["teacher"] != keys(*hub[:-1], f"teacher.revision={'ab' * 20}")["teacher"]


def test_settings_of_labels_reach_their_params_where_they_differ_from_the_defaults(tmp_path):
    def label(*overrides):
        return {step.name: step for step in plan(*overrides)}["pseudo_label"]

    assert label("labels=first").params == {} and set(label().inputs) == {"corpus", "hypotheses"}
    assert label("labels=best_chrf", "label_decode.n_best=4", "labels.drop_copies=true").params == {
        "choose": "chrf",
        "drop_copies": True,
    }
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "config.json").write_text('{"architecture": {}}')
    judged = ["labels.reverse.path=back", "labels.reverse.drop_share=0.1", "until=reverse"]
    steps = {step.name: step for step in plan(*judged)}
    assert list(steps).index("reverse") < list(steps).index("pseudo_label")
    assert (steps["reverse"].stage, steps["reverse"].local) == ("fetch_model", {"path": "back"})
    made = steps["pseudo_label"]
    assert made.params == {"drop_share": 0.1} and made.inputs["reverse"] == "reverse"
    assert made.local == {"min_labelled": 0.5, "device": "cpu", "threads": 1}
    before = keys(*judged)
    (tmp_path / "back" / "config.json").write_text('{"architecture": {"d_model": 8}}')
    changed = {name for name, key in keys(*judged).items() if key != before[name]}
    assert changed == {"reverse", "pseudo_label", "student", "evaluate"}  # known by its content


def test_a_strategy_chooses_how_and_not_what():
    for name in ("ddp", "zero1", "zero2", "zero3", "fsdp"):
        chosen = [f"strategy={name}", "strategy.devices=4", "strategy.teacher=sharded", "trainer.recompute_layers=true"]
        assert changed(*chosen) == set(), name
    assert changed("strategy=fsdp", "strategy.replicas=2", "strategy.cpu_offload=true") == set()
    precise = keys("trainer.precision=bf16", "strategy=zero3")
    gathered = keys("trainer.precision=bf16", "strategy=fsdp", "strategy.gather=bf16")
    assert {"teacher", "student", "baseline"} <= {name for name in precise if precise[name] != gathered[name]}
