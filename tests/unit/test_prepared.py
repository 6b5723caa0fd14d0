"""The prepare_corpus stage and its folder: counts, contents, random access over chunks, clear refusals."""

import json
import random
import time

import numpy as np
import pytest

from kdlab.data import arrow
from kdlab.data.arrow import TableWriter
from kdlab.data.cleaning import hash_lines
from kdlab.data.prepared import ROWS_SCHEMA, PreparedCorpus, Rows
from kdlab.errors import UserError
from kdlab.stages import prepare_corpus

WORDS = [
    "haus",
    "hund",
    "katze",
    "baum",
    "mann",
    "frau",
    "kind",
    "buch",
    "stuhl",
    "geht",
    "sieht",
    "und",
    "der",
    "die",
    "alt",
]


def text_node(folder, name, pairs):
    for side, suffix in enumerate(("de", "en")):
        (folder / f"{name}.{suffix}").write_text("".join(pair[side] + "\n" for pair in pairs))
    paths = {"src": str(folder / f"{name}.de"), "tgt": str(folder / f"{name}.en")}
    return {"_target_": "kdlab.data.corpus.AlignedText", **paths}


def pairs_of(seed, num_lines):
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(6, 12))) for _ in range(num_lines)]
    return [(line, line.upper() + ".") for line in lines]


def params_of(folder, **train):
    sources = {
        "train": [text_node(folder, name, pairs) for name, pairs in train.items()],
        "valid": text_node(folder, "valid", pairs_of(90, 20)),
        "tests": {"one": text_node(folder, "one", pairs_of(91, 30)), "two": text_node(folder, "two", pairs_of(92, 7))},
    }
    tokenizer = {"model": "unigram", "joint": True, "vocab_size": 64, "sample_lines": 100}
    return {"sources": sources, "cleaning": {"max_tokens": 60, "max_ratio": 4.0}, "tokenizer": tokenizer, "seed": 1}


def prepare(folder, params, tokenizer_path=None):
    """The stage on what `params_of` made: sources and a given tokenizer are paths, so they are not hashed."""
    hashed = {name: value for name, value in params.items() if name != "sources"}
    return prepare_corpus.run(folder, {}, hashed, {"sources": params["sources"], "tokenizer_path": tokenizer_path})


def test_a_corpus_is_cleaned_encoded_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_corpus, "ROWS_PER_BATCH", 64)  # several chunks, as a big corpus has
    good = pairs_of(1, 300)
    second = [("", "x"), good[5], pairs_of(91, 30)[3], (" ".join(WORDS * 4), "A"), ("haus", "HAUS HUND. " * 3)]
    params = params_of(tmp_path, first=good, second=second)
    (tmp_path / "out").mkdir()
    summary = prepare(tmp_path / "out", params)
    dropped = {"empty": 1, "overlap": 1, "duplicate": 1, "too_long": 1, "length_ratio": 1}
    assert (summary["rows_read"], summary["rows_kept"], summary["dropped"]) == (305, 300, dropped)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows_read_per_source"] == [300, 5]
    assert report["tests"] == {"one": {"lines": 30}, "two": {"lines": 7}}
    assert report["examples"]["duplicate"] == [{"row_id": 301, "src": good[5][0], "tgt": good[5][1]}]

    corpus = PreparedCorpus.open(tmp_path / "out")
    rows = corpus.train
    assert rows.row_id.tolist() == list(range(300)) and len(rows._table.column("src").chunks) > 3
    some = np.array([299, 0, 64, 63, 128, 0])
    src = [good[i][0] for i in some]
    assert rows.src_text(some) == src and rows.tgt_text(some) == [good[i][1] for i in some]
    assert [ids.tolist() for ids in rows.src_ids(some)] == corpus.tokenizer.encode_src(src)
    assert [corpus.tokenizer.decode_tgt(ids) for ids in rows.tgt_ids(some)] == rows.tgt_text(some)
    assert (rows.src_hash[some] == hash_lines(src)).all() and rows.src_hash.dtype == np.uint64
    assert rows.src_len[some].tolist() == [len(ids) for ids in rows.src_ids(some)] and rows.src_len.dtype == np.int32
    assert int(rows.tgt_len.sum()) == report["train"]["tgt_tokens"]
    assert report["train"]["mean_src_len"] == pytest.approx(rows.src_len.mean(), abs=1e-3)
    assert report["train"]["src_unknown_rate"] == 0.0
    assert list(zip(*corpus.valid_text, strict=True)) == pairs_of(90, 20) and len(corpus.valid) == 20
    assert corpus.tests == ["one", "two"]
    assert corpus.test("two").src == [src for src, _ in pairs_of(92, 7)]
    assert corpus.test("two").references == [[tgt for _, tgt in pairs_of(92, 7)]]
    with pytest.raises(UserError, match="no test set 'three'.*it has: one, two"):
        corpus.test("three")
    with pytest.raises(IndexError):
        rows.src_ids(np.array([300]))

    # The same parameters give the same bytes, also over the remains of a killed run; a given tokenizer is taken over.
    again = tmp_path / "again"
    (again / "scratch").mkdir(parents=True)
    (again / "scratch" / "kept_text.arrow").write_bytes(b"half")
    given = str(tmp_path / "out" / "tokenizer")
    prepare(again, params, given)
    for name in ("train.arrow", "valid.arrow", "report.json", "tokenizer/joint.spm"):
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    params["tokenizer"]["vocab_size"] = 65
    with pytest.raises(UserError, match="vocab_size=65, but the tokenizer in .* has \\[64\\]"):
        prepare(again, params, given)


