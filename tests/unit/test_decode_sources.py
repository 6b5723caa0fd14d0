"""The stage that decodes: the same bytes by any number of processes, after any end of one, and stated rules."""

import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdlab import files
from kdlab.data import decode_plan
from kdlab.data.arrow import TableWriter, open_table
from kdlab.data.decode_plan import DecodePlan
from kdlab.data.hypotheses import FILE, read_hypotheses
from kdlab.data.prepared import ROWS_SCHEMA, PreparedCorpus
from kdlab.decoding import engines, shared_work
from kdlab.decoding.engine import Candidate
from kdlab.errors import UserError
from kdlab.stages import decode_sources
from kdlab.types import EOS_ID
from tests.unit.test_decoding_stages import DECODE, LOCAL, model_folder, prepare

PARAMS = {"decode": DECODE}


class Fake:
    """An engine that reads ahead; its scores depend on the batch, as the last bits of a real one do."""

    fingerprint = None
    num_parameters = 7

    def __init__(self, corpus, before=lambda sources: None, candidates=None):
        self.fingerprint = corpus.tokenizer.fingerprint
        self._tokenizer, self._before, self._candidates = corpus.tokenizer, before, candidates

    def decode(self, batches):
        waiting = []
        for sources in batches:
            self._before(sources)
            waiting.append(sources)
            if len(waiting) > 2:
                yield self._found(waiting.pop(0))
        yield from map(self._found, waiting)

    def _found(self, sources):
        score = -math.sqrt(sum(sources.row_id)) / len(sources.row_id)
        found = []
        for at, ids in enumerate(sources.ids):
            text = self._tokenizer.decode_tgt(ids[:-1])
            best = Candidate(text, ids[:-1], score, score * len(ids), len(ids), True)
            found.append([best] if self._candidates is None else self._candidates(sources.row_id[at], best))
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    corpus = prepare(folder / "corpus", 300, 120)
    return {"corpus": corpus.folder, "teacher": model_folder(folder / "teacher", corpus.tokenizer)}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A corpus for engines that compile a kernel for every shape."""
    folder = tmp_path_factory.mktemp("few")
    corpus = prepare(folder / "corpus", 120, 30)
    return {"corpus": corpus.folder, "teacher": model_folder(folder / "teacher", corpus.tokenizer)}


@pytest.fixture
def corpus(made, monkeypatch):
    monkeypatch.setattr(decode_plan, "SHARD_ROWS", 24)
    monkeypatch.setattr(shared_work, "POLL_S", 0.01)
    return PreparedCorpus.open(made["corpus"])


def use(monkeypatch, engine):
    monkeypatch.setattr(engines, "open_engine", lambda *_, **__: engine)
    return engine


def content(out: Path) -> bytes:
    return (out / FILE).read_bytes()


def rows(out: Path) -> list[dict]:
    return list(itertools.chain(*read_hypotheses(out)))


@pytest.mark.parametrize("batch_tokens, width, shard_rows", [(300, 2, 24), (4096, 5, 64), (1, 1, 7), (10**6, 1, 16)])
def test_the_plan_holds_every_row_once_in_batches_within_the_budget(monkeypatch, batch_tokens, width, shard_rows):
    monkeypatch.setattr(decode_plan, "SHARD_ROWS", shard_rows)
    lengths = np.random.default_rng(1).integers(1, 90, 500).astype(np.int32)
    plan = DecodePlan.make(lengths, batch_tokens=batch_tokens, width=width)
    assert plan.order.tolist() == sorted(range(500), key=lambda at: (-lengths[at], at))
    found = [plan.rows(batch) for shard in range(plan.num_shards) for batch in plan.batches(shard)]
    assert np.concatenate(found).tolist() == plan.order.tolist() and len(found) == plan.num_batches
    for batch in found:
        assert len(batch) == 1 or width * lengths[batch[0]] * len(batch) <= batch_tokens
    full = [width * lengths[batch[0]] * (len(batch) + 1) > batch_tokens for batch in found[:-1]]
    assert all(full)
    sizes = [len(plan.shard_rows(shard)) for shard in range(plan.num_shards)]
    biggest = max(map(len, found))
    assert (
        sum(sizes) == 500
        and max(sizes) < shard_rows + biggest
        and min([shard_rows, *sizes[:-1]]) > shard_rows - biggest
    )
    again = DecodePlan.make(lengths, batch_tokens=batch_tokens, width=width)
    assert (
        again.fingerprint()
        == plan.fingerprint()
        != DecodePlan.make(lengths + 1, batch_tokens=90, width=1).fingerprint()
    )


def test_a_plan_of_no_rows_has_no_shards():
    plan = DecodePlan.make(np.empty(0, np.int32), batch_tokens=10, width=1)
    assert (plan.num_shards, plan.num_batches) == (0, 0)


@pytest.mark.parametrize("shard_rows, helpers", [(24, 3), (7, 2), (10**6, 1), (24, 0)])
def test_the_bytes_do_not_depend_on_shards_or_processes(corpus, made, tmp_path, monkeypatch, shard_rows, helpers):
    """Threads stand for processes: each has its own leases."""
    use(monkeypatch, Fake(corpus))
    decode_sources.run(tmp_path / "alone", made, PARAMS, LOCAL)
    monkeypatch.setattr(decode_plan, "SHARD_ROWS", shard_rows)
    workers, at_work = set(), threading.Barrier(helpers + 1 if shard_rows < 100 else 1)

    def together(sources):
        if threading.get_ident() not in workers:
            workers.add(threading.get_ident())
            at_work.wait(30)  # each has a shard now

    use(monkeypatch, Fake(corpus, together))
    scratch = tmp_path / "shared" / "scratch"
    scratch.mkdir(parents=True)
    threads = [
        threading.Thread(target=decode_sources.assist, args=(scratch, made, PARAMS, LOCAL)) for _ in range(helpers)
    ]
    for thread in threads:
        thread.start()
    summary = decode_sources.run(tmp_path / "shared", made, PARAMS, LOCAL)
    for thread in threads:
        thread.join()
    assert content(tmp_path / "shared") == content(tmp_path / "alone")
    assert len(workers) == at_work.parties
    assert summary["rows"] == summary["hypotheses"] == len(corpus.train) and summary["parameters"] == 7
    assert summary["tokens"] == corpus.train.src_len.sum() and summary["cpu_s"] >= 0
    assert list((scratch / "locks").iterdir()) == list((scratch / "engines").iterdir()) == []
    found = rows(tmp_path / "shared")
    order = np.argsort(-corpus.train.src_len, kind="stable")
    assert [row["row_id"] for row in found] == corpus.train.row_id[order].tolist()
    assert [row["src_hash"] for row in found] == corpus.train.src_hash[order].tolist()
    assert [row["tgt"][0] for row in found] == [ids.tolist() for ids in corpus.train.src_ids(order)]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_real_engine_gives_the_same_bytes_after_an_interruption_in_a_shard(few, tmp_path, monkeypatch, precision):
    params = {"decode": DECODE | {"precision": precision, "beam_size": 1, "batch_tokens": 150}}
    monkeypatch.setattr(decode_plan, "SHARD_ROWS", 8)
    decode_sources.run(tmp_path / "whole", few, params, LOCAL)
    monkeypatch.setattr(decode_plan, "SHARD_ROWS", 100)
    count, write = itertools.count(), shared_work.SharedWork.write

    def killed(*arguments):
        if next(count) == 6:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(shared_work.SharedWork, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        decode_sources.run(tmp_path / "killed", few, params, LOCAL)
    (part,) = (tmp_path / "killed/scratch/shards").glob("*.part")
    assert part.read_text().count('{"batch":') == 6
    decode_sources.run(tmp_path / "killed", few, params, LOCAL)
    lengths = PreparedCorpus.open(few["corpus"]).train.src_len
    batches = DecodePlan.make(lengths, batch_tokens=150, width=1).num_batches
    assert next(count) == batches + 1 > 8  # one was decoded twice: that at which it was killed
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_at_fp32_neither_the_budget_nor_the_order_of_the_corpus_counts(made, tmp_path):
    corpus = PreparedCorpus.open(made["corpus"])
    shuffled = tmp_path / "corpus"
    shutil.copytree(made["corpus"], shuffled)
    order = np.random.default_rng(3).permutation(len(corpus.train))
    with TableWriter(shuffled / "train.arrow", ROWS_SCHEMA) as writer:
        table = open_table(made["corpus"] / "train.arrow", tuple(ROWS_SCHEMA.names)).take(order)
        writer.write(table.to_pydict() | {"row_id": np.arange(len(order))})
    by_source = []
    for name, folder, batch_tokens in [
        ("one", corpus.folder, 300),
        ("two", corpus.folder, 1500),
        ("three", shuffled, 300),
    ]:
        params = {"decode": DECODE | {"batch_tokens": batch_tokens}}
        decode_sources.run(tmp_path / name, made | {"corpus": folder}, params, LOCAL)
        by_source.append(sorted(rows(tmp_path / name), key=lambda row: (row["src_hash"], row["row_id"])))
    one, *others = by_source
    assert (
        len({content(tmp_path / name) for name in ("one", "two", "three")}) == 3
    )  # the tests below compare different runs
    for other in others:
        for mine, theirs in zip(one, other, strict=True):
            for name in ("src_hash", "tgt", "text", "num_tokens", "finished"):
                assert mine[name] == theirs[name]
            assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_what_a_search_may_bring_has_its_rule_and_its_count(corpus, made, tmp_path, monkeypatch):
    nan = float("nan")

    def candidates(row_id, best):
        return {
            0: [best, replace(best, score=nan), replace(best, text="second")],
            1: [replace(best, log_prob=-math.inf)],
            2: [],
            3: [replace(best, text="a\nb\u2028c")],
            4: [replace(best, text=" ", ids=[], num_tokens=1)],
            5: [replace(best, finished=False), best],
        }.get(row_id, [best])

    use(monkeypatch, Fake(corpus, candidates=candidates))
    summary = decode_sources.run(tmp_path, made, PARAMS, LOCAL)
    found = {row["row_id"]: row for row in rows(tmp_path)}
    assert [text for text in found[0]["text"]][1:] == ["second"] and len(found[0]["tgt"]) == 2
    assert found[1]["text"] == found[2]["text"] == found[2]["score"] == []
    assert found[3]["text"] == ["a b c"] and found[4]["text"] == [" "] and found[4]["tgt"] == [[EOS_ID]]
    assert found[5]["finished"] == [False, True]
    counts = {"nan": 2, "too_long": 1, "line_breaks": 1, "empty": 1, "unfinished": 1}
    assert {name: summary[name] for name in counts} == counts
    assert summary["rows"] == len(corpus.train) and summary["hypotheses"] == len(corpus.train) - 2 + 2


def test_an_engine_of_another_vocabulary_is_given_text_and_its_text_is_encoded(corpus, made, tmp_path, monkeypatch):
    seen = []

    class Other(Fake):
        fingerprint = None

        def __init__(self):
            pass

        def decode(self, batches):
            for sources in batches:
                seen.append(sources)
                yield [[Candidate(f"the man {row}", None, -1.0, -2.0, 9, True)] for row in sources.row_id]

    use(monkeypatch, Other())
    summary = decode_sources.run(tmp_path, made, PARAMS, LOCAL)
    assert all(sources.ids is None for sources in seen) and summary["tokens"] == 9 * len(corpus.train)
    for row in rows(tmp_path):
        assert row["tgt"] == corpus.tokenizer.encode_tgt([f"the man {row['row_id']}"])
    assert [text for sources in seen for text in sources.text] == corpus.train.src_text(
        np.argsort(-corpus.train.src_len, kind="stable")
    )


def test_the_models_of_an_ensemble_come_in_their_order(corpus, made, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(engines, "open_engine", lambda folders, *_, **__: given.append(folders) or Fake(corpus))
    more = {f"teacher_{number}": Path(str(number)) for number in (10, 2)}
    decode_sources.run(tmp_path, {**more, **made}, PARAMS, LOCAL)
    assert given == [[made["teacher"], Path("2"), Path("10")]]


def test_a_worker_that_was_taken_for_dead_and_wakes_up_changes_nothing(corpus, made, tmp_path, monkeypatch):
    use(monkeypatch, Fake(corpus))
    decode_sources.run(tmp_path / "alone", made, PARAMS, LOCAL)
    scratch, stopped, woken = tmp_path / "shared" / "scratch", threading.Event(), threading.Event()
    scratch.mkdir(parents=True)
    count = itertools.count()

    def stop(sources):
        if threading.current_thread() is not threading.main_thread() and next(count) == 5:
            stopped.set()
            assert woken.wait(20)

    use(monkeypatch, Fake(corpus, stop))
    sleeper = threading.Thread(target=decode_sources.assist, args=(scratch, made, PARAMS, LOCAL))
    sleeper.start()
    assert stopped.wait(20)
    (lock,) = (scratch / "locks").iterdir()
    owner = files.read_json(lock)
    lock.write_text(json.dumps({**owner, "started": owner["started"] - 1}))  # of a process that is no more
    (part,) = (scratch / "shards").glob("*.part")
    batches = part.read_text().count('{"batch":')
    assert batches == 3  # two are read ahead
    told = []
    monkeypatch.setattr(shared_work.runtime, "say", told.append)

    merge = decode_sources._merge

    def wake(*arguments):
        woken.set()
        sleeper.join(20)
        return merge(*arguments)

    monkeypatch.setattr(decode_sources, "_merge", wake)
    decode_sources.run(tmp_path / "shared", made, PARAMS, LOCAL)
    assert not sleeper.is_alive() and content(tmp_path / "shared") == content(tmp_path / "alone")
    assert not list((scratch / "shards").glob("*.part"))


@pytest.mark.parametrize("ends", ["with an error of its own", "with an engine"])
def test_a_helper_whose_engine_is_ready_when_all_is_done_ends_quietly(corpus, made, tmp_path, monkeypatch, ends):
    """An export makes its folder anew, and CTranslate2 says of one that is gone that it is no model."""
    shared = tmp_path / "key.shared"
    shared.mkdir()

    def slow(*_, scratch, **__):
        shutil.rmtree(shared)  # by the owner, who has published
        (scratch / "ctranslate2").mkdir(parents=True)
        if ends == "with an engine":
            return Fake(corpus)
        raise UserError("no CTranslate2 directory that kdlab has exported")

    monkeypatch.setattr(engines, "open_engine", slow)
    decode_sources.assist(shared, made, PARAMS, LOCAL)
    assert not shared.exists()


def test_a_helper_tells_its_error_while_there_is_work(corpus, made, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise UserError("no model")

    monkeypatch.setattr(engines, "open_engine", broken)
    with pytest.raises(UserError, match="no model"):
        decode_sources.assist(tmp_path, made, PARAMS, LOCAL)


HELPER = """
import sys, time
from pathlib import Path
from kdlab.data import decode_plan
from kdlab.data.arrow import TableWriter, open_table
from kdlab.decoding import engines, shared_work
from kdlab.stages import decode_sources
from tests.unit.test_decode_sources import LOCAL, PARAMS, Fake, PreparedCorpus

