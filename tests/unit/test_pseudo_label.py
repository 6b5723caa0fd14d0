"""From hypotheses to labels: the choice, the rules with their counts, the report, and what is refused."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU, CHRF

from kdlab.data.arrow import TableWriter
from kdlab.data.candidates import Candidate, Row
from kdlab.data.choice import Choice
from kdlab.data.cleaning import hash_lines
from kdlab.data.hypotheses import HypothesesWriter
from kdlab.data.label_filters import LabelFilters
from kdlab.data.labels import PseudoLabels
from kdlab.data.prepared import ROWS_SCHEMA, PreparedCorpus
from kdlab.decoding.reverse import ReverseModel
from kdlab.errors import UserError
from kdlab.evaluation import label_report
from kdlab.models.folder import save_model
from kdlab.models.init import random_init
from kdlab.models.transformer import Transformer, TransformerConfig
from kdlab.stages import prepare_corpus, pseudo_label

LOCAL = {"min_labelled": 0.0, "device": "cpu", "threads": 1}
ROW_ID = [0, 2, 3, 7, 8]  # cleaning left gaps
SRC = ["der Hund", "die Katze schläft", "ein Mann", "Berlin", "nur Quelle"]
GOLD = ["the dog", "the cat is asleep now", "a man", "Berlin", ""]  # the last is source-only text


def hypothesis(text, log_prob=-1.0, tgt=None, score=None, finished=True):
    tgt = [5] * len(text.split()) + [0] if tgt is None else tgt
    score = log_prob / len(tgt) if score is None else score
    return {
        "tgt": tgt,
        "text": text,
        "score": score,
        "log_prob": log_prob,
        "num_tokens": len(tgt),
        "finished": finished,
    }


def write(folder, found, order=None, **changes):
    """Hypotheses of the rows in the given order; `found` holds those of each corpus row."""
    order = list(range(len(found))) if order is None else order
    rows = {"row_id": [ROW_ID[at] for at in order], "src_hash": hash_lines([SRC[at] for at in order])}
    names = ("tgt", "text", "score", "log_prob", "num_tokens", "finished")
    lists = {name: [[one[name] for one in found[at]] for at in order] for name in names}
    with HypothesesWriter(folder) as writer:
        writer.write({**rows, **lists, **changes})
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A prepared corpus whose training rows are the five above."""
    folder = tmp_path_factory.mktemp("labels") / "corpus"

    def toy(split, number):
        return {"_target_": "kdlab.data.corpus.Toy", "split": split, "num_lines": number, "seed": 1}

    sources = {"train": [toy("train", 60)], "valid": toy("valid", 5), "tests": {"one": toy("test", 5)}}
    tokenizer = {"model": "unigram", "joint": True, "vocab_size": 200, "sample_lines": 1000}
    params = {"cleaning": {}, "tokenizer": tokenizer, "seed": 1}
    prepare_corpus.run(folder, {}, params, {"sources": sources, "tokenizer_path": None, "threads": 1})
    src = [[6] * len(text.split()) + [0] for text in SRC]
    tgt = [[7] * len(text.split()) + [0] if text else [] for text in GOLD]
    with TableWriter(folder / "train.arrow", ROWS_SCHEMA) as writer:
        columns = (ROW_ID, hash_lines(SRC), src, tgt, SRC, GOLD)
        writer.write(dict(zip(ROWS_SCHEMA.names, columns, strict=True)))
    return PreparedCorpus.open(folder)


def label(out, corpus, found, local=LOCAL, **params):
    """Runs the stage: its summary and the text of each row's labels, best first."""
    inputs = {"corpus": corpus.folder, "hypotheses": write(out / "hypotheses", found, order=[3, 1, 4, 0, 2])}
    summary = pseudo_label.run(out / "labels", inputs, params, local)
    return summary, texts(out / "labels", corpus)


