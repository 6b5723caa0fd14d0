"""README.md: every `python -m kdlab.run ...` composes and plans, and its reproduced results are what was measured."""

import bz2
import csv
import gzip
import lzma
import re
import shlex
from pathlib import Path
from statistics import fmean

import pytest

from kdlab import run

ROOT = Path(__file__).resolve().parents[2]
OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
START = "python -m kdlab.run"


def commands(markdown):
    """The command lines of the code blocks, fenced or indented, with their continuations joined."""
    lines = re.sub(r"\s*\\\n\s*", " ", markdown).splitlines()
    found, fenced = [], False
    for line in lines:
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            text = re.sub(r"\s+#.*", "", line.strip().removeprefix("$ "))
            if text == START or text.startswith(f"{START} "):
                found.append(text)
    return found


README = commands((ROOT / "README.md").read_text(encoding="utf-8")) if (ROOT / "README.md").exists() else []


def make_data(folder):
    """For every data group that reads below data.root: a folder of its name with those files, three lines each."""
    for group in (ROOT / "conf" / "data").glob("*.yaml"):
        for path in re.findall(r"\$\{data\.root\}/([\w./-]+)", group.read_text(encoding="utf-8")):
            place = folder / group.stem / path
            place.parent.mkdir(parents=True, exist_ok=True)
            with OPENERS.get(place.suffix, open)(place, "wt", encoding="utf-8") as file:
                file.write("eins zwei\n" * 3)


def make_model(folder):
    """Stands for a `<placeholder>`: enough of a model folder for a plan."""
    for name in ("config.json", "weights.safetensors", "tokenizer/source.model"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def test_there_are_commands_and_the_main_job_is_among_them():
    assert any(command == START for command in README)
    assert any("+experiment=" in command for command in README)


@pytest.mark.parametrize("command", README)
def test_a_command_of_the_readme_makes_a_plan(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / "data")
    model = make_model(tmp_path / "model")
    (tmp_path / "conf").mkdir()
    words = []
    command = command.replace("<commit>", "0" * 40)
    command = re.sub(r"[\w./-]*<[^<>]+>", str(model), command)
    command = re.sub(r"\$\{?KDLAB_DATA\}?", str(tmp_path / "data"), command)
    for word in shlex.split(command)[3:]:
        if word in ("|", "&&", ";", ">", "2>"):  # the rest of the line is the shell's
            break
        words.append(word)
    asks_only = {"--help", "-h", "--cfg", "-c"} & set(words)
    status = run.main([*words, *([] if asks_only else ["dry_run=true"])])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert asks_only or re.search(r"^corpus +prepare_corpus +[0-9a-f]{12} +(run|reuse)$", printed.out, re.M), (
        printed.out
    )


def test_commands_are_found_in_fenced_and_indented_blocks():
    text = f"Say `{START} no=1`.\n\n    {START} a=1 \\\n      b=2\n\n"
    text += f"```bash\n$ {START}  # why\npip install x\n```\n{START} no=2\n"
    assert commands(text) == [f"{START} a=1 b=2", START]


def gains(folder):
    """BLEU over the student alone by (student, weight of the NLL, temperature): test2016, mean over seeds."""
    with open(ROOT / "experiments" / folder / "results.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["test"], row["state"]) == ("test2016", "done")]
    alone = {(row["student"], row["seed"]): float(row["bleu"]) for row in rows if row["model"] == "baseline"}
    found = {}
    for row in (row for row in rows if row["model"] == "student"):
        weight = re.search(r"objective\.terms\.nll\.weight=(\d)", row["settings"])[1]
        place = row["student"].removeprefix("eighth_").replace("_", " "), weight, row["temperature"]
        gain = float(row["bleu"]) - alone[row["student"], row["seed"]]
        found.setdefault(place, {})[row["seed"]] = gain
    assert {len(some) for some in found.values()} == {3}
    return {place: fmean(some.values()) for place, some in found.items()}


def published(folder):
    """The same of the printed table."""
    with open(ROOT / "experiments" / folder / "published.csv", newline="") as file:
        rows = {(row["arch"].lower(), row["loss"]): row for row in csv.DictReader(file)}
    return {
        (arch, "1" if loss == "KD+NLL" else "0", f"{float(column[2:]):g}"): float(row[column])
        - float(rows[arch, "Baseline"][column])
        for (arch, loss), row in rows.items()
        if loss.startswith("KD")
        for column in row
        if column.startswith("T=")
    }


def test_the_table_of_reproduced_results_is_that_of_the_experiments():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    ours, theirs = {}, {}
    for size in ("1x1", "3x3"):
        ours |= gains(f"hinton_{size}_small")
        theirs |= published(f"hinton_{size}_wmt20")
    lines = re.findall(r"^\| KD (\+ NLL|alone), T = (\d+) \|(.+)\|$", text, re.M)
    assert len(lines) == 4
    for kind, temperature, cells in lines:
        for student, cell in zip(("slim 1x1", "wide 1x1", "slim 3x3", "wide 3x3"), cells.split("|"), strict=True):
            place = student, "1" if kind == "+ NLL" else "0", temperature
            assert cell.strip() == f"{ours[place]:+.1f} / {theirs[place]:+.1f}", place
