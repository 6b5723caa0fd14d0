"""Engines from model folders: both search a trained model alike, whatever the batches; ensembles take the mean."""

import math
import random

import pytest
import torch
import torch.nn.functional as F

from kdlab.data.tokenizer import Tokenizer
from kdlab.data.toy import generate
from kdlab.decoding.beam import BeamConfig, beam_search
from kdlab.decoding.engine import Candidate, Sources
from kdlab.decoding.engines import batch_width, open_engine
from kdlab.decoding.ensemble import Ensemble
from kdlab.decoding.sampling import Sampling, sample
from kdlab.errors import UserError
from kdlab.models.folder import load_model, save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from tests.numerics.test_beam import EOS, STYLES, build, sources

DECODE = {"length_penalty": 1.0, "max_length_ratio": 1.5, "max_length_extra": 4, "batch_tokens": 400}
DECODE |= {"precision": "fp32", "beam_size": 1}
STEPS = 80


def trained(tokenizer, pairs, seed):
    """A model that has learnt a little, so that its distributions are neither flat nor sure."""
    sizes = (tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    model = Transformer(TransformerConfig(*sizes, 1, 1, 32, 64, 2, dropout=0.0, max_positions=48))
    random_init(model, seed)
    optimizer, rng = torch.optim.Adam(model.parameters(), lr=5e-3), random.Random(seed)
    for _ in range(STEPS):
        some = rng.sample(pairs, 24)
        src, tgt = (
            torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in side], True, sizes[0] - 1)
            for side in zip(*some, strict=True)
        )
        tgt_in = torch.cat([torch.full((len(tgt), 1), sizes[1] - 1), tgt[:, :-1]], dim=1)
        hidden_ND = model(src, src != sizes[0] - 1, tgt_in).decoder_ND
        logits_NV = F.linear(hidden_ND, model.head().weight_VD)[:, :-1]
        F.cross_entropy(logits_NV, tgt.flatten(), ignore_index=sizes[1] - 1).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.head().weight_VD[-1] = 0.0
    return model.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of two models with one vocabulary and of one with another, and source lines."""
    folder = tmp_path_factory.mktemp("engines")
    lines = [pair for pair in generate("train", 1500, 1) if len(pair[0]) < 40]  # short ones: cheap
    folders = {}
    for name, size in (("one", 600), ("two", 600), ("other", 580)):
        tokenizer = Tokenizer.train(*zip(*lines, strict=True), vocab_size=size)
        folders[name] = folder / name
        if name == "one":
            pairs = list(zip(*(tokenizer.encode_src(list(side)) for side in zip(*lines, strict=True)), strict=True))
            model = trained(tokenizer, pairs, seed=1)
        elif name == "two":
            with torch.no_grad():
                for parameter in model.decoder.parameters():
                    parameter.mul_(1.3)
        else:
            model = build(size, **STYLES[0])
        save_model(folder / name, model, {"tokenizer": tokenizer.fingerprint})
        tokenizer.save(folder / name / "tokenizer")
    lines = [src for src, _ in generate("test", 200, 1) if len(src) < 40]
    return folders | {"lines": lines[:20]}


def opened(made, names, tmp_path, **decode):
    folders = [made[name] for name in names]
    return open_engine(folders, DECODE | decode, device="cpu", threads=1, scratch=tmp_path)


def decoded(engine, lines, size=8, rows=None):
    """Candidates of every line, in batches of `size` lines as they come."""
    rows = list(range(len(lines))) if rows is None else rows
    cut = range(0, len(lines), size)
    batches = (Sources(rows[at : at + size], lines[at : at + size]) for at in cut)
    return [found for batch in engine.decode(batches) for found in batch]


def assert_same(ours, theirs, tolerance=2e-4):
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert [(x.text, x.ids, x.num_tokens, x.finished) for x in mine] == [
            (x.text, x.ids, x.num_tokens, x.finished) for x in other
        ]
        for name in ("score", "log_prob"):
            got, expected = ([getattr(x, name) for x in found] for found in (mine, other))
            assert got == pytest.approx(expected, abs=tolerance, rel=1e-5)


@pytest.mark.parametrize("beam", [{"beam_size": 1}, {"beam_size": 5, "n_best": 3}])
def test_both_engines_give_a_trained_model_the_same_outputs_in_any_batches(made, tmp_path, beam):
    pytest.importorskip("ctranslate2")
    own, other = (opened(made, ["one"], tmp_path, engine=engine, **beam) for engine in ("pytorch", "ctranslate2"))
    found = decoded(own, made["lines"])
    assert_same(decoded(other, made["lines"]), found)
    for engine in (own, other):
        assert_same(decoded(engine, made["lines"], size=1), found)
        assert_same(decoded(engine, made["lines"][::-1], size=20)[::-1], found)
        assert engine.num_parameters == own.num_parameters and engine.fingerprint == own.fingerprint
    best = [candidates[0] for candidates in found]
    assert len({x.text for x in best}) > 10 and sum(x.finished for x in best) > 10
    assert max(len(x) for x in found) == beam.get("n_best", 1)


def test_what_is_not_searched_has_its_place_and_given_ids_are_taken(made, tmp_path):
    pytest.importorskip("ctranslate2")
    line = made["lines"][0]
    ids = Tokenizer.open(made["one"] / "tokenizer").encode_src([line])
    for engine in ("pytorch", "ctranslate2"):
        opens = opened(made, ["one"], tmp_path, engine=engine)
        batch = Sources([4, 5, 6], ["", line, " ".join([line] * 20)])
        alone = Sources([0], ["ids count and no text"], ids)
        nothing, long = Sources([1], [batch.text[2]]), Sources([], [])
        found = list(opens.decode([batch, nothing, alone, long]))
        assert found[0][0] == [Candidate("", [], 0.0, 0.0, 1, finished=True)]
        assert found[0][2] == [] and found[1] == [[]] and found[3] == []
        assert found[2][0][0].text == found[0][1][0].text != ""
        (best,) = found[0][1]
        assert (best.num_tokens, best.score) == (len(best.ids) + best.finished, best.log_prob / best.num_tokens)


def test_sampling_goes_through_the_engine_by_row_and_seed(made, tmp_path):
    sampling = {"temperature": 1.0, "top_k": None, "top_p": None, "seed": 3}
    options = {"n_best": 2, "sampling": sampling}
    engine = opened(made, ["one"], tmp_path, **options)
    assert batch_width(DECODE | options) == 2 and batch_width(DECODE | {"beam_size": 5}) == 5
    lines, rows = made["lines"], list(range(100, 120))
    found = decoded(engine, lines, rows=rows)
    assert_same(decoded(engine, lines[::-1], size=1, rows=rows[::-1])[::-1], found)
    assert len({x.text for candidates in found for x in candidates}) > 30
    others = [
        decoded(engine, lines),
        decoded(opened(made, ["one"], tmp_path, n_best=2, sampling=sampling | {"seed": 4}), lines, rows=rows),
    ]
    assert all(other != found for other in others)


@torch.no_grad()
def mean_log_probs(models, src, ids):
    """log of the mean over models of p(token | tokens before), of every token of `ids` and EOS, by full forwards."""
    pad, tgt = models[0].config.tgt_vocab_size - 1, [*ids, EOS]
    logits = []
    for model in models:
        hidden = model(torch.tensor([src]), torch.ones(1, len(src)).bool(), torch.tensor([[pad, *ids]])).decoder_ND
        logits.append(F.linear(hidden, model.head().weight_VD, model.head().bias_V).double())
        logits[-1][:, pad] = logits[-1][0, EOS] = -math.inf
    probs = torch.stack([x.softmax(-1) for x in logits]).mean(0)
    return probs[range(len(tgt)), tgt].log().sum().item()


def test_an_ensemble_follows_the_mean_of_the_members_probabilities():
    models = [build(6, seed=seed, **style) for seed, style in zip((1, 2, 3), STYLES, strict=True)]
    src, config = sources(6, [5])[0], BeamConfig(320, 1.0, n_best=84, max_length_ratio=0.0, max_length_extra=4)
    found = beam_search(Ensemble(models), [src], config)[0]
    assert len(found) == 84  # all that can finish within four tokens
    for one in found:
        assert one.log_prob == pytest.approx(mean_log_probs(models, src, one.ids), abs=1e-4)
    alone = beam_search(models[0], [src], config)[0]
    assert max(abs(a.log_prob - b.log_prob) for a, b in zip(alone, found, strict=True)) > 0.1
    drawn = sample(
        Ensemble(models),
        list(range(40)),
        [src] * 40,
        BeamConfig(1, 1.0, max_length_ratio=0.0, max_length_extra=9),
        Sampling(),
    )
    for (one,) in drawn:
        if one.finished:
            assert one.log_prob == pytest.approx(mean_log_probs(models, src, one.ids), abs=1e-4)


@pytest.mark.parametrize("decode", [{}, {"beam_size": 4, "n_best": 2}, {"n_best": 2, "sampling": {"top_k": 20}}])
def test_a_model_twice_is_the_model_and_another_vocabulary_is_refused(made, tmp_path, decode):
    one, twice, both = (opened(made, names, tmp_path, **decode) for names in (["one"], ["one"] * 2, ["one", "two"]))
    found = decoded(one, made["lines"])
    assert_same(decoded(twice, made["lines"]), found)
    assert decoded(both, made["lines"]) != found
    sizes = [sum(p.numel() for p in load_model(made[name]).parameters()) for name in ("one", "two")]
    assert both.num_parameters == sum(sizes)
    with pytest.raises(UserError, match="other has another vocabulary .* than .*one .*the same tokenizer"):
        opened(made, ["one", "other"], tmp_path, **decode)
    with pytest.raises(UserError, match="model 2 of the ensemble has vocabularies of 580 and 580 ids"):
        Ensemble([load_model(made[name]) for name in ("one", "other")])


def test_what_ctranslate2_cannot_do_is_refused(made, tmp_path):
    with pytest.raises(UserError, match="with an ensemble.*write engine=pytorch"):
        opened(made, ["one", "two"], tmp_path, engine="ctranslate2")
    with pytest.raises(UserError, match="with sampling.*write engine=pytorch"):
        opened(made, ["one"], tmp_path, engine="ctranslate2", sampling={"seed": 1})
