"""Shuffled batches: shares of workers and ranks, positions that resume, bounded memory, quality of the mixing."""

import json
import pickle
from itertools import chain, islice

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from torch.utils.data import DataLoader

from stratalens.plugin.interop.convert import torch_dataset
from stratalens.store.errors import InputError, MismatchError
from stratalens.store.reading.open import open_store
from support.stores import make_store
from support.thorough import THOROUGH, some

BLOCK, BLOCKS, MIXED = 32, 64, 8
EPOCHS = 200 if THOROUGH else 40
BUFFER = 2 * MIXED * BLOCK * 4  # bytes of two pools of eight blocks of 32 float32 numbers


@pytest.fixture(scope="module")
def data(path):
    """Aligned samples whose first number is different in every sample."""
    return torch_dataset(open_store(path, chunks=None), stage=["s1", "s2"], aligned=True)


def numbers(batches):
    """Return one number for each sample."""
    return torch.cat([batch.flatten(1)[:, 0] for batch in batches]).tolist()


def rows_in_memory(count):
    """Return a data set whose sample n is the number n."""
    array = xr.DataArray(
        np.arange(count, dtype=np.float32)[:, None],
        dims=("entity", "d_model"),
        coords={"entity": np.arange(count).astype(str)},
        name="resid_post",
        attrs={"kind": "site"},
    )
    return torch_dataset(array.to_dataset())


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_share_an_epoch(data, shuffle, workers):
    everything = sorted(numbers(data.batches(9, shuffle=False)))
    for drop_last in (False, True):
        shares, counts = [], []
        for rank in range(3):
            batches = data.batches(9, shuffle=shuffle, seed=5, rank=(rank, 3), drop_last=drop_last)
            loader = DataLoader(batches, batch_size=None, num_workers=workers) if workers else batches
            shares.append(list(loader))
            counts.append(batches.count(workers))
        assert counts == [[len(share) for share in shares]] * 3
        rows = numbers(batch for share in shares for batch in share)
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(everything)
        assert drop_last or sorted(rows) == everything


def test_every_rank_has_a_share_of_a_single_block(tmp_path):
    path = make_store(tmp_path / "run.zarr", 2, 2, 11, block_size=11)
    data = torch_dataset(open_store(path), aligned=True)
    shares = [numbers(data.batches(4, seed=0, rank=(rank, 8))) for rank in range(8)]
    assert min(map(len, shares)) == 1
    assert sorted(chain(*shares)) == sorted(numbers(data.batches(4)))


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_saved_position_resumes_with_the_next_batch(data, seed, drop_last):
    arguments = {"seed": seed, "buffer_bytes": 9000, "drop_last": drop_last}
    batches = data.batches(9, **arguments)
    batches.set_epoch(2)
    states, rows = [json.loads(json.dumps(batches.state_dict()))], []
    for batch in batches:
        rows.append(numbers([batch]))
        states.append(json.loads(json.dumps(batches.state_dict())))
    assert batches.mixed_blocks[0] < batches.mixed_blocks[1]  # several pools
    for number, state in some(list(enumerate(states))[0 if seed else 1 :], 2):
        resumed = data.batches(9, **arguments)
        resumed.load_state_dict(state)
        assert resumed.epoch == 2
        assert resumed.state_dict()["position"] == state["position"]
        resumed.set_epoch(2)  # as before every epoch
        assert [numbers([batch]) for batch in resumed] == rows[number:]
        if seed:  # the next epochs are complete, and those of an uninterrupted run
            for epoch in (2, 3):
                resumed.set_epoch(epoch)
                batches.set_epoch(epoch)
                assert numbers(resumed) == numbers(batches)
    resumed.load_state_dict(states[4])
    resumed.set_epoch(3)  # a position of another epoch does not count
    assert len(numbers(resumed)) == sum(map(len, rows))


def test_a_position_counts_samples_and_not_batches(data):
    batches = data.batches(9, seed=1)
    expected = numbers(batches)
    list(islice(batches, 3))
    other = data.batches(5, seed=1)
    other.load_state_dict(batches.state_dict())
    assert numbers(other) == expected[27:]


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 2}, "entropy"), ({"buffer_bytes": 5000}, "buffer_bytes"), ({"rank": (1, 2)}, "rank")],
)
def test_a_position_of_another_order_is_refused(data, change, name):
    batches = data.batches(9, seed=1)
    next(iter(batches))
    other = data.batches(9, **{"seed": 1, **change})
    other.load_state_dict(batches.state_dict())
    with pytest.raises(MismatchError, match=f"was reached with {name}="):
        iter(other)


def test_a_position_of_another_store_is_refused(data, tmp_path):
    batches = data.batches(9, seed=1)
    next(iter(batches))
    path = make_store(tmp_path / "run.zarr", 2, 1, 30)
    other = torch_dataset(open_store(path), aligned=True).batches(9, seed=1)
    other.load_state_dict(batches.state_dict())
    with pytest.raises(MismatchError, match="was reached with samples=80, and these batches have samples=30"):
        iter(other)
    with pytest.raises(InputError, match=r"not the state of batches.*StatefulDataLoader"):
        other.load_state_dict({"_snapshot": {}})