def texts(folder, corpus):
    """The labels of each corpus row, in the order of their ranks."""
    labels = PseudoLabels.open(folder, corpus.train)
    found = [[] for _ in ROW_ID]
    for at in np.flatnonzero(labels.has_label):
        turns = [labels.drawn(epoch, 1) for epoch in range(labels.num_labels[at])]
        found[at] = sorted({turn.text(np.array([at]))[0] for turn in turns})
    return found


NBEST = [
    [hypothesis("a hound", -0.5), hypothesis("the dog", -1.5), hypothesis("the dog !", -3.0)],
    [hypothesis("the cat sleeps", -0.25), hypothesis("a cat is asleep now", -2.0)],
    [hypothesis("one man", -0.125), hypothesis("one man", -0.5)],
    [hypothesis("Berlin", -0.5), hypothesis("berlin", -1.0)],
    [hypothesis("source only", -1.0), hypothesis("only source", -2.0)],
]


def test_the_first_hypothesis_is_the_label_where_nothing_else_is_asked_for(tmp_path, corpus):
    summary, found = label(tmp_path, corpus, NBEST)
    assert found == [["a hound"], ["the cat sleeps"], ["one man"], ["Berlin"], ["source only"]]
    assert summary["labels"] == summary["rows"] == 5 and summary["ranks"] == [5]
    labels = PseudoLabels.open(tmp_path / "labels", corpus.train)
    assert [ids.tolist() for ids in labels.tgt_ids(np.array([1]))] == [[5, 5, 5, 0]]


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_the_closest_to_gold_is_chosen_the_first_of_equals_and_without_gold_the_first(tmp_path, corpus, metric):
    summary, found = label(tmp_path, corpus, NBEST, choose=metric)
    assert found == [["the dog"], ["a cat is asleep now"], ["one man"], ["Berlin"], ["source only"]]
    assert summary["ranks"] == [3, 2]
    assert summary["closeness"].startswith("nrefs:1|case:mixed|eff:yes|" + ("tok:13a" if metric == "bleu" else "nc:6"))


@pytest.mark.parametrize(("name", "metric"), [("bleu", BLEU(effective_order=True)), ("chrf", CHRF())])
def test_closeness_is_sacrebleus_sentence_score(name, metric):
    from kdlab.evaluation.sacrebleu import RunningScore, SentenceScore

    pairs = [(["the dog", "a cat , is asleep now .", ""], "a cat is asleep"), (["yes"], "yes"), (["no"], "yes !")]
    for candidates, reference in pairs:
        expected = [metric.sentence_score(text, [reference]).score for text in candidates]
        assert SentenceScore(name)(candidates, reference) == expected
    running, whole = RunningScore(name), {"bleu": BLEU(), "chrf": CHRF()}[name]
    running.add(["the dog is here", "a cat is asleep"], ["the dog was here", "a cat sleeps well"])
    running.add([], [])
    running.add(["it is not so"], ["it is not so"])
    hypotheses = ["the dog is here", "a cat is asleep", "it is not so"]
    score = whole.corpus_score(hypotheses, [["the dog was here", "a cat sleeps well", "it is not so"]])
    assert (
        running.result() == {"score": score.score, "signature": str(whole.get_signature())} and running.sentences == 3
    )
    assert RunningScore(name).result() is None


def test_all_hypotheses_that_pass_are_labels(tmp_path, corpus):
    found = [*NBEST[:4], [hypothesis("", -1.0), hypothesis("only source", -2.0), hypothesis("cut", finished=False)]]
    summary, labels = label(tmp_path, corpus, found, choose="all")
    assert labels[:2] == [["a hound", "the dog", "the dog !"], ["a cat is asleep now", "the cat sleeps"]]
    assert labels[4] == ["only source"]
    assert summary["labels"] == 10 and summary["labelled_rows"] == 5
    assert summary["ranks"] == [4, 5, 1] and summary["replaced"] == 1
    opened = PseudoLabels.open(tmp_path / "labels", corpus.train)
    assert opened.num_labels.tolist() == [3, 2, 2, 2, 1] and opened.text(np.array([0])) == ["a hound"]


