"""The loader's thread: the next step is made while one is trained on, and nothing else changes."""

import threading

import pytest

from kdlab.errors import UserError
from kdlab.training.callbacks import Steps


class Stream:
    """Numbers that say when they are made; the fifth cannot be."""

    def __init__(self):
        self.threads = set()
        self.is_made = [threading.Event() for _ in range(5)]

    def __iter__(self):
        for number, event in enumerate(self.is_made):
            if number == 4:
                raise UserError("labels.arrow is damaged")
            self.threads.add(threading.current_thread())
            event.set()
            yield number


def alive() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("steps")}


def test_the_next_step_is_made_while_one_is_used_and_in_their_order():
    stream = Stream()
    steps = iter(Steps(stream))
    assert next(steps) == 0
    assert stream.is_made[1].wait(30)  # with nobody asking for it
    assert not stream.is_made[2].is_set()  # one alone: memory holds no more
    assert [next(steps) for _ in range(3)] == [1, 2, 3]
    assert len(stream.threads) == 1 and threading.main_thread() not in stream.threads


def test_what_the_thread_cannot_make_is_an_error_of_the_training():
    before, steps = alive(), iter(Steps(Stream()))
    with pytest.raises(UserError, match=r"labels\.arrow is damaged"):
        for _ in steps:
            pass
    assert not alive() - before


def test_a_training_that_ends_leaves_no_thread():
    before = alive()
    steps = iter(Steps(Stream()))
    next(steps)
    assert alive() - before
    steps.close()
    assert not alive() - before