def test_nothing_left_no_valid_line_and_odd_names_are_refused(tmp_path):
    def refused(message, change):
        params = params_of(tmp_path, train=pairs_of(1, 50))
        change(params)
        with pytest.raises(UserError, match=message):
            prepare(tmp_path, params)

    blank = text_node(tmp_path, "blank", [(" ", "x")] * 3)
    refused("no training pair is left of 3 \\(empty 3\\)", lambda params: params["sources"].update(train=[blank]))
    refused("is left of 50 \\(too_long 50\\)", lambda params: params["cleaning"].update(max_tokens=3))
    toy = {"_target_": "kdlab.data.corpus.Toy", "split": "valid", "num_lines": 0, "seed": 1}
    refused("the set 'valid' has no line", lambda params: params["sources"].update(valid=toy))
    refused("'wmt14/full' cannot be a file name", lambda params: params["sources"].update(tests={"wmt14/full": toy}))
    refused("largest possible is vocab_size=", lambda params: params["tokenizer"].update(vocab_size=9000))


def test_opening_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no prepared corpus"):
        PreparedCorpus.open(tmp_path)
    (tmp_path / "bad.arrow").write_bytes(b"no arrow at all")
    with pytest.raises(UserError, match="cannot be opened as an Arrow file"):
        Rows.open(tmp_path / "bad.arrow")


def test_fetching_rows_is_fast_and_copies_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "ROWS_PER_CHUNK", 1000)
    size, rng = 20_000, np.random.default_rng(0)
    ids = [row.tolist() for row in np.split(rng.integers(0, 9, 20 * size), size)]
    with TableWriter(tmp_path / "rows.arrow", ROWS_SCHEMA) as writer:
        text = ["text"] * size
        writer.write(dict(zip(ROWS_SCHEMA.names, (range(size), range(size), ids, ids, text, text), strict=True)))
    rows = Rows.open(tmp_path / "rows.arrow")
    assert len(rows._table.column("src").chunks) == 20
    wanted = rng.integers(0, size, (50, 128))
    taken, times = [], []
    for index in wanted:
        start = time.perf_counter()
        taken.append(rows.src_ids(index))
        times.append(time.perf_counter() - start)
    assert [row.tolist() for row in taken[7]] == [ids[i] for i in wanted[7]]
    assert not taken[0][0].flags.owndata and not taken[0][0].flags.writeable
    assert sorted(times)[25] < 1e-3
