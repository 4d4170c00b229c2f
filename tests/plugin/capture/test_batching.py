"""Length buckets hold every row once, uncut, at the lowest cost; batch sizes shrink when memory runs out."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stratalens.plugin.capture.batching import BatchSize, length_buckets, out_of_memory
from stratalens.plugin.models.adapters import adapt
from stratalens.store.errors import InputError
from support.models import TwoLayers

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=40)
GROUP_COST = 96


@given(LENGTHS)
def test_every_row_once_and_none_cut_short(lengths: list[int]) -> None:
    counts = np.array(lengths)
    groups = length_buckets(np.arange(len(counts)), counts)
    assert sorted(np.concatenate([g.rows for g in groups]).tolist()) == list(range(len(counts)))
    for group in groups:
        assert counts[group.rows].max() == group.pad_to
        assert (np.diff(counts[group.rows]) >= 0).all()
    assert [g.pad_to for g in groups] == sorted({g.pad_to for g in groups})


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6))
def test_no_other_grouping_is_cheaper(lengths: list[int]) -> None:
    groups = length_buckets(np.arange(len(lengths)), np.array(lengths))
    cost = sum(len(g.rows) * g.pad_to + GROUP_COST for g in groups)
    ordered = sorted(lengths)
    for cuts in itertools.product((False, True), repeat=len(ordered) - 1):
        parts = [[ordered[0]]]
        for cut, length in zip(cuts, ordered[1:], strict=True):
            parts.append([length]) if cut else parts[-1].append(length)
        assert cost <= sum(len(p) * max(p) + GROUP_COST for p in parts)


@given(LENGTHS, st.permutations(range(5)))
def test_the_order_of_rows_does_not_matter(lengths: list[int], order: list[int]) -> None:
    counts = np.array(lengths)
    rows = np.arange(len(counts))
    mixed = np.concatenate([rows[k::5] for k in order])
    forwards, backwards = length_buckets(rows, counts), length_buckets(mixed, counts)
    for a, b in zip(forwards, backwards, strict=True):
        assert a.pad_to == b.pad_to
        assert set(a.rows) == set(b.rows)


@given(LENGTHS, st.integers(1, 50))
def test_batches_are_slices_of_a_group(lengths: list[int], size: int) -> None:
    for group in length_buckets(np.arange(len(lengths)), np.array(lengths)):
        parts = list(group.batches(size))
        assert max(map(len, parts)) <= size
        np.testing.assert_array_equal(np.concatenate(parts), group.rows)


def test_batch_size() -> None:
    adapter = adapt(TwoLayers())
    auto = BatchSize("auto", adapter, 1000)
    assert auto.rows(10) > auto.rows(100) >= 1
    assert auto.rows(10**9) == 1
    before = auto.rows(16)
    assert auto.shrink(before, 16)
    assert auto.rows(16) == before // 2
    assert not auto.shrink(1, 16)
    fixed = BatchSize(7, adapter, 1000)
    assert fixed.rows(5) == fixed.rows(5000) == 7
    assert fixed.shrink(7, 5)
    assert fixed.rows(5) == 3
    for wrong in (0, -1, True, "many", 2.5):
        with pytest.raises(InputError, match="batch_size"):
            BatchSize(wrong, adapter, 1000)  # type: ignore[arg-type]


def test_the_text_of_torchs_cpu_out_of_memory_error_is_known() -> None:
    """A huge allocation provokes the real error, which only its text distinguishes from other RuntimeErrors."""
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 58)
    assert type(real.value) is RuntimeError, "torch has a class for this error now: test for it instead"
    assert out_of_memory(real.value), f"torch {torch.__version__} words its out-of-memory error differently"


def test_other_errors_are_not_out_of_memory() -> None:
    assert out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as other:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert not out_of_memory(other.value)
