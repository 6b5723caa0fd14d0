"""A teacher that was asked once: what the student learns from the cache is what the teacher itself would say."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdlab import files
from kdlab.data.arrow import TableWriter
from kdlab.data.batching import StepStream, collate, evaluation_batches
from kdlab.data.identity import identities
from kdlab.data.labels import LabelWriter, PseudoLabels
from kdlab.data.mixing import Mixing
from kdlab.data.prepared import ROWS_SCHEMA, PreparedCorpus
from kdlab.errors import UserError
from kdlab.models.folder import load_model, save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.objectives.nll import Nll
from kdlab.objectives.objective import Objective, WeightedTerm
from kdlab.objectives.reduce import reduce
from kdlab.objectives.word_kd import WordKD
from kdlab.stages import cache_teacher, prepare_corpus
from kdlab.teachers.cache_files import Column
from kdlab.teachers.cached import CachedTeacher
from kdlab.teachers.frozen import FrozenTeacher
from kdlab.types import Batch, Side

V = 200
TEMPERATURES = (0.5, 1.0, 2.0, 5.0, 10.0)
LOCAL = {"device": "cpu", "threads": 1, "microbatch_tokens": 300, "chunk_size": 37}
FP32 = {"kind": "hidden", "dtype": "fp32", "precision": "fp32", "top_k": None, "temperatures": None}
BF16 = FP32 | {"dtype": "bf16"}
TOP_K = FP32 | {"kind": "top_k", "top_k": V - 1, "temperatures": list(TEMPERATURES)}


def prepare(folder: Path) -> PreparedCorpus:
    def toy(split: str, number: int) -> dict:
        return {"_target_": "kdlab.data.corpus.Toy", "split": split, "num_lines": number, "seed": 1}

    sources = {"train": [toy("train", 90)], "valid": toy("valid", 20), "tests": {"one": toy("test", 5)}}
    tokenizer = {"model": "unigram", "joint": True, "vocab_size": V, "sample_lines": 1000}
    params = {"cleaning": {}, "tokenizer": tokenizer, "seed": 1}
    prepare_corpus.run(folder, {}, params, {"sources": sources, "tokenizer_path": None, "threads": 1})
    return PreparedCorpus.open(folder)


def label(folder: Path, corpus: PreparedCorpus) -> Path:
    """The gold target of another row as label, four rows in five, written in another order than the corpus's."""
    rows = np.random.default_rng(1).permutation([row for row in range(len(corpus.train)) if row % 5])
    with LabelWriter(folder) as writer:
        keys = {"row_id": corpus.train.row_id[rows], "src_hash": corpus.train.src_hash[rows]}
        zeros = np.zeros(len(rows))
        ids = corpus.train.tgt_ids((rows + 7) % len(corpus.train))
        writer.write(**keys, tgt=ids, text=["x"] * len(rows), score=zeros, log_prob=zeros)
    return folder


def model(seed: int, d_model: int, sharp: float) -> Transformer:
    made = Transformer(TransformerConfig(V, V, 1, 2, d_model, 48, 2, dropout=0.2, softmax_bias=True))
    random_init(made, seed)
    with torch.no_grad():
        made.softmax_bias.normal_(generator=torch.Generator().manual_seed(seed))
        for parameter in made.src_embedding.parameters():
            parameter.mul_(sharp)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("cache")
    corpus = prepare(folder / "corpus")
    inputs = {"corpus": corpus.folder, "labels": label(folder / "labels", corpus), "teacher": folder / "teacher"}
    save_model(inputs["teacher"], model(2, 24, 3.0), {})
    corpus.tokenizer.save(inputs["teacher"] / "tokenizer")
    labels = PseudoLabels.open(inputs["labels"], corpus.train)
    caches = {}
    for name, params in {"fp32": FP32, "bf16": BF16, "top_k": TOP_K}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache_teacher, "SHARD_ROWS", 32)
            caches[name] = cache_teacher.run(folder / name, inputs, params, LOCAL) and folder / name
    return SimpleNamespace(corpus=corpus, labels=labels, inputs=inputs, caches=caches)


