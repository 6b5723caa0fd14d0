"""The table of tests/parity.py holds: a strategy chooses how the work is spread, never the result."""

import pytest

from tests.continuing import LINKS
from tests.parity import EVERYTHING, OBJECTIVES, OPTIMS, RUN, STRATEGIES, VARIANTS_RUN, table

BOUNDS = {
    "sgd": {"grad_norm": 2e-6, "terms": 5e-6, "logits": 1e-5, "weights": 1e-6},
    "adam": {"grad_norm": 2e-6, "terms": 5e-6, "logits": 1e-4, "weights": 2e-5},
    "bf16": {"grad_norm": 2e-2, "terms": 1e-2, "logits": 5e-2, "weights": 5e-3},  # 10 steps of Adam move 4e-3
}


@pytest.fixture(scope="module")
def found():
    return table()


def test_every_strategy_gives_the_numbers_of_one_process(found):
    rows = found["rows"]
    whole = [title for title in STRATEGIES if "," not in title]
    few = len(whole) * len(RUN) + (len(STRATEGIES) - len(whole)) * len(VARIANTS_RUN)
    assert len(rows) == 3 + (len(STRATEGIES) * len(OBJECTIVES) * len(OPTIMS) if EVERYTHING else few)
    assert {row["run"].partition(",")[0] for row in rows} == set(OBJECTIVES)
    for row in rows:
        for kind, bound in BOUNDS[row["run"].rpartition(", ")[2]].items():
            assert row[kind] <= bound, row  # NaN is not
        assert row["ranks equal"], row


def test_long_sentences_beside_short_ones_give_the_gradient_of_one_process(found):
    for title, distance in found["gradient of [long, short] and [short, long]"].items():
        assert distance <= 1e-6, title


def test_a_planted_defect_shows(found):
    assert len(found["planted"]) == 6
    for title, distance in found["planted"].items():
        assert distance > 1e-3, title


def test_a_run_that_stops_in_the_middle_of_an_epoch_goes_on_exactly(found):
    """Dropout on; log, weights and validations of the rest, bit for bit."""
    assert found["stopped and gone on"]
    for title, same in found["stopped and gone on"].items():
        assert all(same.values()), (title, same)


def test_a_run_goes_through_every_strategy_and_back_to_one_process(found):
    chain = found["chain"]
    assert chain["same steps"]
    assert max(chain["numbers"], chain["weights"], chain["validations"]) < 2e-6
    assert set(chain["saved"]) == {"single", *LINKS, "single again"}
    alone = chain["saved"]["single"]
    assert all(name.startswith(("student.", "projections.")) for name in alone["weights"])
    for title, saved in chain["saved"].items():
        assert (saved["weights"], saved["moments"]) == (alone["weights"], alone["moments"]), title
        names_and_places = 400 * 4 * len(alone["weights"])  # of a tensor in a file
        assert saved["bytes"] <= 1.1 * saved["bytes of student and optimizer"] + names_and_places, title
