"""experiments/claims.md: differences by hand, significance over seeds, and rebuilding without the store."""

import dataclasses
import json
import math
import random
import re
import shutil

import numpy as np
import pytest

from kdlab.errors import UserError
from kdlab.evaluation.sacrebleu import score
from kdlab.report import claims, results, sentences
from kdlab.report.__main__ import main
from kdlab.report.measured import Measured
from kdlab.report.results import Result
from kdlab.report.significance import Significance
from kdlab.report.verdict import CONTRADICTED, NOT_RUN, UNDECIDED
from tests.report_runs import BLEU, Runs

ERRORS = {"good_1": 0.30, "good_2": 0.31, "bad_1": 0.325, "bad_2": 0.335, "poor_1": 0.45, "poor_2": 0.46}


def texts(sentences=120):
    """A reference and six systems, two seeds of each arm; `poor` is clearly worse."""
    draw = random.Random(5)
    words = [f"word{n}" for n in range(50)]
    found = {"reference": [[draw.choice(words) for _ in range(draw.randint(5, 14))] for _ in range(sentences)]}
    for name, errors in ERRORS.items():
        found[name] = [
            [draw.choice(words) if draw.random() < errors else word for word in line] for line in found["reference"]
        ]
    return {name: [" ".join(line) for line in lines] for name, lines in found.items()}


@pytest.fixture(scope="module")
def systems():
    return texts()


@pytest.fixture(scope="module")
def statistics(systems):
    """Of every system what evaluate_model keeps: counts by sentence."""
    return {
        name: {metric: one["statistics"] for metric, one in score(lines, [systems["reference"]]).items()}
        for name, lines in systems.items()
        if name != "reference"
    }


def write(folder, statistics):
    for name, found in statistics.items():
        (folder / f"{name}.json").write_text(json.dumps(found))
    return Significance(folder / "cache.json")


def loads(*paths):
    return {path.name: lambda path=path: json.loads(path.read_text())["bleu"] for path in paths}


def test_with_one_seed_it_is_sacrebleus_own_p_value(tmp_path, systems, statistics):
    from sacrebleu.metrics import BLEU as Metric
    from sacrebleu.significance import PairedTest

    test = write(tmp_path, statistics)
    bad, good = tmp_path / "bad_1.json", tmp_path / "good_1.json"
    named = [(name, systems[name]) for name in ("bad_1", "good_1")]
    asked = PairedTest(named, {"BLEU": Metric()}, [systems["reference"]], "bs", 1000)
    theirs = next(found for name, found in asked()[1].items() if name.startswith("BLEU"))[1].p_value
    terms = [(1.0, loads(good)), (-1.0, loads(bad))]
    ours = test.contrast(terms, "bleu", BLEU)
    assert ours.p_value == test.p_value(bad, good, "bleu", BLEU) == theirs
    assert 0.002 < ours.p_value < 0.5
    assert test.contrast(terms, "bleu", BLEU.replace("13a", "char")) is None


def bleu(counts):
    """By hand: brevity penalty times the geometric mean of the n-gram precisions; no count is zero here."""
    length, reference, correct, total = counts[0], counts[1], counts[2:6], counts[6:10]
    return 100 * min(1.0, math.exp(1 - reference / length)) * math.exp(np.mean(np.log(correct / total)))


def test_several_seeds_are_one_draw_of_sentences(tmp_path, statistics):
    test = write(tmp_path, statistics)
    arms = [[tmp_path / f"{name}_{seed}.json" for seed in (1, 2)] for name in ("good", "bad")]
    found = test.contrast([(1.0, loads(*arms[0])), (-1.0, loads(*arms[1]))], "bleu", BLEU)
    summed = [
        np.array(statistics[f"{name}_1"]["bleu"]) + np.array(statistics[f"{name}_2"]["bleu"])
        for name in ("good", "bad")
    ]
    drawn = np.random.default_rng(12345).choice(120, size=(1000, 120), replace=True)
    differences = np.array([bleu(summed[0][one].sum(0)) - bleu(summed[1][one].sum(0)) for one in drawn])
    real = bleu(summed[0].sum(0)) - bleu(summed[1].sum(0))
    beyond = np.sum(np.abs(differences) - np.abs(differences).mean() > abs(real))
    assert found.p_value == (beyond + 1) / 1001
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-3)
    separate = [test.p_value(arms[1][n], arms[0][n], "bleu", BLEU) for n in (0, 1)]
    assert found.p_value not in separate


