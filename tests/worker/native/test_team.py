"""A team does every task of every phase once, in the phases' order, and goes on past a member that
is away.
"""

import ctypes
from ctypes import POINTER, c_double, c_int32, c_void_p

import numpy as np
import pytest

from tests.worker.native.kernels import VARIANT_NAMES, kernels

THREADS = (1, 2, 3, 5)
AWAY_S = 0.4


class PhasesStruct(ctypes.Structure):
    """ShoalTestPhases."""

    _fields_ = (
        ("num_threads", c_int32),
        ("num_calls", c_int32),
        ("num_phases", c_int32),
        ("num_tasks", c_int32),
        ("is_together", c_int32),
        ("is_shared", c_int32),
        ("task_us", c_int32),
        ("away_us", c_int32),
        ("away_every", c_int32),
        ("max_away", c_int32),
        ("counts", c_void_p),
        ("num_away", c_int32),
        ("num_too_early", c_int32),
        ("longest_call_s", c_double),
    )


def run(**terms: int) -> tuple[PhasesStruct, np.ndarray]:
    """What came of it, and how often each task was done."""
    library = kernels(VARIANT_NAMES[0])
    library.shoal_test_phases.argtypes = [POINTER(PhasesStruct)]
    library.shoal_test_phases.restype = None
    test = PhasesStruct(**terms)
    counts = np.zeros((test.num_calls, test.num_phases, test.num_tasks), dtype=np.int32)
    test.counts = counts.ctypes.data
    library.shoal_test_phases(ctypes.byref(test))
    return test, counts


@pytest.mark.parametrize("num_threads", THREADS)
@pytest.mark.parametrize("is_together", [0, 1])
@pytest.mark.parametrize("is_shared", [0, 1])
@pytest.mark.parametrize("num_tasks", [1, 7, 40])
def test_each_task_is_done_once_and_in_order(
    num_threads: int, is_together: int, is_shared: int, num_tasks: int
) -> None:
    test, counts = run(
        num_threads=num_threads,
        num_calls=100,
        num_phases=20,
        num_tasks=num_tasks,
        is_together=is_together,
        is_shared=is_shared,
    )
    assert (counts == 1).all()
    assert test.num_too_early == 0


@pytest.mark.parametrize("num_threads", THREADS)
@pytest.mark.parametrize("is_together", [0, 1])
@pytest.mark.parametrize("away_us", [10, 100, 2000])
def test_nor_is_one_done_twice_or_early_when_a_member_is_away(
    num_threads: int, is_together: int, away_us: int
) -> None:
    for _ in range(50):  # until the last member has got tasks
        test, counts = run(
            num_threads=num_threads,
            num_calls=20,
            num_phases=50,
            num_tasks=8,
            is_together=is_together,
            is_shared=1,
            task_us=2,
            away_us=away_us,
            away_every=11,
            max_away=100,
        )
        assert (counts == 1).all()
        assert test.num_too_early == 0
        if test.num_away:
            return
    assert num_threads > 2  # of more there may be no cores


@pytest.mark.parametrize(
    ("is_together", "is_shared", "is_waited_for"),
    [(0, 1, False), (0, 0, True), (1, 1, True)],
    ids=["shared tasks", "own tasks", "all together"],
)
def test_who_is_away_is_waited_for_only_where_it_must(
    is_together: int, is_shared: int, is_waited_for: bool
) -> None:
    for _ in range(50):  # until the worker is awake in time to get a task
        test, counts = run(
            num_threads=2,
            num_calls=1,
            num_phases=20,
            num_tasks=50,
            is_together=is_together,
            is_shared=is_shared,
            task_us=10,
            away_us=int(AWAY_S * 1e6),
            away_every=3,
            max_away=1,
        )
        assert (counts == 1).all()
        if test.num_away:
            break
    assert test.num_away == 1
    assert (test.longest_call_s > AWAY_S) == is_waited_for
