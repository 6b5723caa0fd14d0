"""What strategies hold and send on two ranks is what kdlab.budget says: within 5 %."""

import pytest

from tests.footprint_ranks import STRATEGIES, table


@pytest.fixture(scope="module")
def found():
    return table()


def test_what_is_held_between_steps(found):
    assert {row["strategy"] for row in found} == set(STRATEGIES)
    for row in found:
        for part in ("parameters", "gradients", "optimizer", "teacher"):
            assert row["measured"][part] == pytest.approx(row["said"][part], rel=0.05), row


def test_what_is_sent_in_a_step(found):
    for row in found:
        kinds = [name for name in row["said"] if name.startswith("sent ")]
        everything = sum(row["said"][kind] for kind in kinds)
        for kind in kinds:  # a few hundred bytes of counts, sums and norms are not said
            assert row["measured"].get(kind, 0) == pytest.approx(row["said"][kind], rel=0.05, abs=0.001 * everything), (
                row
            )


def test_a_teacher_in_parts_is_half_of_it_on_each_of_two_ranks(found):
    held = {row["strategy"]: row["measured"]["teacher"] for row in found}
    assert held["zero3, teacher sharded"] * 2 == held["zero3"]