CLAIMS = """
tests: [news]
arms:
  alone: {experiment: one, where: {model: baseline}}
  kd: {experiment: [one, two], where: {model: student, temperature: 1}}
claims:
  - id: C1
    claim: gains
    says: KD helps.
    deck: it does.
    comparisons:
      - {name: gain, for_each: {student: [small, large]}, arm: kd, against: alone, expect: greater}
      - name: mean gain
        arm: [{arm: kd, over: alone, student: small}, {arm: kd, over: alone, student: large}]
        against: {arm: kd, over: alone, student: small}
        expect: greater
      - name: slope
        slope:
          - {arm: kd, over: alone, student: small}
          - {arm: kd, over: alone, student: middle}
          - {arm: kd, over: alone, student: large}
        expect: greater
      - name: best
        arm: {arm: kd, student: small}
        against_best: [{arm: kd, student: small, temperature: 2}, {arm: kd, student: small, temperature: 5}]
        expect: less
  - id: C2
    claim: other things
    says: Many.
    deck: nothing.
    rule: majority
    comparisons:
      - {name: no run, arm: {arm: kd, student: huge}, against: alone, expect: less, margin: 0.5}
      - {name: no fact, arm: {arm: kd, student: small, dropout: 0.5}, against: alone, expect: less}
      - {name: unclear, arm: kd, against: alone, expect: similar, margin: 0.5}
      - {name: itself, arm: kd, against: kd, expect: similar}
      - {name: other words, arm: {arm: kd, student: middle}, against: {arm: kd, student: small}, expect: similar}
      - {name: a figure, figure: 0.07, expect: greater, margin: 0.5, source: one/README.md, stands_as: it is 0.07}
"""


def row(student, seed, value, *, model="student", temperature="1", parameters=1, signature=BLEU):
    key = "-".join([student, model, temperature or "none", str(seed)])
    return Result(
        key=key, test="news", model=model, student=student, seed=seed, bleu=value, temperature=temperature,
        bleu_signature=signature, parameters=parameters, sentences=120, max_steps="10",
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, statistics):
    """Three students with gains of 1, 2 and 3 (seed 2: 0.5 more) over 1, 2 and 4 M parameters; two experiments."""
    one, two = [], []
    for number, student in enumerate(("small", "middle", "large")):
        size = 1_000_000 * 2**number
        for seed in (1, 2):
            one.append(row(student, seed, 20.0 + seed, model="baseline", temperature="", parameters=size))
            gain = number + 1 + (seed - 1) / 2
            (two if student == "large" else one).append(row(student, seed, 20.0 + seed + gain, parameters=size))
    one += [row("small", 1, 25.0, temperature="2"), row("small", 2, 26.0, temperature="2")]
    one += [row("small", 1, 29.0, temperature="5"), row("small", 3, 21.0, temperature="5")]
    for name, rows in (("one", one), ("two", two)):
        results.write(tmp_path / "experiments" / name / "results.csv", rows)
    for found in [*one, *two]:
        place = tmp_path / "store" / "evaluate_model" / found.key / "news.statistics.json"
        place.parent.mkdir(parents=True)
        arm = "poor" if found.model == "baseline" else "good"
        place.write_text(json.dumps(statistics[f"{arm}_{min(found.seed, 2)}"]))
        place.with_name("scores.json").write_text(json.dumps({"news": {"bleu": {"score": found.bleu}}}))
    (tmp_path / "experiments" / "one" / "README.md").write_text("It says that\nit is 0.07 here.\n")
    (tmp_path / "experiments" / "claims.yaml").write_text(CLAIMS)
    return tmp_path / "experiments"


