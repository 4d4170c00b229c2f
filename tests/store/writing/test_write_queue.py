"""prefetch yields the same items, makes the next one in a thread, and makes none after it is closed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratalens.store.writing.write_queue import prefetch


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stratalens-prefetch")]


@given(st.lists(st.one_of(st.none(), st.integers())))
def test_the_same_items(items: list[int | None]) -> None:
    assert list(prefetch(iter(items))) == items
    assert threads() == []


def test_the_next_item_is_made_while_one_is_used() -> None:
    used, making = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        making.set()
        assert used.wait(60)  # this item is being made while the caller uses the first
        yield 2

    items_ahead = prefetch(items())
    assert next(items_ahead) == 1
    assert making.wait(60)
    used.set()
    assert list(items_ahead) == [2]


def test_nothing_is_made_once_it_is_closed() -> None:
    started: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            started.append(number)
            yield number

    items_ahead = prefetch(items())
    assert next(items_ahead) == 0
    items_ahead.close()
    assert started == [0, 1]  # item 1 was being made when the generator closed
    assert threads() == []


def test_an_error_comes_where_the_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("no second")

    items_ahead = prefetch(items())
    assert next(items_ahead) == 1
    with pytest.raises(ValueError, match="no second"):
        next(items_ahead)
    assert threads() == []
