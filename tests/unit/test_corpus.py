"""Sources of parallel text: every kind reads the same pairs, every bad file gives one error with file and line."""

import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest

from kdlab.data.corpus import AlignedText, Hub, Jsonl, SacrebleuTest, Toy, Tsv
from kdlab.errors import UserError

PAIRS = [("Ein Haus.", "A house."), ("Zwei Häuser", "Two houses"), (" mit Rand ", "with a margin ")]


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def side(index: int) -> bytes:
    return "".join(pair[index] + "\n" for pair in PAIRS).encode()


def zstd(data: bytes) -> bytes:
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd)],
    ids=["plain", "gz", "xz", "zst"],
)
def test_aligned_text_is_unpacked_by_its_suffix(tmp_path, suffix, pack):
    source = AlignedText(written(tmp_path / f"a.de{suffix}", pack(side(0))), written(tmp_path / "a.en", side(1)))
    assert list(source.lines()) == PAIRS
    assert source.check() == []


def test_tsv_and_jsonl_read_the_columns_and_keys_asked_for(tmp_path):
    tsv = written(tmp_path / "a.tsv", "".join(f"{n}\t{en}\t{de}\n" for n, (de, en) in enumerate(PAIRS)).encode())
    assert list(Tsv(tsv, src_column=2, tgt_column=1).lines()) == PAIRS
    rows = "".join(json.dumps({"translation": {"de": de, "en": en}}) + "\n" for de, en in PAIRS)
    jsonl = written(tmp_path / "a.jsonl", rows.encode())
    assert list(Jsonl(jsonl, "translation.de", "translation.en").lines()) == PAIRS


def test_hub_streams_a_local_folder_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    rows = "".join(json.dumps({"translation": {"de": de, "en": en}}) + "\n" for de, en in PAIRS)
    written(tmp_path / "train.jsonl", rows.encode())
    source = Hub(str(tmp_path), "train", "translation.de", "translation.en")
    assert list(source.lines()) == PAIRS
    before = source.identity()
    assert before["revision"] is None and "path" not in before
    written(tmp_path / "train.jsonl", rows.encode() * 2)
    assert source.identity() != before  # another text under the same name
    assert Hub("wmt/wmt19", "train", "de", "en").identity()["path"] == "wmt/wmt19"
    written(tmp_path / "train.jsonl", rows.encode())
    with pytest.raises(UserError, match="no key 'translation.fr'.*there is: de, en"):
        list(Hub(str(tmp_path), "train", "translation.fr", "translation.en").lines())
    with pytest.raises(UserError, match="cannot be opened"):
        list(Hub(str(tmp_path / "nowhere"), "train", "de", "en").lines())


def test_toy_is_a_source():
    assert len(list(Toy("train", 7, 1).lines())) == 7
    assert Toy("train", 7, 1).identity() != Toy("train", 7, 2).identity()
    assert "at least 1" in Toy("train", 0, 1).check()[0]


def test_only_newlines_end_lines_and_only_they_are_taken_off(tmp_path):
    odd = ["a\u2028b", "c\u0085d", "e\x0bf\x0cg", "h\x1ci\x1dj\x1ek", " l\rm \t", "", "\u00a0n"]
    src = written(tmp_path / "src", ("\n".join(odd)).encode())  # no newline at the end of the file
    tgt = written(tmp_path / "tgt", b"x\n" * len(odd))
    assert [pair[0] for pair in AlignedText(src, tgt).lines()] == odd