BAD = {
    "unfinished": hypothesis("cut off at the", finished=False),
    "empty": hypothesis("  "),
    "not_finite": hypothesis("no number", log_prob=-1.0, score=math.nan),
    "line_break": hypothesis("two\x85lines"),
    "length_ratio": hypothesis("a b c d e f"),
    "repetition": hypothesis("a b c", tgt=[9, 5, 6, 5, 6, 5, 6, 0]),
    "copy": hypothesis("der  Hund"),
    "low_score": hypothesis("the dog", score=-9.0),
}
ON = {"max_length_ratio": 2.0, "max_repetition": 2, "drop_copies": True, "min_score": -8.0}
VALUE = {"length_ratio": "max_length_ratio", "repetition": "max_repetition", "copy": "drop_copies"}
VALUE |= {"low_score": "min_score"}


@pytest.mark.parametrize("rule", BAD)
def test_each_rule_drops_what_it_should_and_counts_it(tmp_path, corpus, rule):
    """The first row has another hypothesis, which takes the place; the second has none."""
    found = [[BAD[rule], hypothesis("the dog")], [BAD[rule]], *([hypothesis("a man")] for _ in range(3))]
    if rule == "copy":
        found[1] = [hypothesis(SRC[1])]
    if rule == "length_ratio":
        found[1] = [hypothesis("cat", tgt=[0])]  # 4 tokens of source for 1: the inverse
    params = {VALUE[rule]: ON[VALUE[rule]]} if rule in VALUE else {}
    summary, labels = label(tmp_path, corpus, found, **params)
    assert labels[0] == ["the dog"] and labels[1] == [] and all(labels[2:])
    expected = {name: [0, 0, 0.0] for name in ("missing", *BAD)} | {rule: [2, 1, 0.2]}
    assert {name: list(counts.values()) for name, counts in summary["rules"].items()} == expected
    assert summary["replaced"] == 1 and summary["ranks"] == [3, 1]
    if rule in VALUE:  # off, all of them pass
        summary, labels = label(tmp_path / "off", corpus, found)
        assert summary["replaced"] == 0 and all(labels)


def test_rules_are_at_their_bounds():
    row = Row(0, 0, 3, "x y", "", [])

    def broken(filters, **changes):
        return filters.broken(row, Candidate(0, **{**hypothesis("a b"), **changes}))

    ratio = LabelFilters(max_length_ratio=2.0)
    assert broken(ratio, tgt=[5] * 5 + [0]) is None and broken(ratio, tgt=[5] * 6 + [0]) == "length_ratio"
    assert broken(LabelFilters(min_score=-1.0), score=-1.0) is None
    assert broken(LabelFilters(max_repetition=3), tgt=[5, 5, 5, 0]) is None
    assert broken(LabelFilters(max_repetition=2), tgt=[5, 5, 5, 0]) == "repetition"
    assert (
        broken(LabelFilters(), log_prob=-math.inf) == "not_finite"
        and broken(LabelFilters(), text="a\n") == "line_break"
    )


def test_a_row_counts_under_the_rule_that_its_best_hypothesis_broke():
    choice = Choice("first", LabelFilters())
    bad = [Candidate(rank, **BAD[rule]) for rank, rule in enumerate(("empty", "unfinished"))]
    assert choice.labels(Row(0, 0, 3, "x", "", bad)) == [] and choice.labels(Row(1, 0, 3, "x", "", [])) == []
    counts = choice.counts()
    assert counts["rules"]["empty"] == {"hypotheses": 1, "rows": 1}
    assert counts["rules"]["unfinished"] == {"hypotheses": 1, "rows": 0}
    assert counts["rules"]["missing"] == {"hypotheses": 0, "rows": 1} and counts["ranks"] == []


