"""Every recipe from raw text to the table, in a few steps of tiny models; numbers that must not move unnoticed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdlab import files, run
from kdlab.artifacts.store import Store
from kdlab.stages import decode_sources, evaluate_model, prepare_corpus, pseudo_label, train_model

GOLDEN = Path(__file__).resolve().parents[1] / "assets" / "golden.json"
TINY = [
    "max_steps=6",
    "min_labelled=0",
    "teacher.max_steps=6",
    "data.train.0.num_lines=400",
    "data.valid.num_lines=20",
    "data.tests.toy.num_lines=10",
    "vocab_size=200",
    "optim.lr=6e-3",  # the golden numbers must not hang on how the toy is tuned
    "student.d_model=16",
    "student.d_ff=32",
    "teacher.model.d_model=24",
    "teacher.model.d_ff=48",
    "trainer.tokens_per_step=300",
    "trainer.val_every=3",
    "trainer.log_every=1",
    "trainer.select=loss",
    "decode=greedy",
    "label_decode=greedy",
    "decode.max_length_ratio=1.5",
    "label_decode.max_length_ratio=1.5",
    "label_decode.max_length_extra=2",
]

# What a recipe has no use for, and kdlab therefore refuses.
IDLE = {
    "recipe=train_only": ("teacher.", "min_labelled", "label_decode."),
    "recipe=word_kd": ("min_labelled", "label_decode."),
}
ALL = ["corpus", "teacher", "evaluate_teacher", "hypotheses", "pseudo_label", "student", "evaluate"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def dials(*but: str) -> list[str]:
    """The tiny settings without those that begin so."""
    return [dial for dial in TINY if not dial.startswith(but or ("no dial",))]


def make(home: Path, *overrides: str, base: list[str] = TINY) -> tuple[dict, dict]:
    """(run.json, manifests by step) of a finished run."""
    idle = tuple(name for recipe in overrides for name in IDLE.get(recipe, ()))
    base = [dial for dial in base if not idle or not dial.startswith(idle)]
    before = set((home / "runs").glob("*/*/run.json"))
    assert run.main([*base, f"paths.store={home}/store", f"paths.runs={home}/runs", *overrides]) == 0
    (path,) = set((home / "runs").glob("*/*/run.json")) - before
    record, store = files.read_json(path), Store(home / "store")
    manifests = {name: store.manifest(step["stage"], step["key"]) for name, step in record["steps"].items()}
    assert all(manifests.values()), "every step of the plan is finished"
    assert (path.parent / "table.md").exists()
    return record, manifests


def folder(home: Path, record: dict, step: str) -> Path:
    return home / "store" / record["steps"][step]["stage"] / record["steps"][step]["key"]


def formula(home: Path, record: dict, step: str = "student") -> str:
    return (folder(home, record, step) / "objective.md").read_text()


def metrics(folder: Path) -> dict[str, list[float]]:
    """Values of every metric in the order of steps."""
    found: dict[str, list[float]] = {}
    for row in (folder / "metrics.csv").read_text().splitlines()[1:]:
        _, name, value = row.split(",")
        found.setdefault(name, []).append(float(value))
    return found


@pytest.mark.parametrize(
    ("overrides", "steps", "terms"),
    [
        (["recipe=train_only", "objective=nll"], ["corpus", "student", "evaluate"], ["-log p(y)] on gold rows"]),
        (
            ["recipe=word_kd", "objective=word_kd", "temperature=2", "baseline=false"],
            ["corpus", "teacher", "evaluate_teacher", "student", "evaluate"],
            ["1 * [-log p(y)] on gold", "1 * [4 * KL(teacher || student), both at temperature 2] on gold"],
        ),
        (
            ["recipe=seq_kd", "objective=seq_kd", "mix=0", "baseline=false"],
            ALL,
            ["1 * [-log p(y)] on pseudo rows"],
        ),
        (
            ["recipe=hybrid", "mix_by=weights", "mix=0.25", "weight_pseudo=2"],
            [*ALL, "baseline", "evaluate_baseline"],
            ["0.25 * [-log p(y)] on gold", "1.5 * [-log p(y)] on pseudo", "on all rows"],
        ),
    ],
    ids=["train_only", "word_kd", "seq_kd", "hybrid by weights"],
)
def test_a_recipe_runs_to_its_table(home, capsys, overrides, steps, terms):
    record, manifests = make(home, *overrides)
    assert sorted(record["steps"]) == sorted(steps)
    assert all(term in formula(home, record) for term in terms)
    assert manifests["student"]["summary"]["steps"] == 6
    table = capsys.readouterr().out
    assert "toy BLEU" in table and "BLEU: nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in table
    assert ("student alone" in table) == ("baseline" in steps or "recipe=train_only" in overrides)


def test_labels_that_were_enough_before_may_be_too_few_for_another_student(home, capsys):
    places = [f"paths.store={home}/store", f"paths.runs={home}/runs"]
    first, _ = make(home, "baseline=false", "seed=7")
    labels = files.read_json(folder(home, first, "pseudo_label") / "report.json")
    assert labels["labelled_rows"] < 0.5 * labels["rows"]  # of a teacher that has hardly learnt anything
    assert run.main([*dials("min_labelled"), "baseline=false", "seed=8", *places]) == 1
    assert f"only {labels['labelled_rows']} of {labels['rows']} rows got a pseudo-label" in capsys.readouterr().err


def test_a_model_folder_as_teacher_and_its_foreign_vocabulary(home, capfd):
    record, _ = make(home, "recipe=train_only", "objective=nll", "seed=2")
    teacher = folder(home, record, "student")
    brought = ["teacher=folder", f"teacher.path={teacher}", "baseline=false"]
    record, manifests = make(home, *brought, "seed=3", base=dials("teacher."))
    assert manifests["teacher"]["stage"] == "fetch_model"
    assert "KL(teacher || student)" in formula(home, record)
    # another vocabulary: word-level KD is refused with the way out, and that way works
    paths = [f"paths.store={home}/store", f"paths.runs={home}/runs"]
    arguments = [*dials("teacher.", "vocab_size"), *paths, *brought, "vocab_size=208"]
    unlabelled = [dial for dial in arguments if not dial.startswith(IDLE["recipe=word_kd"])]
    assert run.main([*unlabelled, "recipe=word_kd", "objective=word_kd"]) == 1
    _, _, said = capfd.readouterr().err.rpartition("kdlab: 1 problem in the configuration")
    assert "vocabulary" in said and "recipe=seq_kd" in said and "Traceback" not in said
    assert run.main([*arguments, "recipe=seq_kd", "objective=seq_kd", "mix=0"]) == 0


def test_t23_a_student_and_its_baseline_start_from_their_teacher(home):
    """With steps that are too small to move a weight they end as the teacher's layers, too."""
    start = ["init=layer_skip", "init.encoder=last_n", "student.d_model=24", "student.d_ff=48", "optim.lr=1e-20"]
    record, _ = make(home, *start)
    teacher = load_file(folder(home, record, "teacher") / "weights.safetensors")
    for step in ("student", "baseline"):
        report = files.read_json(folder(home, record, step) / "init.json")
        assert report["layers"] == {"encoder": {"of": 2, "chosen": [1]}, "decoder": {"of": 2, "chosen": [0]}}
        weights = load_file(folder(home, record, step) / "weights.safetensors")
        assert report["copied"].keys() == weights.keys() and report["random"] == []
        for name, source in report["copied"].items():
            assert torch.equal(weights[name], teacher[source]), name
    assert not (folder(home, record, "teacher") / "init.json").exists()


