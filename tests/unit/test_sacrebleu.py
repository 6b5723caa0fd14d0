"""Scores equal sacreBLEU's own, carry its signature, and are sums of the stored sentence statistics."""

import numpy as np
import pytest
import sacrebleu
from sacrebleu.metrics import BLEU, CHRF

from kdlab.errors import UserError
from kdlab.evaluation.sacrebleu import score

HYPOTHESES = ["The dog bites the man.", "It was not unexpected.", "The man bit him first, of course.", ""]
REFERENCES = [
    ["The dog bit the man.", "It was not unexpected.", "The man had bitten him first.", "Yes."],
    ["The dog had bit the man.", "No one was surprised.", "The man bit the dog first.", "Indeed."],
]


@pytest.mark.parametrize("num_references", [1, 2])
def test_scores_and_signatures_are_sacrebleus(num_references):
    references = REFERENCES[:num_references]
    found = score(HYPOTHESES, references)
    assert found["bleu"]["score"] == sacrebleu.corpus_bleu(HYPOTHESES, references).score > 20
    assert found["chrf"]["score"] == sacrebleu.corpus_chrf(HYPOTHESES, references).score > 40
    version = sacrebleu.__version__
    start = f"nrefs:{num_references}|case:mixed|eff:no|"
    assert found["bleu"]["signature"] == f"{start}tok:13a|smooth:exp|version:{version}"
    assert (
        found["chrf"]["signature"] == f"nrefs:{num_references}|case:mixed|eff:yes|nc:6|nw:0|space:no|version:{version}"
    )


def test_sums_of_the_sentence_statistics_give_the_score():
    found = score(HYPOTHESES, REFERENCES[:1])
    counts = np.array(found["bleu"]["statistics"]).sum(0).tolist()
    assert len(found["bleu"]["statistics"]) == len(HYPOTHESES)
    again = BLEU.compute_bleu(
        correct=counts[2:6], total=counts[6:], sys_len=counts[0], ref_len=counts[1], smooth_method="exp"
    )
    assert again.score == pytest.approx(found["bleu"]["score"])
    sums = np.array(found["chrf"]["statistics"]).sum(0).tolist()
    assert CHRF()._compute_f_score(sums) == pytest.approx(found["chrf"]["score"])


def test_mistakes_are_refused():
    with pytest.raises(UserError, match="4 hypotheses and 3 lines in reference 2"):
        score(HYPOTHESES, [REFERENCES[0], REFERENCES[1][:3]])
    with pytest.raises(UserError, match="metric 'blue' is not known.*did you mean 'bleu'"):
        score(HYPOTHESES, REFERENCES, ["blue"])
    assert list(score(HYPOTHESES, REFERENCES, ["bleu"])) == ["bleu"]
