"""Files of decoded rows: taken up behind the last whole batch, refused at the line that is not as planned."""

import json
from zlib import crc32

import numpy as np
import pytest

from kdlab.data import decode_plan
from kdlab.data import shards as shards_module
from kdlab.data.decode_plan import DecodePlan
from kdlab.data.hypotheses import FILE
from kdlab.data.shards import DecodedBatch, Shards
from kdlab.decoding import engines
from kdlab.errors import UserError
from kdlab.stages import decode_sources
from tests.unit.test_decode_sources import Fake
from tests.unit.test_decoding_stages import DECODE, LOCAL, prepare

PARAMS = {"decode": DECODE | {"batch_tokens": 600}}  # several rows a batch


class Corpus:
    """Sources of one length, so that batches are easily counted."""

    row_id = np.arange(100, 140)
    src_hash = np.arange(40, dtype=np.uint64) + np.uint64(2**63)
    src_len = np.full(40, 10, np.int32)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_plan, "SHARD_ROWS", 16)
    plan = DecodePlan.make(Corpus.src_len, batch_tokens=40, width=1)
    (tmp_path / "shards").mkdir()
    return Shards(tmp_path / "shards", plan, Corpus, plan.fingerprint())


def row(at):
    number = 100 + at
    columns = {"tgt": [[at, 0]], "text": [f"text {at}"], "score": [-0.5], "log_prob": [-1.0], "num_tokens": [2]}
    counts = {"nan": 0, "line_breaks": 0}
    return {"row_id": number, "src_hash": 2**63 + at, **columns, "finished": [True], **counts}


def write(shards, batches, shard=1, name="dead"):
    writer = shards.worker(shard, name, {"parameters": 7})
    for batch in batches:
        writer.write(batch, [row(int(at)) for at in shards.plan.rows(batch)], {"wall_s": 1, "cpu_s": 1})
    return writer


def left(shards):
    """What a worker that takes the shard would still decode."""
    writer = shards.worker(1, "next", {"parameters": 7})
    writer.close()
    return writer.left


def part(shards, name="dead"):
    return shards.folder / f"shard_000001.{name}.part"


def test_a_finished_file_says_what_was_written(shards):
    write(shards, range(4, 8)).finish()
    assert shards.finished() == {1} and [path.name for path in shards.folder.iterdir()] == ["shard_000001.jsonl"]
    first, *batches = shards.read(shards.path(1), 1)
    assert first == {"plan": shards.fingerprint, "shard": 1, "parameters": 7}
    assert [one for batch in batches for one in batch.rows] == [row(at) for at in range(16, 32)]


def test_a_file_is_taken_up_behind_its_last_whole_batch_wherever_it_was_cut(shards, monkeypatch):
    """In the first line, in a row, between rows, around the end of a batch."""
    said = []
    monkeypatch.setattr(shards_module.runtime, "say", said.append)
    write(shards, range(4, 8)).close()
    whole = part(shards).read_bytes()
    part(shards).unlink()
    ends = [found.end for found in _batches(shards, whole)]
    for cut in sorted({*range(0, len(whole), 23), *(end + by for end in ends for by in (-1, 0, 1))} - {len(whole) + 1}):
        part(shards).write_bytes(whole[:cut])
        writer = shards.worker(1, "next", {"parameters": 7})
        done = sum(end <= cut for end in ends)
        assert writer.left == range(4 + done, 8)
        assert not part(shards).exists()
        for batch in writer.left:
            writer.write(batch, [row(int(at)) for at in shards.plan.rows(batch)], {"wall_s": 1, "cpu_s": 1})
        writer.finish()
        assert shards.path(1).read_bytes() == whole
        shards.path(1).unlink()
    assert said == []  # that a file is cut off is what a kill does: nothing to tell


def _batches(shards, content):
    path = shards.folder / "whole"
    path.write_bytes(content)
    found = [batch for batch in shards.read(path, 1) if isinstance(batch, DecodedBatch)]
    path.unlink()
    return found


def test_of_several_files_the_longest_is_taken_up(shards):
    for name, batches in (("one", range(4, 5)), ("two", range(4, 7)), ("three", range(4, 6))):
        write(shards, batches, name="x").close()
        part(shards, "x").rename(shards.folder / name)
    for name in ("one", "two", "three"):
        (shards.folder / name).rename(part(shards, name))
    assert left(shards) == range(7, 8)
    assert [path.name for path in shards.folder.iterdir()] == ["shard_000001.next.part"]


def test_damage_within_an_unfinished_file_is_told_and_decoded_again(shards, monkeypatch):
    said = []
    monkeypatch.setattr(shards_module.runtime, "say", said.append)
    write(shards, range(4, 8)).close()
    content = part(shards).read_bytes()
    part(shards).write_bytes(content.replace(b"text 22", b"text 99"))
    assert left(shards) == range(5, 8)
    assert len(said) == 1 and "line 9: row 122 is damaged" in said[0] and "dead.part" in said[0]


