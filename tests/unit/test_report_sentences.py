"""sentences.csv: counts that outlive the store. What claims make of them is in test_report_claims.py."""

import dataclasses
import shutil

import pytest

from kdlab.errors import UserError
from kdlab.report import results, sentences
from kdlab.report.__main__ import main
from kdlab.report.results import Result
from tests.report_runs import Runs


def test_reports_of_judged_experiments_keep_sentences(tmp_path):
    counts = [[3, 4, 3, 2, 1, 0, 3, 2, 1, 0], [5, 5, 5, 4, 3, 2, 5, 4, 3, 2]]
    runs, folder = Runs(tmp_path), tmp_path / "experiments" / "hinton"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# hinton\n")
    (tmp_path / "runs" / "hinton").mkdir(parents=True)

    def add(seed):
        kept = {"student": {"wmt20": {"bleu": counts, "chrf": []}}}
        runs.add("hinton", seed=seed, scores={"wmt20": 20.0}, alone={"wmt20": 18.0}, statistics=kept)
        assert main([str(folder), f"runs={tmp_path / 'runs'}"]) == 0

    add(1)
    assert not (folder / "sentences.csv").exists()  # nobody judges it
    (folder.parent / "claims.yaml").write_text("claims: []\n")
    add(2)
    students = [(one.key, "wmt20", 20.0) for one in results.read(folder / "results.csv") if one.model == "student"]
    kept = sentences.read(folder)
    assert len(students) == 2 and set(kept) == set(students)
    assert [sentences.unpack(text) for text in kept.values()] == [counts, counts]

    add(3)
    table = folder / "results.csv"
    table.write_text(table.read_text().replace("20.0,", "20.5,"))  # as another machine trained them
    assert len(sentences.read(folder)) == 3
    assert main([str(folder), f"runs={tmp_path / 'runs'}"]) == 0
    assert sentences.read(folder) == {}  # neither kept nor added
    table.write_text(table.read_text().replace("20.5,", "20.0,"))
    assert main([str(folder), f"runs={tmp_path / 'runs'}"]) == 0
    assert len(sentences.read(folder)) == 3

    before = (folder / "sentences.csv").read_bytes()
    shutil.rmtree(tmp_path / "store")
    assert main([str(folder), f"runs={tmp_path / 'none'}"]) == 0
    assert (folder / "sentences.csv").read_bytes() == before


def test_reports_of_several_folders_keep_the_sentences_of_all(tmp_path):
    counts = [[3, 4, 3, 2, 1, 0, 3, 2, 1, 0]]
    (tmp_path / "claims.yaml").write_text("claims: []\n")
    one = Result(key="a", test="t", bleu=20.0, seed=1)
    for name, score in (("out", 20.0), ("same", 20.0), ("other", 21.0)):
        results.write(tmp_path / name / "results.csv", [dataclasses.replace(one, bleu=score)])
    for name, score in (("same", 20.0), ("other", 21.0)):
        (tmp_path / name / "sentences.csv").write_text(f"key,test,score,bleu\na,t,{score},{sentences.pack(counts)}\n")
    assert main([str(tmp_path / "out"), str(tmp_path / "other")]) == 0  # another training: these are not its sentences
    assert sentences.read(tmp_path / "out") == {}
    assert main([str(tmp_path / "out"), str(tmp_path / "same")]) == 0
    assert sentences.read(tmp_path / "out") == {("a", "t", 20.0): sentences.pack(counts)}


@pytest.mark.parametrize(
    "counts", [[], [[0] * 10], [[3, 4, 3, 2, 1, 0, 3, 2, 1, 0], [700, 0, 9, 9, 9, 9, 1, 65535, 0, 7]]]
)
def test_counts_are_unpacked_as_they_were(counts):
    assert sentences.unpack(sentences.pack(counts)) == counts


def test_text_that_is_no_packed_counts_is_refused():
    with pytest.raises(UserError, match="sentences.csv.*restore it from git"):
        sentences.unpack("00000000")
    with pytest.raises(UserError, match="sentences.csv.*restore it from git"):
        sentences.unpack("no base 85: \x7f")