def test_the_report_by_hand(tmp_path, corpus):
    found = [*NBEST[:3], [hypothesis("cut", -9.0, finished=False), hypothesis("Berlin", -1.0)], []]
    summary, labels = label(tmp_path, corpus, found)
    assert labels == [["a hound"], ["the cat sleeps"], ["one man"], ["Berlin"], []]
    assert json.loads(json.dumps(summary)) == summary
    p = [[math.exp(one["log_prob"]) for one in row] for row in found]
    assert (
        summary["mode"]
        == {
            "rows": 3,  # the fourth row's best is no sentence yet, the fifth has none
            "log_prob_per_sentence": pytest.approx(-0.875 / 3, abs=1e-6),
            "log_prob_per_token": pytest.approx(-0.875 / 10, abs=1e-6),
            "prob": pytest.approx(sum(row[0] for row in p[:3]) / 3, abs=1e-6),
            "share_of_nbest": pytest.approx(sum(row[0] / sum(row) for row in p[:3]) / 3, abs=1e-6),
        }
    )
    pairs = (["a hound", "the cat sleeps", "one man", "Berlin"], [GOLD[:4]])
    assert summary["bleu"]["score"] == pytest.approx(BLEU().corpus_score(*pairs).score)
    assert summary["chrf"]["score"] == pytest.approx(CHRF().corpus_score(*pairs).score)
    assert (summary["types"], summary["gold_types"], summary["scored_labels"]) == (8, 9, 4)
    assert summary["length_ratio"] == pytest.approx(12 / 12) and summary["tokens"] == 12
    assert summary["gold_length_ratio"] == pytest.approx(14 / 12, abs=1e-5)
    assert summary["rules"]["missing"] == {"hypotheses": 0, "rows": 1, "share_of_rows": 0.2}
    report = json.loads((tmp_path / "labels/report.json").read_text())
    assert {name: report[name] for name in summary if name != "rule"} == {
        name: value for name, value in summary.items() if name != "rule"
    }
    assert [shown["row_id"] for shown in report["examples"]] == [0, 2, 3, 7] and report["decoding"] is None
    assert report["examples"][1] == {
        "row_id": 2,
        "src": SRC[1],
        "gold": GOLD[1],
        "label": "the cat sleeps",
        "score": round(-0.25 / 4, 4),
    }
    page = (tmp_path / "labels/report.md").read_text()
    assert "(nrefs:1\\|case:mixed\\|eff:no" in page
    assert "| missing | 0 | 1 | 20.0000% |" in page and "  - label: the cat sleeps\n" in page
    assert "| distinct words of labels | 8 |\n| distinct words of gold | 9 |\n" in page


def test_one_hypothesis_a_row_has_no_share_and_figures_of_decoding_pass_through(tmp_path, corpus):
    folder = write(tmp_path / "hypotheses", [row[:1] for row in NBEST])
    (folder / "manifest.json").write_text(json.dumps({"summary": {"tokens_per_s": 12.5}}))
    inputs = {"corpus": corpus.folder, "hypotheses": folder}
    assert pseudo_label.run(tmp_path / "labels", inputs, {}, LOCAL)["mode"]["share_of_nbest"] is None
    report = json.loads((tmp_path / "labels/report.json").read_text())
    assert report["decoding"] == {"tokens_per_s": 12.5}


def test_no_label_at_all_is_a_report_too(tmp_path, corpus):
    summary, found = label(tmp_path, corpus, [[BAD["empty"]]] * 5)
    assert found == [[]] * 5 and summary["rules"]["empty"]["share_of_rows"] == 1.0 and summary["ranks"] == []
    figures = ("labels", "labelled_rows", "tokens", "length_ratio", "types", "gold_types", "bleu", "chrf")
    assert [summary[name] for name in figures] == [0, 0, 0, None, 0, 0, None, None]
    assert "| empty | 5 | 5 | 100.0000% |" in (tmp_path / "labels/report.md").read_text()