decode_plan.SHARD_ROWS, shared_work.POLL_S = 24, 0.01
scratch, corpus, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def slowly(sources):
    print("batch", flush=True)
    time.sleep(seconds)

engines.open_engine = lambda *_, **__: Fake(PreparedCorpus.open(corpus), slowly)
decode_sources.assist(scratch, {"corpus": corpus, "teacher": corpus}, PARAMS, LOCAL)
"""


def test_a_helper_that_is_terminated_gives_back_what_it_holds(corpus, made, tmp_path, monkeypatch):
    """Killed ones: test_crash_labelling."""
    use(monkeypatch, Fake(corpus))
    decode_sources.run(tmp_path / "alone", made, PARAMS, LOCAL)
    scratch = tmp_path / "shared" / "scratch"
    scratch.mkdir(parents=True)
    command = [sys.executable, "-c", HELPER, str(scratch), str(made["corpus"]), "0.05"]
    helper = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    for _ in range(5):
        assert helper.stdout.readline() == "batch\n"
    helper.send_signal(signal.SIGTERM)
    helper.communicate()
    (part,) = (scratch / "shards").glob("*.part")
    (lock,) = (scratch / "locks").iterdir()
    assert lock.read_text() == "released\n"
    assert part.read_text().count('{"batch":') >= 2
    asked = []
    use(monkeypatch, Fake(corpus, lambda sources: asked.extend(sources.row_id)))
    decode_sources.run(tmp_path / "shared", made, PARAMS, LOCAL)
    assert content(tmp_path / "shared") == content(tmp_path / "alone")
    assert len(asked) < len(corpus.train)  # its batches were not decoded again


def test_an_engine_that_drops_a_batch_is_noticed(corpus, made, tmp_path, monkeypatch):
    class Forgetful(Fake):
        def decode(self, batches):
            yield from itertools.islice(super().decode(batches), 3)

    use(monkeypatch, Forgetful(corpus))
    with pytest.raises(RuntimeError, match="gave nothing"):
        decode_sources.run(tmp_path, made, PARAMS, LOCAL)
    assert "released" in next((tmp_path / "scratch/locks").iterdir()).read_text()