def opened(made: SimpleNamespace, folder: Path, precision: str = "fp32", **changes) -> CachedTeacher:
    now = {
        "teacher": files.sha256_file(made.inputs["teacher"] / "weights.safetensors"),
        "tokenizer": made.corpus.tokenizer.fingerprint,
        "rows": identities(made.corpus, made.labels),
        **changes,
    }
    return CachedTeacher.open(folder, **now, head=load_model(made.inputs["teacher"]).head(), precision=precision)


def frozen(made: SimpleNamespace, precision: str = "fp32") -> FrozenTeacher:
    return FrozenTeacher(load_model(made.inputs["teacher"]), precision=precision)


def batches(made: SimpleNamespace, microbatch_tokens: int, **changes) -> Iterator[Batch]:
    """An epoch of microbatches with golds, pseudo-labels, and rows that have both."""
    pads = {"src_pad_id": made.corpus.tokenizer.src_pad_id, "tgt_pad_id": made.corpus.tokenizer.tgt_pad_id}
    settings = {"mixing": Mixing(0.5, "weights"), "seed": 1, "tokens_per_step": 1500, **changes}
    stream = StepStream(made.corpus.train, labels=made.labels, microbatch_tokens=microbatch_tokens, **settings, **pads)
    epoch = stream.epoch(1)
    for step in range(len(epoch.steps)):
        yield from stream.microbatches(epoch, step)


def loss_and_gradient(
    teacher: FrozenTeacher | CachedTeacher, student: Transformer, temperature: float, found: list[Batch]
) -> tuple[float, torch.Tensor]:
    """Word-level KD alone: an NLL beside it would cover an error."""
    terms = {"kd": WeightedTerm(1.0, "all", "tgt_token", WordKD(temperature))}
    student.zero_grad()
    total = 0.0
    for batch in found:
        targets = batch.targets
        out = student(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
        with teacher.guide(batch) as (guide, _):
            side = Side(out.decoder_ND, student.head())
            reduced = reduce(terms, {"kd": 0.01}, targets, side, guide, chunk_size=50)
        reduced.loss.backward()
        total += float(reduced.loss.detach())
    return total, torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(("cache", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2), ("top_k", 1e-5)])
def test_t25_a_cache_gives_the_loss_and_gradient_of_the_teacher_itself(made, cache, tolerance, temperature):
    """Hidden states at any temperature, and top-k with all tokens: cut otherwise than when the cache was made."""
    student, found = model(3, 16, 1.0).eval(), list(batches(made, 1200))[:4]
    loss, gradient = loss_and_gradient(frozen(made), student, temperature, found)
    ours, our_gradient = loss_and_gradient(opened(made, made.caches[cache]), student, temperature, found)
    assert loss > 0.5 and ours == pytest.approx(loss, rel=tolerance)
    assert (our_gradient - gradient).norm() <= tolerance * gradient.norm()
    if cache == "bf16":
        assert (our_gradient - gradient).norm() > 1e-6 * gradient.norm()  # it is what was kept that is compared


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_bf16_teacher_loses_nothing_in_bf16(made, tmp_path, precision):
    """A teacher in bf16 or int8 meets its head in bf16 anyway."""
    cache_teacher.run(tmp_path, made.inputs, BF16 | {"precision": precision}, LOCAL | {"microbatch_tokens": 700})
    student, found = model(3, 16, 1.0).eval(), list(batches(made, 1200))[:2]
    loss, gradient = loss_and_gradient(frozen(made, precision), student, 2.0, found)
    ours, our_gradient = loss_and_gradient(opened(made, tmp_path, precision), student, 2.0, found)
    assert ours == pytest.approx(loss, rel=2e-3) and (our_gradient - gradient).norm() < 5e-3 * gradient.norm()


@pytest.mark.parametrize("microbatch_tokens", [60, 10_000])
@pytest.mark.parametrize("mixing", [Mixing(0.5, "weights"), Mixing(0.4, "sampling")])
def test_rows_in_any_order_and_cut_meet_their_own_hidden_states(made, mixing, microbatch_tokens):
    teacher, cached, seen = frozen(made), opened(made, made.caches["fp32"]), {False: 0, True: 0}
    for batch in batches(made, microbatch_tokens, mixing=mixing, seed=4):
        with cached.guide(batch) as (side, nothing):
            torch.testing.assert_close(side.hidden_ND, teacher(batch).decoder_ND, atol=2e-5, rtol=0)
        assert nothing is None
        for pseudo in batch.targets.is_pseudo_R.tolist():
            seen[pseudo] += 1
    assert min(seen.values()) > 20


