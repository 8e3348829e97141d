from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.linetimes import LIMIT, LineTimes

START = 1_769_817_600.0


def test_a_byte_has_the_time_of_the_write_that_brought_it() -> None:
    times = LineTimes()
    times.wrote(0, START)
    times.wrote(10, START + 1.5)
    times.wrote(25, START + 2)
    assert [times.at(offset) - START for offset in (0, 9, 10, 24, 25, 1000)] == [0, 0, 1.5, 1.5, 2, 2]


def test_there_is_no_time_before_the_first_write() -> None:
    times = LineTimes()
    with pytest.raises(LookupError):
        times.at(0)
    times.wrote(5, START)
    with pytest.raises(LookupError):
        times.at(4)


def test_a_log_that_is_written_fast_for_long_has_an_index_of_bounded_size_and_good_precision() -> None:
    times = LineTimes()
    for millisecond in range(10 * LIMIT):
        times.wrote(millisecond * 80, START + millisecond / 1000)
        assert len(times) <= LIMIT
    assert times.precision == 0.016
    assert len(times) > LIMIT // 2


def test_of_a_clock_that_is_set_back_and_forth_the_index_stays_bounded() -> None:
    times = LineTimes(limit=4)
    for write in range(100):
        times.wrote(write, START - 3600 * (write % 2))
        assert len(times) <= 4
    assert abs(times.at(99) - START) < times.precision


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1e5)), max_size=60), st.integers(2, 8))
def test_no_time_is_off_by_as_much_as_the_precision(writes: list[tuple[int, float]], limit: int) -> None:
    times = LineTimes(limit)
    true: list[tuple[int, float]] = []
    offset, now = 0, START
    for length, wait in writes:
        times.wrote(offset, now)
        true.append((offset, now))
        offset += length
        now += wait
        assert len(times) <= limit
    for begin, time in true:
        assert 0 <= time - times.at(begin) < times.precision
    if times.precision > 0.001:
        assert times.precision <= 2 * (true[-1][1] - true[0][1] + 0.001) / (limit - 1)