def test_a_student_of_a_cached_teacher_is_the_student_of_the_teacher(home):
    dials = ["seed=7", "temperature=2", "baseline=false", "evaluate.metrics=[chrf]"]
    online, _ = make(home, *dials)
    expected = metrics(folder(home, online, "student"))
    for cache, more in (("hidden", []), ("top_k", ["teacher_cache.top_k=199"])):  # all tokens of 200 but padding
        record, manifests = make(home, *dials, f"teacher_cache={cache}", *more)
        assert manifests["student"]["inputs"]["cache"] == record["steps"]["cache_teacher"]["key"]
        found = metrics(folder(home, record, "student"))
        for name in ("train/loss", "train/kd", "train/grad_norm", "valid/nll", "valid/kd"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), (cache, name)
        said = manifests["cache_teacher"]["summary"]
        assert said["bytes_per_position"] == (24 * 4 if cache == "hidden" else 199 * (2 + 4) + 5 * 4)


def test_golden_numbers(home):
    """A change that moves them raises the VERSION of the stage and writes them anew: KDLAB_GOLDEN=write."""
    record, manifests = make(home, "seed=5")
    store = Store(home / "store")
    corpus = manifests["corpus"]["summary"]
    found = {
        "versions": {
            module.__name__.rpartition(".")[2]: module.VERSION
            for module in (decode_sources, evaluate_model, prepare_corpus, pseudo_label, train_model)
        },
        "corpus": {name: corpus["train"][name] for name in ("rows", "src_tokens", "tgt_tokens")},
        "tokenizer": corpus["vocabulary"]["fingerprint"],
    }
    for step in ("teacher", "student", "baseline"):
        seen = metrics(store.folder("train_model", record["steps"][step]["key"]))
        found[step] = {name: seen[name] for name in ("train/loss", "train/grad_norm", "valid/nll")}
    if os.environ.get("KDLAB_GOLDEN") == "write":
        files.write_json(GOLDEN, found)
    golden = json.loads(GOLDEN.read_text())
    exact = ("versions", "corpus", "tokenizer")
    assert {name: found[name] for name in exact} == {name: golden[name] for name in exact}
    for step in ("teacher", "student", "baseline"):
        for name, values in golden[step].items():
            assert found[step][name] == pytest.approx(values, rel=2e-4), (step, name)


