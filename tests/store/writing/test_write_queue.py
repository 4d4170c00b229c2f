"""Pieces that another thread makes a step ahead: the same ones, and none after the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratalens.store.writing.write_queue import prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stratalens-ahead")]


@given(st.lists(st.one_of(st.none(), st.integers())))
def test_the_same_items(items: list[int | None]) -> None:
    assert list(prefetch(iter(items))) == items
    assert threads() == []


def test_the_next_item_is_made_while_one_is_used() -> None:
    used, making = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        making.set()
        assert used.wait(60)  # made, but not given out, while the first is held
        yield 2

    found = prefetch(items())
    assert next(found) == 1
    assert making.wait(60)
    used.set()
    assert list(found) == [2]


def test_nothing_is_made_once_it_is_closed() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    found = prefetch(items())
    assert next(found) == 0
    found.close()
    assert made == [0, 1]  # the one that was being made
    assert threads() == []


def test_an_error_comes_where_the_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no second")

    found = prefetch(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second"):
        next(found)
    assert threads() == []
