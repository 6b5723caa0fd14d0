"""`python -m kdlab.translate`: lines in, lines out, in order; mistakes give one clear message and exit code 1."""

import io
import os
import subprocess
import sys
import threading

import pytest
import torch

from kdlab import translate
from kdlab.data import toy
from kdlab.data.tokenizer import Tokenizer
from kdlab.models.folder import save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    pairs = list(toy.generate("train", 200, 1))
    tokenizer = Tokenizer.train([s for s, _ in pairs], [t for _, t in pairs], vocab_size=300)
    model = Transformer(TransformerConfig(300, 300, 1, 1, 16, 32, 2, softmax_bias=True, max_positions=64))
    random_init(model, 2)
    with torch.no_grad():
        model.softmax_bias[0] = 3.0
    save_model(path, model, {"tokenizer": tokenizer.fingerprint})
    tokenizer.save(path / "tokenizer")
    return path


LINES = ["der Hund bellt .", "", "die Frau, die den Mann sieht, liest ein Buch .", "ja ."]


def test_a_file_is_translated_line_by_line_in_any_batching(folder, tmp_path, monkeypatch):
    (tmp_path / "in.de").write_text("".join(f"{line}\n" for line in LINES * 3))
    arguments = [f"model={folder}", f"input={tmp_path / 'in.de'}", f"output={tmp_path / 'out.en'}"]
    assert translate.main(arguments) == 0
    lines = (tmp_path / "out.en").read_text().split("\n")
    assert len(lines) == 13 and lines[12] == "" and lines[1] == lines[5] == "" and lines[0] and lines[0] != lines[2]
    assert lines[:4] == lines[4:8] == lines[8:12]
    monkeypatch.setattr(translate, "WINDOW_LINES", 5)
    assert translate.main([*arguments, "batch_tokens=1"]) == 0
    assert (tmp_path / "out.en").read_text().split("\n") == lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.de", "out.en"]


def test_a_pipe_is_read_once_and_a_line_break_in_a_translation_is_a_space(folder, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    text = "".join(f"{line}\n" for line in LINES)
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(text,))
    writer.start()
    monkeypatch.setattr(Tokenizer, "decode_tgt", lambda self, ids: "a\u2028b")
    assert translate.main([f"model={folder}", f"input={tmp_path / 'pipe'}", f"output={tmp_path / 'out.en'}"]) == 0
    writer.join()
    assert (tmp_path / "out.en").read_text() == "a b\n" * 4


def test_standard_input_gives_n_best_with_scores(folder, monkeypatch, capsys):
    text = "".join(f"{line}\n" for line in LINES).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    monkeypatch.setattr(sys, "stdout", out := io.TextIOWrapper(io.BytesIO()))
    assert translate.main([f"model={folder}", "n_best=3", "beam_size=4", "precision=bf16"]) == 0
    rows = [line.split("\t") for line in out.buffer.getvalue().decode().splitlines()]
    assert {row[0] for row in rows} == {"1", "2", "3", "4"} and all(len(row) == 3 for row in rows)
    first = [float(row[1]) for row in rows if row[0] == "1"]
    assert 1 < len(first) <= 3 and first == sorted(first, reverse=True)
    assert [row for row in rows if row[0] == "2"] == [["2", "0.000000", ""]]


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["modle=x"], ["unknown option 'modle'; did you mean 'model'?", "model is missing"]),
        (["model=x", "beam_size=five"], ["beam_size is 'five'", "write a whole number"]),
        (["model=x", "fast"], ["'fast' is no option; write name=value"]),
        (["model=x", "precision=int4"], ["precision is 'int4'", "write fp32, bf16 or int8"]),
        (["model=x", "beam_size=0"], ["beam_size is 0"]),
        (["model=nowhere"], ["the model folder nowhere does not exist"]),
        (["model=FOLDER", "input=/nowhere.de"], ["/nowhere.de"]),
        (["model=FOLDER", "input=FOLDER/config.json", "output=/nowhere/out"], ["which does not exist"]),
    ],
)
def test_mistakes_give_a_message_and_exit_code_1(folder, arguments, messages, capsys):
    assert translate.main([argument.replace("FOLDER", str(folder)) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert all(message in error for message in messages) and "Traceback" not in error


def test_long_and_broken_lines_are_named(folder, tmp_path, capsys):
    path = tmp_path / "in.de"
    path.write_text("ja .\n" + "Hund " * 200 + "\n")
    assert translate.main([f"model={folder}", f"input={path}", f"output={tmp_path / 'out'}"]) == 1
    assert "line 2 has" in capsys.readouterr().err
    path.write_bytes(b"ja .\n\xff\xfe\n")
    assert translate.main([f"model={folder}", f"input={path}", f"output={tmp_path / 'out'}"]) == 1
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_is_light():
    code = "import sys; from kdlab.translate import main; main(['--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "model=<folder>" in done.stdout