def test_two_processes_on_one_store_do_the_work_once(tmp_path):
    arguments = [f"paths.store={tmp_path}/store", "recipe=train_only", "objective=nll"]
    command = [sys.executable, "-m", "kdlab.run", *dials(*IDLE["recipe=train_only"]), *arguments]
    both = [
        subprocess.Popen([*command, f"paths.runs={tmp_path}/runs{i}"], stderr=subprocess.PIPE, text=True)
        for i in (1, 2)
    ]
    said = [process.communicate(timeout=180)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum(text.count("parameters; loss =") for text in said) == 1  # one of them trained
    assert (tmp_path / "runs1/toy").exists() and (tmp_path / "runs2/toy").exists()


def test_a_noisy_student_labels_for_the_next(home, capsys):
    record, manifests = make(home, "recipe=noisy_student", "source_noise=default", "baseline=false", "max_steps=3")
    keys = {name: step["key"] for name, step in record["steps"].items()}
    assert manifests["hypotheses_2"]["inputs"]["teacher"] == keys["student"]
    assert manifests["student_2"]["inputs"]["labels"] == keys["pseudo_label_2"] != keys["pseudo_label"]
    weights = [(folder(home, record, name) / "weights.safetensors").read_bytes() for name in ("student", "student_2")]
    assert weights[0] != weights[1]
    table = capsys.readouterr().out
    assert "| student, noisy_student, round 1 |" in table and "| student, noisy_student, round 2 |" in table


def test_a_pretrained_student_goes_on_from_its_weights(home):
    """Both see the same first batch; a student that began anew would begin with the very same loss."""
    record, manifests = make(home, "recipe=train_only", "objective=nll", "pretrain_steps=4")
    assert (manifests["pretrain"]["summary"]["steps"], manifests["student"]["summary"]["steps"]) == (4, 6)
    assert manifests["student"]["inputs"]["start"] == record["steps"]["pretrain"]["key"]
    first, then = (metrics(folder(home, record, name))["train/loss"] for name in ("pretrain", "student"))
    assert then[0] < first[0] - 0.02 and then[-1] < first[-1]