def measured(folder):
    found = Measured(folder, folder.parent / "store")
    told = [line for claim in claims.read(folder) for one in claim.comparisons for line in found.lines(claim, one)]
    return {line.comparison: line for line in told}


def test_differences_are_those_by_hand(folder):
    found = measured(folder)
    assert found["gain: small"].differences == (1.0, 1.5)
    assert found["gain: large"].differences == (3.0, 3.5)  # of another experiment
    assert (
        found["gain: large"].keys
        == "+1 large-student-1-1 large-student-1-2; -1 large-baseline-none-1 large-baseline-none-2"
    )
    assert found["mean gain"].differences == (1.0, 1.0)  # (1 + 3) / 2 - 1
    assert found["mean gain"].keys.split("; ")[0] == "-0.5 small-student-1-1 small-student-1-2"  # 0.5 - 1
    assert found["slope"].differences == (1.0, 1.0)  # gains 1, 2, 3 on log2 of 1, 2, 4 M
    assert found["slope"].keys.startswith("-0.5 small-student-1-1 small-student-1-2; +0.5 small-baseline")
    best = found["best"]  # means 25.5 at T = 2, 25 at T = 5; but 25 and 29 of seed 1, the one that both have
    assert (best.differences, best.seeds) == ((-7.0,), (1,))
    assert "the best other: temperature 5; left out: seed 2, 3, not in every arm" in best.remark


def test_what_cannot_be_compared_says_why(folder):
    rows = [*results.read(folder / "one" / "results.csv")]
    rows = [one if one.student != "middle" else row("middle", one.seed, 9.0, signature="other") for one in rows]
    results.write(folder / "one" / "results.csv", rows)
    found = measured(folder)
    assert (found["no run"].verdict, found["no run"].remark) == (
        NOT_RUN, "no results of one two with model student, temperature 1, student huge",
    )  # fmt: skip
    assert found["no fact"].remark.endswith("; no row records dropout")
    assert found["unclear"].verdict == UNDECIDED
    assert found["unclear"].remark.startswith("several arms fit one two with model student")
    assert (found["itself"].verdict, found["itself"].remark) == (UNDECIDED, "arms are compared with themselves")
    assert found["other words"].verdict == UNDECIDED
    assert found["other words"].remark == "not comparable: other signature or sentences"
    assert found["a figure"].verdict == CONTRADICTED


def test_a_blank_setting_makes_no_other_arm(folder):
    (folder / "claims.yaml").write_text(CLAIMS.replace("alone: {experiment: one,", "alone: {experiment: [one, two],"))
    alone = row("small", 3, 23.0, model="baseline", temperature="")
    more = [dataclasses.replace(alone, settings="objective.terms.nll.weight="), row("small", 3, 25.0)]
    results.write(folder / "two" / "results.csv", results.read(folder / "two" / "results.csv") + more)
    assert measured(folder)["gain: small"].differences == (1.0, 1.5, 2.0)
    told = [dataclasses.replace(alone, settings="optim.lr=0.1")]  # what it does answer to does
    results.write(folder / "two" / "results.csv", told)
    assert measured(folder)["gain: small"].remark.startswith("several arms fit one two with model baseline")


def test_one_seed_borrows_from_arms_with_several(folder):
    rows = [one for one in results.read(folder / "one" / "results.csv") if (one.student, one.seed) != ("small", 2)]
    results.write(folder / "one" / "results.csv", rows)
    found = measured(folder)["gain: small"]
    assert (found.verdict, found.remark) == (UNDECIDED, "one seed")  # three arms with two seeds: too few
    more = [row(f"more{n}", seed, 20.0 + seed / 5, temperature="2") for n in range(5) for seed in (1, 2)]
    results.write(folder / "one" / "results.csv", rows + more)
    found = measured(folder)["gain: small"]
    # variances 0.5 (two baselines), 1.125 (two students), 0.02 (five), 32 (the small student at T = 5)
    spread = math.sqrt(2 * (2 * 0.5 + 2 * 1.125 + 5 * 0.02 + 32.0) / 10)
    assert found.remark == f"one seed, borrowed standard deviation of the difference {spread:.2f}"