def test_target_rows_may_come_in_any_order(made):
    batch = next(batches(made, 700))
    targets, order = batch.targets, torch.randperm(len(batch.targets.source_R))
    moved = {f.name: getattr(targets, f.name)[order] for f in dataclasses.fields(targets)}
    batch = dataclasses.replace(batch, targets=dataclasses.replace(targets, **moved))
    with opened(made, made.caches["fp32"]).guide(batch) as (side, _):
        torch.testing.assert_close(side.hidden_ND, frozen(made)(batch).decoder_ND, atol=2e-5, rtol=0)


def test_the_validation_split_is_covered_and_kept_apart(made):
    """Its row ids are those of training rows, too."""
    pads = {"src_pad_id": made.corpus.tokenizer.src_pad_id, "tgt_pad_id": made.corpus.tokenizer.tgt_pad_id}
    assert set(made.corpus.valid.row_id) & set(made.corpus.train.row_id)
    teacher, cached, positions = frozen(made), opened(made, made.caches["fp32"]), 0
    for batch in evaluation_batches(made.corpus.valid, microbatch_tokens=400, **pads):
        with cached.guide(batch, split="valid") as (side, _):
            torch.testing.assert_close(side.hidden_ND, teacher(batch).decoder_ND, atol=2e-5, rtol=0)
        with pytest.raises(ValueError, match="gold rows that are not those of the cache"), cached.guide(batch):
            pass
        positions += len(side.hidden_ND)
    assert positions == made.corpus.valid.tgt_len.sum()


def test_top_k_keeps_the_likeliest_and_says_how_much_they_cover(made, tmp_path):
    few = TOP_K | {"top_k": 4, "dtype": "bf16", "temperatures": [1.0, 2.0]}
    summary = cache_teacher.run(tmp_path, made.inputs, few, LOCAL)
    batch, teacher = next(batches(made, 10_000)), frozen(made)
    with opened(made, tmp_path).guide(batch) as (kept, _), teacher.guide(batch) as (side, _):
        log_probs_NV = torch.log_softmax((side.hidden_ND @ side.head.weight_VD.T + side.head.bias_V)[:, : V - 1], -1)
    best_NK = log_probs_NV.topk(4).values
    torch.testing.assert_close(log_probs_NV.gather(1, kept.ids_NK), best_NK, atol=1e-4, rtol=0)
    torch.testing.assert_close(kept.log_probs_NK, best_NK, atol=0, rtol=2**-8)
    others_NV = log_probs_NV.scatter(1, kept.ids_NK, float("-inf"))
    tails_NI = torch.stack([others_NV.logsumexp(-1), (others_NV / 2).logsumexp(-1)], dim=1)
    torch.testing.assert_close(kept.log_tails_NI, tails_NI, atol=1e-3, rtol=2**-8)
    assert summary["bytes_per_position"] == 4 * (2 + 2) + 2 * 2  # ids of 16 bits, log-probabilities and tails of bf16
    assert summary["covered_mass"] == pytest.approx(float(best_NK.exp().sum(-1).mean()), abs=0.03)
    assert 0.1 < summary["covered_mass"] < 1
    with pytest.raises(UserError, match="top_k=200 of a vocabulary of 200"):
        cache_teacher.run(tmp_path / "more", made.inputs, TOP_K | {"top_k": V}, LOCAL)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("params", [FP32, TOP_K], ids=["hidden", "top_k"])