BAD = {
    "utf8": (b"fine\nM\xfcller\n", "line 2: byte 2 \\(0xfc\\) is not valid UTF-8"),
    "nul": (b"fine\nfine\nx\0y\n", "line 3: a NUL byte"),
    "crlf": (b"fine\nfine\r\n", "line 2: ends in CRLF"),
    "empty": (b"", "is empty"),
    "empty.gz": (gzip.compress(b""), "is empty"),
    "plain.gz": (b"fine\n", "line 1: the file cannot be read further"),
    "cut.gz": (gzip.compress(b"fine\n" * 3)[:-9], "cannot be read further"),
    "cut.xz": (lzma.compress(b"fine\n" * 3)[:-9], "cannot be read further"),
    "cut.zst": (zstd(b"fine\n" * 3)[:-3], "cannot be read further"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_one_error_that_names_file_and_line(tmp_path, name):
    data, message = BAD[name]
    good = written(tmp_path / "good", b"fine\n" * 3)
    bad = written(tmp_path / name, data)
    for source in (AlignedText(good, bad), AlignedText(bad, good)):
        with pytest.raises(UserError, match=f"{name}.*{message}"):
            list(source.lines())


def test_missing_files_directories_and_unequal_counts(tmp_path):
    three, two = written(tmp_path / "three", b"a\n" * 3), written(tmp_path / "two", b"a\n" * 2)
    for source in (AlignedText(three, two), AlignedText(two, three)):
        with pytest.raises(UserError, match="three, line 3: has no partner.*two ends after line 2"):
            list(source.lines())
    for path, message in ((tmp_path / "none", "does not exist"), (tmp_path, "is a directory")):
        source = AlignedText(str(path), two)
        assert len(source.check()) == 1 and message in source.check()[0]
        with pytest.raises(UserError, match=message):
            list(source.lines())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"de": "x"', "line 2: no JSON"),
        ('{"de": "x"}', "line 2: no key 'en'"),
        ('{"de": "x", "en": 3}', "line 2: 3 is no text"),
        ('{"de": "x", "en": "\\u0000"}', "line 2: a NUL character"),
        ('{"de": "x", "en": "\\ud800"}', "line 2: surrogates not allowed"),
    ],
)
def test_a_bad_row_gives_one_error_that_names_file_and_line(tmp_path, line, message):
    path = written(tmp_path / "a.jsonl", f'{{"de": "x", "en": "y"}}\n{line}\n'.encode())
    with pytest.raises(UserError, match=f"a.jsonl, {message}"):
        list(Jsonl(path, "de", "en").lines())
    path = written(tmp_path / "a.tsv", b"x\ty\nx\n")
    with pytest.raises(UserError, match="a.tsv, line 2: 1 tab-separated column"):
        list(Tsv(path).lines())


def test_identity_follows_the_content_not_the_path(tmp_path):
    first = AlignedText(written(tmp_path / "a", side(0)), written(tmp_path / "b", side(1)))
    moved = AlignedText(written(tmp_path / "c", side(0)), written(tmp_path / "d", side(1)))
    assert first.identity() == moved.identity()
    written(tmp_path / "d", side(1) + b"more\n")
    assert first.identity() != moved.identity()


def test_sacrebleu_names_are_taken_as_they_are(tmp_path, monkeypatch):
    from sacrebleu.dataset import DATASETS

    for name, lines in (("wmt14", 2), ("wmt14/full", 3)):
        monkeypatch.setattr(DATASETS[name], "_outdir", str(tmp_path))
        for field in DATASETS[name].fieldnames("de-en"):
            Path(DATASETS[name]._get_txt_file_path("de-en", field)).write_text("text \n" * lines)
    assert list(SacrebleuTest("wmt14", "de-en").lines()) == [("text", "text")] * 2
    assert list(SacrebleuTest("wmt14/full", "de-en").lines()) == [("text", "text")] * 3
    assert SacrebleuTest("wmt14", "de-en").identity() != SacrebleuTest("wmt14/full", "de-en").identity()
    assert "did you mean 'wmt14/full'?" in SacrebleuTest("wmt14/ful", "de-en").check()[0]
    assert "has no de-xx" in SacrebleuTest("wmt14", "de-xx").check()[0]


def test_sources_are_light_to_import():
    loaded = "import sys, kdlab.data.corpus, kdlab.data.tokenizer, kdlab.stages.prepare_corpus; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "datasets", "pyarrow", "numpy", "sentencepiece", "sacrebleu"} & set(modules)