def report(folder, store="store"):
    assert main([str(folder), f"store={folder.parent / store}"]) == 0
    return (folder / "claims.md").read_bytes(), (folder / "comparisons.csv").read_bytes()


def test_it_is_rebuilt_byte_for_byte_without_the_store(folder):
    page, rows = report(folder)
    told = page.decode()
    assert (
        "| C1    | gains        | undecided | -7.00 to +3.25 |         2 |              |         3 |         |" in told
    )
    assert (
        "| C2    | other things | undecided |          +1.00 |           |            1 |         3 |       2 |" in told
    )
    assert re.search(r"\| gain: small +\| > 0 +\| news +\|   1 2 \| \+1\.25 ± 0\.35 \| \+1\.00 \+1\.50 \|", told)
    assert re.search(r"\| no run +\| < -0\.5 +\| +\| +\| +\| +\| +\| +\| +not run \[1\] \|", told)
    assert [line.partition(",")[0] for line in rows.decode().splitlines()][:3] == ["claim", "C1", "C1"]
    p_value = re.search(r"^C1,gain: small,news,[^,]+,1 2,1\.25,([\d.]+),", rows.decode(), re.M)[1]
    shutil.rmtree(folder.parent / "store")
    assert report(folder) == (page, rows)

    again = rows.decode().replace(f"1 2,1.25,{p_value},", "1 2,1.25,0.999,")  # what is kept is what is shown
    (folder / "comparisons.csv").write_text(again)
    assert "| 0.999 |" in report(folder)[0].decode()


def test_a_new_key_is_computed_anew_or_marked(folder):
    rows = report(folder)[1]
    path = folder / "one" / "results.csv"
    path.write_text(path.read_text().replace("small-student-1-2,", "renamed,"))
    told, kept = report(folder, "no-store")
    assert re.search(r"\| gain: small .* \|  +\|  +\| undecided \[\d\] \|", told.decode())
    assert re.search(r"\| gain: large .* \| 0\.001 \| +supported \|", told.decode())  # its keys are the same
    assert "] no p: the statistics are not at hand.\n" in told.decode()
    assert re.search(r"^C1,gain: small,news,[^,]+ renamed; [^,]+,1 2,1\.25,,,,,nrefs", kept.decode(), re.M)
    place = folder.parent / "store" / "evaluate_model"
    (place / "small-student-1-2").rename(place / "renamed")
    report(folder)
    assert (folder / "comparisons.csv").read_bytes() == rows.replace(b"small-student-1-2", b"renamed")


def keep_sentences(folder, seeds):
    """Moves the counts of some seeds from the store into sentences.csv; the store goes."""
    store = folder.parent / "store"
    for name in ("one", "two"):
        found = [one for one in results.read(folder / name / "results.csv") if one.seed in seeds]
        places = {(one.key, "news", one.bleu): store / "evaluate_model" / one.key for one in found}
        counts = {place: path / "news.statistics.json" for place, path in places.items()}
        sentences.update(folder / name, counts, places)
    shutil.rmtree(store)


def test_committed_sentences_stand_in_for_the_store(folder):
    page, rows = report(folder)
    (folder / "comparisons.csv").unlink()
    keep_sentences(folder, (1, 2, 3))
    assert report(folder) == (page, rows)