def test_killed_in_a_shard_and_resumed_gives_the_same_bytes(made, tmp_path, monkeypatch, params, capsys):
    monkeypatch.setattr(cache_teacher, "SHARD_ROWS", 16)
    write, asked, calls = Column.write, cache_teacher._ask, {"write": 0, "ask": 0}

    def dies(self, path, start, stored):
        calls["write"] += 1
        if calls["write"] == 11:
            write(self, path, start, stored[: len(stored) // 2])
            raise KeyboardInterrupt
        write(self, path, start, stored)

    def counts(*arguments):
        calls["ask"] += 1
        return asked(*arguments)

    monkeypatch.setattr(cache_teacher, "_ask", counts)
    summary, all_calls = cache_teacher.run(tmp_path / "whole", made.inputs, params, LOCAL), calls["ask"]
    (stated,) = [line for line in capsys.readouterr().err.splitlines() if "on disk" in line]
    assert f"{summary['positions']:,} positions x {summary['bytes_per_position']:,} bytes" in stated
    sizes = [path.stat().st_size for path in (tmp_path / "whole").glob("*.*") if path.suffix not in (".json", ".npy")]
    assert sum(sizes) == summary["positions"] * summary["bytes_per_position"]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Column, "write", dies)
        cache_teacher.run(tmp_path / "killed", made.inputs, params, LOCAL)
    finished = len(list((tmp_path / "killed" / "scratch").glob("*.json")))
    assert finished == (5 if params is FP32 else 1) and not (tmp_path / "killed" / "cache.json").exists()
    calls["ask"] = 0
    assert cache_teacher.run(tmp_path / "killed", made.inputs, params, LOCAL) == summary
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert 0 < calls["ask"] < all_calls


def test_a_disk_without_room_is_refused_before_anything_is_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(UserError, match=r"still needs 0\.7 MB but .* has 0\.1 MB free.* teacher_cache.dtype=bf16"):
        cache_teacher.run(tmp_path, made.inputs, FP32, LOCAL)
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]


def rewritten(corpus: PreparedCorpus, folder: Path, **columns) -> PreparedCorpus:
    """A copy of a corpus whose training rows have some columns changed."""
    shutil.copytree(corpus.folder, folder)
    every = np.arange(len(corpus.train))
    rows = {
        "row_id": corpus.train.row_id,
        "src_hash": corpus.train.src_hash,
        "src": corpus.train.src_ids(every),
        "tgt": corpus.train.tgt_ids(every),
        "src_text": corpus.train.src_text(every),
        "tgt_text": corpus.train.tgt_text(every),
    } | columns
    (folder / "train.arrow").unlink()
    with TableWriter(folder / "train.arrow", ROWS_SCHEMA) as writer:
        writer.write(rows)
    return PreparedCorpus.open(folder)


def test_another_teacher_tokenizer_or_corpus_is_refused(made, tmp_path):
    cache, rows = made.caches["fp32"], made.corpus.train
    for name in ("teacher", "tokenizer"):
        with pytest.raises(UserError, match=rf"was made with the {name} \w{{16}}, and this one is 0123, so it would"):
            opened(made, cache, **{name: "0123"})
    every = np.arange(len(rows))
    targets = rows.tgt_ids(every)
    same_length = targets[3].copy()
    same_length[0] = 77 if same_length[0] != 77 else 78
    changes = {
        "row 0 .* differs in tgt_hash": {"tgt": list(reversed(targets))},
        r"row 3 \(row id \d+\) differs in tgt_hash, so": {"tgt": [*targets[:3], same_length, *targets[4:]]},
        "row 0 .* differs in src_hash, so": {"src_hash": rows.src_hash[::-1]},
        r"row \d+ .* differs in row_id, so": {"row_id": rows.row_id + (every > 40)},
    }
    for number, (message, columns) in enumerate(changes.items()):
        other = rewritten(made.corpus, tmp_path / str(number), **columns)
        with pytest.raises(UserError, match=f"was made from other gold targets: {message}"):
            opened(made, cache, rows=identities(other, None))
    fewer = {name: [piece[:-1] for piece in pieces] for name, pieces in identities(made.corpus, None).items()}
    with pytest.raises(UserError, match=f"has {len(rows)} gold rows, the corpus {len(rows) - 1}"):
        opened(made, cache, rows=fewer)


