"""The budget command: what it prints, what it refuses, and that it needs no torch."""

import re
import subprocess
import sys

import pytest

from kdlab import budget, compose, files
from kdlab.artifacts.stage import plan_keys
from kdlab.models.folder import FORMAT
from kdlab.recipes.plan import make_plan


def table(printed, title, training="student"):
    """The rows of a table below a training, by strategy: {column: cell}."""
    lines = printed[printed.index(f"\n{training}: ") :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(title))
    columns = re.split(r"\s{2,}", lines[start].strip())[1:]
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[start + 1 : start + 7]]
    return {row[0].removesuffix(" *"): dict(zip(columns, row[1:], strict=True)) for row in rows}


def ask(capsys, *arguments):
    status = budget.main(list(arguments))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_every_training_of_the_deck_is_weighed(capsys):
    status, out, _ = ask(capsys, "+experiment=hybrid_wmt20", "num_devices=8", "tokens_per_s=250000")
    assert status == 0
    assert "\nteacher: 468,657,408 parameters, bf16\n" in out
    assert "\nstudent: 21,945,600 parameters, bf16; beside it a teacher of 468,657,408 in bf16\n" in out
    assert "\nbaseline: 21,945,600 parameters, bf16\n" in out
    held = table(out, "as built, MB a device", "teacher")
    assert held["ddp"]["parameters"] == held["single"]["gradients"] == "1,874.6"  # 4 bytes each
    assert held["zero3"]["parameters"] == held["zero2"]["gradients"] == "234.3"
    sent = table(out, "as built, MB a step", "teacher")
    assert sent["ddp"] == dict.fromkeys(("reduce_scatter", "all_gather", "broadcast"), "-") | {
        "all_reduce": "1,874.6",
        "ring": "3,749.3",
    }
    paper = table(out, "paper", "teacher")
    assert [paper[name]["together"] for name in ("ddp", "zero3")] == ["7,498.5", "937.3"]
    assert "25,000 target tokens, 3,125 a device" in out
    assert "all steps take 4.2 h" in out  # 150,000 * 25,000 / 250,000 s
    assert "ddp 120 GB, 2 P; zero1 60 GB, 2 P; zero2 50 GB, 2 P; zero3 40 GB, 3 P" in out


def test_what_fits_depends_on_the_memory_and_the_devices(capsys):
    out = ask(capsys, "+experiment=hybrid_wmt20", "device_memory_gb=20")[1]
    fits = {name: row["fits"] for name, row in table(out, "as built, MB a device", "teacher").items()}
    assert fits == {"single": "no", "ddp": "no", "zero1": "yes", "zero2": "yes", "zero3": "yes", "fsdp": "yes"}
    assert {row["fits"] for row in table(out, "as built, MB a device", "student").values()} == {"yes"}


def test_an_epoch_is_known_when_the_corpus_is_prepared(capsys, tmp_path):
    arguments = [f"paths.store={tmp_path}", "recipe=train_only", "teacher=none", "objective=nll", "tokens_per_s=100"]
    assert "an epoch of all rows: not known before the corpus is prepared" in ask(capsys, *arguments)[1]
    key = plan_keys(make_plan(compose.compose(arguments[:-1]).cfg))["corpus"]
    counted = {"tgt_tokens": 30_000, "longest_src_len": 20, "longest_tgt_len": 31}
    manifest = {"stage": "prepare_corpus", "key": key, "summary": {"train": counted}}
    files.write_json(tmp_path / "prepare_corpus" / key / "manifest.json", manifest)
    out = ask(capsys, *arguments)[1]
    assert "an epoch of all rows: 30,000 target tokens" in out
    assert "that epoch: 5.0 min" in out
    assert "sentences of 31" in out


def test_a_brought_teacher_is_read_from_its_folder(capsys, tmp_path):
    small = {"src_vocab_size": 1200, "tgt_vocab_size": 1200, "num_encoder_layers": 1, "num_decoder_layers": 1}
    small |= {"d_model": 32, "d_ff": 64, "num_heads": 2, "tie": "all"}
    for name in ("weights.safetensors", "tokenizer/source.model"):
        files.write_text(tmp_path / name, "")
    files.write_json(tmp_path / "config.json", {"format": FORMAT, "architecture": small, "card": {}})
    status, out, _ = ask(capsys, "teacher=folder", f"teacher.path={tmp_path}")
    encoder = (3 * 32 + 3) + (32 + 1) + (2 * 64 + 1) + 4  # self-attention in and out, feed-forward, norms; times 32
    decoder = encoder + (32 + 1) + (2 * 32 + 2) + (32 + 1) + 2  # and cross-attention with its norm
    num = (1200 + encoder + decoder) * 32 + 2 * 64
    assert status == 0
    assert re.search(r"beside it a teacher of ([\d,]+) in fp32", out)[1] == f"{num:,}"


def test_the_chosen_strategy_has_the_options_and_devices_of_the_configuration(capsys):
    status, out, _ = ask(capsys, "strategy=fsdp", "strategy.devices=4", "strategy.replicas=2")
    assert status == 0 and out.startswith("toy: 4 devices of 80 GB; strategy=fsdp is marked *")
    assert table(out, "as built, MB a step")["fsdp"]["all_reduce"] != "-"
    assert table(out, "as built, MB a step")["zero3"]["all_reduce"] == "-"
    status, _, err = ask(capsys, "strategy=fsdp", "strategy.replicas=2", "num_devices=3")
    assert status == 1 and "write a multiple of 2" in err


def test_a_teacher_whose_shape_is_not_known_yet_is_refused(capsys):
    hub = ["teacher=marian", "teacher.path=a/b", f"teacher.revision={'0' * 40}", "data.tokenizer.path=teacher"]
    status, _, err = ask(capsys, *hub)
    assert status == 1 and "teacher.path=a/b" in err and "until=teacher" in err


def test_all_mistakes_at_once_and_nothing_of_them_is_computed(capsys):
    status, out, err = ask(capsys, "num_devices=0", "device_memory_gb=much")
    assert (status, out) == (1, "")
    assert "2 problems" in err and "num_devices=0" in err and "device_memory_gb=much" in err
    status, _, err = ask(capsys, "temprature=2")
    assert status == 1 and "did you mean 'temperature'?" in err
    status, _, err = ask(capsys, "recipe=train_only", "teacher=none", "objective=nll", "temperature=2")
    assert status == 1 and "temperature=2" in err and "no effect" in err


@pytest.mark.parametrize("arguments", [["--help"], ["num_devices=2"]])
def test_it_never_imports_torch(arguments):
    code = (
        "import sys\nfrom kdlab import budget\n"
        f"try: budget.main({arguments!r})\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'lightning', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "tokens_per_s" in found.stdout or "as built" in found.stdout