def test_of_a_large_corpus_some_rows_are_scored(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(label_report, "SCORED_ROWS", 2)
    summary, _ = label(tmp_path, corpus, NBEST)
    assert summary["scored_labels"] == 2  # positions 0 and 3: every third
    assert summary["types"] == 8


def test_too_few_labels_are_refused(tmp_path, corpus):
    found = [[BAD["empty"]], [BAD["empty"]], [BAD["unfinished"]], *NBEST[3:]]
    with pytest.raises(UserError, match="only 2 of 5 rows.*1 unfinished, 2 empty.*loosen the filters"):
        label(tmp_path / "few", corpus, found, local={**LOCAL, "min_labelled": 0.5})
    label(tmp_path / "enough", corpus, found, local={**LOCAL, "min_labelled": 0.4})


@pytest.mark.parametrize(
    ("order", "changes", "message"),
    [
        ([0, 1, 2, 3, 4], {"row_id": [0, 2, 4, 7, 8]}, "row id 4 belong to no row"),
        ([0, 1, 2, 3, 4], {"row_id": [0, 3, 2, 7, 8]}, "row id 3 belong to another source"),
        ([0, 1, 2, 3, 4], {"src_hash": hash_lines([*SRC[:4], "x"])}, "row id 8 belong to another source"),
        ([0, 1, 2, 3], {}, "row id 8 are missing, with those of 0 more rows"),
        ([0, 1, 1, 2, 3, 4], {}, "row id 2 are there twice"),
        ([0, 1, 2, 3, 4], {"text": [["a"]] * 5}, "row id 0 have columns of different lengths"),
        ([0, 1, 2, 3, 4], {"tgt": [[[5, 0], [5]]] * 5}, "row id 0 have ids that are no target .hypothesis 2"),
        ([0, 1, 2, 3, 4], {"tgt": [[[5, 0], [0, 0]]] * 5}, "row id 0 have ids that are no target .hypothesis 2"),
        ([0, 1, 2, 3, 4], {"tgt": [[[5, 0], [199, 0]]] * 5}, "row id 0 have ids that are no target .hypothesis 2"),
    ],
)
def test_corrupt_hypotheses_are_refused_with_the_row_named(tmp_path, corpus, order, changes, message):
    found = NBEST if "tgt" not in changes else [row[:2] for row in NBEST]
    folder = write(tmp_path / "hypotheses", found, order, **changes)
    inputs = {"corpus": corpus.folder, "hypotheses": folder}
    with pytest.raises(UserError, match=message):
        pseudo_label.run(tmp_path / "labels", inputs, {}, LOCAL)


def reverse_model(folder, tokenizer, max_positions=64):
    model = Transformer(TransformerConfig(200, 200, 1, 1, 16, 32, 2, max_positions=max_positions))
    random_init(model, 3)
    save_model(folder, model, {"tokenizer": tokenizer.fingerprint})
    tokenizer.save(folder / "tokenizer")
    return folder


def alone(folder, label, source):
    """-log p(source | label) per token, one token after the other."""
    reverse = ReverseModel.open(folder, device="cpu")
    src, tgt = (
        torch.tensor(encode([text]))
        for encode, text in ((reverse.tokenizer.encode_src, label), (reverse.tokenizer.encode_tgt, source))
    )
    total, model = 0.0, reverse.model
    for at in range(tgt.shape[1]):
        prefix = torch.cat([torch.tensor([[199]]), tgt[:, :at]], 1)
        hidden = model(src, torch.ones_like(src, dtype=torch.bool), prefix).decoder_ND[-1:]
        total -= float(torch.log_softmax(model.logits(hidden)[0, :199], -1)[tgt[0, at]].detach())
    return total / tgt.shape[1]


def test_the_worst_share_by_the_reverse_model_is_dropped(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("kdlab.data.arrow.ROWS_PER_CHUNK", 2)
    folder = reverse_model(tmp_path / "reverse", corpus.tokenizer)
    found = [row[:1] for row in NBEST]
    scores = [alone(folder, row[0]["text"], src) for row, src in zip(found, SRC, strict=True)]
    inputs = {
        "corpus": corpus.folder,
        "hypotheses": write(tmp_path / "hypotheses", found, order=[3, 1, 4, 0, 2]),
        "reverse": folder,
    }
    mine = ReverseModel.open(folder, device="cpu").nll_per_token([row[0]["text"] for row in found], SRC)
    assert mine == pytest.approx(scores, rel=1e-5) and len(set(scores)) == 5

    summary = pseudo_label.run(tmp_path / "labels", inputs, {"drop_share": 0.4}, LOCAL)
    worst = sorted(range(5), key=lambda at: -scores[at])[:2]
    labels = texts(tmp_path / "labels", corpus)
    assert [at for at in range(5) if not labels[at]] == sorted(worst)
    assert summary["rules"]["reverse"] == {"hypotheses": 2, "rows": 2, "share_of_rows": 0.4}
    kept = [score for at, score in enumerate(scores) if at not in worst]
    assert summary["reverse"] == {
        "dropped": 2,
        "too_long": 0,
        "nll_per_token": pytest.approx(sum(scores) / 5, abs=1e-4),
        "nll_per_token_kept": pytest.approx(sum(kept) / 3, abs=1e-4),
    }
    none = pseudo_label.run(tmp_path / "none", inputs, {"drop_share": 0.19}, LOCAL)
    assert none["reverse"]["dropped"] == 0 and none["labels"] == 5


def test_scoring_goes_on_at_the_batch_where_it_was_killed(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("kdlab.data.arrow.ROWS_PER_CHUNK", 2)
    folder = reverse_model(tmp_path / "reverse", corpus.tokenizer)
    inputs = {"corpus": corpus.folder, "hypotheses": write(tmp_path / "hypotheses", NBEST), "reverse": folder}
    pseudo_label.run(tmp_path / "whole", inputs, {"drop_share": 0.2}, LOCAL)
    score, asked = ReverseModel.nll_per_token, []

    def killed(self, labels, sources):
        asked.append(list(sources))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return score(self, labels, sources)

    monkeypatch.setattr(ReverseModel, "nll_per_token", killed)
    with pytest.raises(KeyboardInterrupt):
        pseudo_label.run(tmp_path / "killed", inputs, {"drop_share": 0.2}, LOCAL)
    shutil.rmtree(inputs["hypotheses"])  # they were read to their end
    inputs["hypotheses"].mkdir()
    pseudo_label.run(tmp_path / "killed", inputs, {"drop_share": 0.2}, LOCAL)
    assert asked == [SRC[:2], SRC[2:4], SRC[2:4], SRC[4:]]
    for name in ("labels.arrow", "report.json", "report.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_too_long_for_the_reverse_model_is_the_worst(tmp_path, corpus):
    folder = reverse_model(tmp_path / "reverse", corpus.tokenizer, max_positions=16)
    model = ReverseModel.open(folder, device="cpu")
    found = model.nll_per_token(["a", "a " * 40, "a"], ["b", "b", "b " * 40])
    assert np.isinf(found).tolist() == [False, True, True]
    assert np.isinf(model.nll_per_token(["a " * 40], ["b"])).all()


def test_equal_samples_of_a_row_are_one_hypothesis_of_its_mode(tmp_path, corpus):
    same = [hypothesis("a hound", -0.5)] * 3
    summary, _ = label(tmp_path, corpus, [same, [*same, hypothesis("the dog", -0.5, tgt=[6, 6, 0])], [], [], []])
    assert summary["mode"]["share_of_nbest"] == pytest.approx((1 + 0.5) / 2)