@pytest.mark.parametrize("first", [{"plan": "another"}, {"shard": 2}])
def test_a_file_of_another_plan_or_shard_is_not_taken_up(shards, monkeypatch, first):
    monkeypatch.setattr(shards_module.runtime, "say", lambda _: None)
    write(shards, range(4, 6)).close()
    lines = part(shards).read_bytes().split(b"\n")
    lines[0] = line({"plan": shards.fingerprint, "shard": 1, "parameters": 7, **first})[:-1]
    part(shards).write_bytes(b"\n".join(lines))
    assert left(shards) == range(4, 8)


def test_a_disk_that_takes_a_part_of_a_batch_is_an_error(shards):
    writer = write(shards, [])

    class Full:
        def write(self, text):
            return len(text) // 2

    writer.close()
    writer._file = Full()
    with pytest.raises(OSError, match="No space left"):
        writer.write(4, [row(16)], {})


def line(value):
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %b\n" % (crc32(text), text)


def change(lines, number, **values):
    """A line whose content was changed by someone who knows the CRC."""
    value = json.loads(lines[number].partition(b" ")[2])
    lines[number] = line({**value, **values})


def swap(lines):
    lines[3], lines[4] = lines[4], lines[3]


def flip(lines, number, at):
    content = bytearray(lines[number])
    content[at] ^= 1
    lines[number] = bytes(content)


DEFECTS = {
    "two rows swapped": (swap, r"line 4: row {2} belongs here, not row {3}"),
    "a row moved": (
        lambda lines: lines.insert(2, lines.pop(8)),
        r"line 3: row {1} belongs here, not row",
    ),
    "a row deleted": (lambda lines: lines.pop(2), r"line 3: row {1} belongs here, not row {2}"),
    "the last row deleted": (
        lambda lines: lines.pop(-2),
        r"line {last}: row {-1} belongs here, not the end of",
    ),
    "a row twice": (lambda lines: lines.insert(3, lines[2]), r"line 4: row {2} belongs here, not row {1}"),
    "a byte of a text flipped": (lambda lines: flip(lines, 2, -20), r"line 3: row {1} is damaged, its CRC"),
    "a byte of a CRC flipped": (lambda lines: flip(lines, 2, 3), r"line 3: row {1} is damaged, its CRC"),
    "a newline flipped": (lambda lines: flip(lines, 2, -1), r"line 3: row {1} is damaged, its CRC"),
    "the last byte lost": (lambda lines: lines.append(lines.pop()[:-1]), r"is cut off"),
    "the last line lost": (lambda lines: lines.pop(), r"the end of batch \d+ is missing: the file ends here"),
    "a row behind the end": (lambda lines: lines.append(lines[2]), r"nothing belongs here, the shard is complete"),
    "another source": (lambda lines: change(lines, 2, src_hash=5), r"line 3: row {1} was decoded from another source"),
    "a score that is no number": (lambda lines: change(lines, 2, score=[None]), r"line 3: row {1} has a score of None"),
    "an infinite one": (lambda lines: change(lines, 2, log_prob=[-1e999]), r"line 3: row {1} has a log_prob of -inf"),
    "a hypothesis without score": (lambda lines: change(lines, 2, score=[]), r"line 3: row {1} has 1 tgt but 0 score"),
    "a hypothesis without EOS": (
        lambda lines: change(lines, 2, tgt=[[5]]),
        r"line 3: row {1} has a hypothesis without EOS",
    ),
    "a file of another plan": (lambda lines: change(lines, 0, plan="x"), r"line 1: .* of plan x"),
    "a file of another shard": (lambda lines: change(lines, 0, shard=5), r"line 1: shard 5 of plan"),
    "an empty file": (lambda lines: lines.clear(), r"line 1: the first line is missing"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("shards") / "corpus", 300, 60)


@pytest.mark.parametrize("planted", DEFECTS)
def test_the_merge_refuses_a_shard_and_names_file_and_row(corpus, tmp_path, monkeypatch, planted):
    monkeypatch.setattr(decode_plan, "SHARD_ROWS", 24)
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: Fake(corpus))
    inputs = {"corpus": corpus.folder, "teacher": tmp_path}
    decode_sources.run(tmp_path, inputs, PARAMS, LOCAL)
    before = (tmp_path / FILE).read_bytes()
    decode_sources.run(tmp_path, inputs, PARAMS, LOCAL)  # a file that is fine is read again
    path = tmp_path / "scratch/shards/shard_000001.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    ids = [json.loads(one.partition(b" ")[2]).get("row_id") for one in lines]
    ids = [number for number in ids if number is not None]
    apply, told = DEFECTS[planted]
    last = len(lines) - 1
    apply(lines)
    path.write_bytes(b"".join(lines))
    for index in (-1, 0, 1, 2, 3):
        told = told.replace(f"{{{index}}}", str(ids[index]))
    told = told.replace("{last}", str(last))
    with pytest.raises(UserError, match=rf"shard_000001\.jsonl, .*{told}") as caught:
        decode_sources.run(tmp_path, inputs, PARAMS, LOCAL)
    assert "delete this file" in str(caught.value)
    path.unlink()
    decode_sources.run(tmp_path, inputs, PARAMS, LOCAL)
    assert (tmp_path / FILE).read_bytes() == before