def test_p_values_are_of_the_seeds_whose_sentences_are_known(folder, tmp_path, statistics):
    keep_sentences(folder, (2,))
    found = measured(folder)["gain: small"]
    assert found.differences == (1.0, 1.5) and found.resampled.seeds == (2,)
    assert found.remark == "p and 95 % of seed 2, whose translations are known"
    test = write(tmp_path, statistics)
    good, poor = ((1.0, tmp_path / "good_2.json"), (-1.0, tmp_path / "poor_2.json"))
    alone = test.contrast([(weight, loads(path)) for weight, path in (good, poor)], "bleu", BLEU)
    assert found.resampled.p_value == round(alone.p_value, 4)
    two = results.read(folder / "two" / "results.csv")
    results.write(folder / "two" / "results.csv", [*two, row("small", 2, 23.6)])  # trained again, elsewhere
    found = measured(folder)["gain: small"]
    assert found.differences == (1.0, 1.6) and found.resampled is None  # these are not its sentences
    results.write(folder / "two" / "results.csv", two)
    page, rows = report(folder)  # kept, and taken from there, also where fewer are known
    assert re.search(r"^C1,gain: small,news,[^,]+,1 2,1\.25,[\d.]+,[\d.]+,[\d.]+,2,nrefs", rows.decode(), re.M)
    for name in ("one", "two"):
        (folder / name / "sentences.csv").unlink()
    assert report(folder) == (page, rows)


def test_settings_come_from_reports_of_runs(tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "hinton"
    folder.mkdir(parents=True)
    (folder / "tables.yaml").write_text(
        "tables: [{title: T, where: {test: wmt20}, rows: {loss: {KD: {objective.terms.nll.weight: 0}}},"
        " columns: {T1: {temperature: 1}}}]\n"
    )
    runs = Runs(tmp_path)
    for seed in (1, 2):
        for weight in (0.0, 1.0):
            for temperature in (1.0, 2.0):
                scores = {"wmt20": 20 + seed + 3 * weight - temperature}
                weights = {"nll": weight, "kd": 1.0}
                alone = {"wmt20": 18.0 + seed}
                runs.add("hinton", weights=weights, temperature=temperature, seed=seed, scores=scores, alone=alone)
    assert main([str(folder), f"runs={tmp_path / 'runs'}"]) == 0
    (folder.parent / "claims.yaml").write_text(
        """
tests: [wmt20]
arms:
  alone: {experiment: hinton, where: {model: baseline}}
  kd: {experiment: hinton, where: {model: student, recipe: word_kd, temperature: 1, objective.terms.nll.weight: 1}}
claims:
  - id: S1
    claim: NLL helps
    says: At every temperature.
    deck: mostly.
    comparisons:
      - name: NLL
        for_each: {temperature: [1, 2]}
        arm: kd
        against: {arm: kd, objective.terms.nll.weight: 0}
        expect: greater
      - {name: gain, arm: {arm: kd, over: alone, temperature: 2}, against: {arm: kd, over: alone}, expect: less}
"""
    )
    found = measured(folder.parent)
    assert found["NLL: temperature 1"].differences == found["NLL: temperature 2"].differences == (3.0, 3.0)
    assert found["gain"].differences == (-1.0, -1.0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rule: majority", "rule: mayority", "rule 'mayority'; did you mean 'majority'?"),
        ("deck: nothing.", "dekc: nothing.", "unknown key 'dekc' in C2, claim; did you mean 'deck'?"),
        ("over: alone,", "over: alnoe,", "arm 'alnoe'; did you mean 'alone'?"),
        ("margin: 0.5, source", "margn: 0.5, source", "unknown key 'margn'"),
        ("stands_as: it is 0.07", "stands_as: it is 0.08", "'it is 0.08' does not stand in"),
        ("expect: greater, margin: 0.5, source", "expect: similar, margin: 0.5, source", "expect 'similar'"),
        ("    deck: it does.\n", "", "is not understood (TypeError"),
        ("slope:", "slopes:", "unknown key 'slopes'"),
    ],
)
def test_a_mistake_in_claims_yaml_is_told(folder, old, new, says, capsys):
    assert old in CLAIMS
    (folder / "claims.yaml").write_text(CLAIMS.replace(old, new))
    with pytest.raises(UserError, match=re.escape(says)):
        claims.read(folder)
    assert main([str(folder)]) == 1
    assert says in capsys.readouterr().err