def test_other_pseudo_labels_and_damaged_files_are_refused(made, tmp_path):
    known = {name: list(pieces) for name, pieces in identities(made.corpus, made.labels).items()}
    known["pseudo"][0]["tgt_hash"][11] += np.uint64(1)
    with pytest.raises(UserError, match="was made from other pseudo targets: row 11 .* differs in tgt_hash"):
        opened(made, made.caches["fp32"], rows=known)
    gold_alone = {name: made.inputs[name] for name in ("corpus", "teacher")}
    cache_teacher.run(tmp_path / "gold", gold_alone, FP32, LOCAL)
    with pytest.raises(UserError, match="has nothing on the pseudo targets"):
        opened(made, tmp_path / "gold")
    opened(made, tmp_path / "gold", rows=identities(made.corpus, None))
    for name, size, said in (("gold.hidden", 1000, "has 1000 bytes"), ("gold.rows.npy", 0, "No data left in file")):
        os.truncate(tmp_path / "gold" / name, size)
        with pytest.raises(UserError, match=f"cannot be read .*{said}"):
            opened(made, tmp_path / "gold", rows=identities(made.corpus, None))


def test_a_cache_reads_its_batch_alone(made):
    """The numbers stay on disk: what is held is who the rows are."""
    cached = opened(made, made.caches["fp32"])
    for part in cached._parts.values():
        for column in part.columns.values():
            assert isinstance(column.base, np.memmap) and not column.flags.writeable and not column.flags.owndata


def test_an_objective_beside_kd_sees_the_same(made):
    """NLL and KD of several temperatures in one objective, over the validation split, without gradient."""
    terms = Objective(
        {
            "nll": WeightedTerm(1.0, "gold", "tgt_token", Nll()),
            "soft": WeightedTerm(1.0, "all", "tgt_token", WordKD(5.0)),
            "sharp": WeightedTerm(1.0, "gold", "tgt_token", WordKD(0.5)),
        }
    ).active
    student = model(3, 16, 1.0).eval()
    tokenizer = made.corpus.tokenizer
    batch = collate(made.corpus.valid, np.arange(9), src_pad_id=tokenizer.src_pad_id, tgt_pad_id=tokenizer.tgt_pad_id)
    targets, sums = batch.targets, []
    with torch.no_grad():
        out = student(batch.src_BS, batch.src_mask_BS, targets.tgt_in_RT, targets.source_R, targets.mask_RT)
        for teacher in (frozen(made), opened(made, made.caches["fp32"]), opened(made, made.caches["top_k"])):
            with teacher.guide(batch, split="valid") as (guide, _):
                side = Side(out.decoder_ND, student.head())
                found = reduce(terms, dict.fromkeys(terms, 1.0), targets, side, guide, chunk_size=50).sums
                sums.append({name: float(value) for name, value in found.items()})
    assert sums[1] == pytest.approx(sums[0], rel=1e-5) and sums[2] == pytest.approx(sums[0], rel=1e-5)


def test_rows_without_a_target_are_passed_over(made, tmp_path, monkeypatch):
    """Every third row is source-only text, the first shard wholly; some have neither target nor label."""
    rows = np.arange(len(made.corpus.train))
    gold = [ids if row >= 32 and row % 3 else ids[:0] for row, ids in enumerate(made.corpus.train.tgt_ids(rows))]
    corpus = rewritten(made.corpus, tmp_path / "corpus", tgt=gold)
    labels = PseudoLabels.open(made.inputs["labels"], corpus.train)
    assert (~(corpus.train.has_gold | labels.has_label)).sum() > 5
    for name, inputs, mine in (
        ("both", made.inputs, labels),
        ("gold", {k: v for k, v in made.inputs.items() if k != "labels"}, None),
    ):
        monkeypatch.setattr(cache_teacher, "SHARD_ROWS", 32)
        cache_teacher.run(tmp_path / name, {**inputs, "corpus": corpus.folder}, FP32, LOCAL)
        cached = opened(made, tmp_path / name, rows=identities(corpus, mine))
        for batch in batches(SimpleNamespace(corpus=corpus, labels=mine), 300):
            with cached.guide(batch) as (side, _):
                torch.testing.assert_close(side.hidden_ND, frozen(made)(batch).decoder_ND, atol=2e-5, rtol=0)