def test_the_protocol_of_stateful_loaders(data):
    """torchdata loads the state of the data set, makes an iterator, and loads the state of the iterator."""
    batches = data.batches(9, seed=1)
    expected = [numbers([batch]) for batch in batches]
    iterator = iter(batches)
    for stop in (2, 5):
        rows = [numbers([next(iterator)]) for _ in range(stop)]
        states = pickle.loads(pickle.dumps((batches.state_dict(), iterator.state_dict())))
        assert states[0] == states[1]
        batches = data.batches(9, seed=1)
        batches.load_state_dict(states[0])
        iterator = iter(batches)
        iterator.load_state_dict(states[1])
        start = states[0]["position"] // 9
        assert rows == expected[start - stop : start]
    assert [numbers([batch]) for batch in iterator] == expected[7:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 with torch 2.13
@pytest.mark.parametrize("workers", [0, 2])
def test_the_stateful_loader_of_torchdata_resumes(data, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def loader():
        batches = data.batches(9, seed=1)
        return batches, stateful.StatefulDataLoader(batches, batch_size=None, num_workers=workers)

    _, uninterrupted = loader()
    expected = [numbers([batch]) for batch in uninterrupted]
    for stop in (0, 4, len(expected)):
        _, first = loader()
        rows = [numbers([batch]) for batch in islice(first, stop)]
        batches, second = loader()
        second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
        rows += [numbers([batch]) for batch in second]
        assert rows[: len(expected)] == expected
        batches.set_epoch(1)
        assert sorted(numbers(second)) == sorted(chain(*expected))


def test_the_position_of_workers_is_not_that_of_the_training_process(data):
    batches = data.batches(9, seed=1)
    list(DataLoader(batches, batch_size=None, num_workers=1))
    with pytest.raises(InputError, match="StatefulDataLoader"):
        batches.state_dict()
    next(iter(batches))
    assert batches.state_dict()["position"] == 9


@pytest.mark.parametrize("buffer_bytes", [1500, 4000, 30_000])
def test_memory_stays_within_the_buffer(stores, data, buffer_bytes):
    """Blocks that are too large are divided, so that at least eight are mixed."""
    for samples in (data, torch_dataset(open_store(stores["bfloat16"]), aligned=True)):
        batches = samples.batches(9, seed=0, buffer_bytes=buffer_bytes)
        rows = numbers(batches)
        assert sorted(rows) == sorted(numbers(samples.batches(9)))
        assert sum(buffer.values.nbytes for buffer in batches._buffers) <= buffer_bytes
        least = min(8, buffer_bytes // 2 // samples.reader.row_nbytes)
        assert batches.mixed_blocks[0] >= min(least, batches.mixed_blocks[1])


def block_numbers(data, seed):
    """Return the block of every sample in the order of an epoch, shape (pools, samples of a pool)."""
    batches = data.batches(MIXED * BLOCK, seed=seed, buffer_bytes=BUFFER)
    return np.array([batch[:, 0].numpy().astype(int) for batch in batches]) // BLOCK


def test_the_mixing_is_a_random_partition_into_pools_that_are_shuffled_completely():
    """The order of the blocks and the order within a pool are uniform."""
    data = rows_in_memory(BLOCK * BLOCKS)
    assert data.batches(1, seed=0, buffer_bytes=BUFFER).mixed_blocks == (MIXED, BLOCKS)
    epochs = np.array([block_numbers(data, seed) for seed in range(EPOCHS)])  # (seed, pool, position)
    placed = np.zeros((BLOCKS, BLOCKS // MIXED))
    for epoch in epochs:
        for number, pool in enumerate(epoch):
            placed[np.unique(pool), number] += 1
    assert (placed.sum(axis=1) == EPOCHS).all()  # a block is in one pool
    expected = EPOCHS * MIXED / BLOCKS
    assert stats.chi2.sf(((placed - expected) ** 2 / expected).sum(), placed.size - BLOCKS) > 1e-3
    # Within a pool, the first half of the positions has half of each block: hypergeometric.
    half = MIXED * BLOCK // 2
    first = np.array([[np.bincount(pool[:half], minlength=BLOCKS)[np.unique(pool)] for pool in e] for e in epochs])
    variance = BLOCK / 4 * (1 - (BLOCK - 1) / (MIXED * BLOCK - 1))
    assert abs(first.mean() - BLOCK / 2) < 1e-9
    assert abs(first.var() / variance - 1) < 0.05
    # Two samples of a batch are of one block as often as two random samples of the pool.
    batch = epochs.reshape(EPOCHS, -1, 16)
    pairs = np.mean([(batch[..., i] == batch[..., j]).mean() for i in range(16) for j in range(i)])
    assert abs(pairs / ((BLOCK - 1) / (MIXED * BLOCK - 1)) - 1) < 0.03


def test_neighbours_within_a_pool_are_independent():
    x = np.concatenate([batch[:, 0].numpy() for batch in rows_in_memory(4096).batches(64, seed=0)])
    assert abs(stats.spearmanr(x, np.arange(4096)).statistic) < 4 / np.sqrt(4096)  # all rows are one pool
    assert abs(stats.spearmanr(x[1:], x[:-1]).statistic) < 4 / np.sqrt(4096)


def test_the_variance_of_batch_means_is_that_of_the_documentation():
    """It is 1 + rho * batch * (1 / mixed - 1 / all) times that of a full shuffle; rho is the share between blocks."""
    rng = np.random.default_rng(0)
    rho, size, data = 0.2, 64, rows_in_memory(BLOCK * BLOCKS)
    ratios = []
    for seed in range(EPOCHS):
        values = np.sqrt(rho) * np.repeat(rng.standard_normal(BLOCKS), BLOCK)
        values += np.sqrt(1 - rho) * rng.standard_normal(len(data))
        batches = data.batches(size, seed=seed, buffer_bytes=BUFFER)
        means = np.array([values[batch[:, 0].numpy().astype(int)].mean() for batch in batches])
        ratios.append(((means - values.mean()) ** 2).mean() / (values.var() / size))
    assert abs(np.mean(ratios) / (1 + rho * size * (1 / MIXED - 1 / BLOCKS)) - 1) < 0.15
