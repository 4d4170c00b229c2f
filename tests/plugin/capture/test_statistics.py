"""Statistics in float32 against float64 references from NumPy and SciPy; losses against torch's cross-entropy."""

import warnings

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.functional import cross_entropy

from stratalens.plugin.capture import statistics as module
from stratalens.plugin.capture.statistics import (
    ACTIVATION_STATISTICS,
    PERCENTILES,
    activation_statistics,
    negative_log_likelihood,
    output_layer_loss,
    output_statistics,
)
from stratalens.store.format import schema


def reference(x):
    """The activation statistics of float64 rows, by NumPy and SciPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy warns that a constant row has no skewness, as expected
        return {
            "l2": np.linalg.norm(x, axis=-1),
            "l1": np.abs(x).sum(-1),
            "mean": x.mean(-1),
            "std": x.std(-1),
            "max": x.max(-1),
            "min": x.min(-1),
            "skewness": scipy.stats.skew(x, axis=-1),
            "kurtosis": scipy.stats.kurtosis(x, axis=-1),
        }


def assert_close(actual, x, rtol=3e-6):
    """Compare relative to the size of the summands; skewness and kurtosis relative to their own size."""
    expected = reference(x)
    size = np.abs(x).max(-1)
    for name in ACTIVATION_STATISTICS:
        tolerance = rtol * size
        if name in ("l1", "l2"):
            tolerance = rtol * expected[name]
        elif name in ("skewness", "kurtosis"):
            tolerance = rtol * (10 + 3 * np.abs(expected[name]))
        got = actual[name].double().numpy()
        bad = ~((np.abs(got - expected[name]) <= tolerance) | (np.isnan(got) & np.isnan(expected[name])))
        assert not bad.any(), (name, got[bad], expected[name][bad], x[bad])


def test_the_names_are_the_stores():
    assert tuple(schema.STATISTICS) == ACTIVATION_STATISTICS
    assert schema.PERCENTILES == PERCENTILES
    losses = {"loss", "running_loss"}
    assert set(output_statistics(torch.zeros(1, 3))) == set(schema.OUTPUTS) - losses | {"logit_percentile"}


shapes = st.tuples(st.integers(1, 4), st.integers(2, 70))
floats = st.floats(-1e4, 1e4, width=16)


@given(hnp.arrays(np.float32, shapes, elements=floats, fill=st.just(0.0)))
def test_moments_of_any_values(x):
    assert_close(activation_statistics(torch.from_numpy(x)), x.astype(np.float64))


@given(st.integers(0, 2**32 - 1), st.integers(-100, 100), st.sampled_from([0.0, 1.0, 30.0]), st.integers(3, 3000))
def test_moments_at_any_scale(seed, exponent, outlier, d):
    x = np.random.default_rng(seed).standard_normal((3, d))
    x[:, d // 2] += outlier * np.sqrt(d)  # a massive activation, as in residual streams
    x = (x * 2.0**exponent).astype(np.float32)
    assert_close(activation_statistics(torch.from_numpy(x)), x.astype(np.float64))


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6, 1e8])
def test_moments_where_naive_ones_cancel(offset):
    x = np.random.default_rng(0).standard_normal((4, 576)) * 10 + offset
    x32 = x.astype(np.float32)
    x64 = x32.astype(np.float64)
    naive = np.sqrt(np.maximum((x32**2).mean(-1) - x32.mean(-1) ** 2, 0))
    actual = activation_statistics(torch.from_numpy(x32))
    np.testing.assert_allclose(actual["std"].numpy(), x64.std(-1), rtol=3e-6)
    np.testing.assert_allclose(actual["skewness"].numpy(), scipy.stats.skew(x64, axis=-1), atol=1e-5)
    np.testing.assert_allclose(actual["kurtosis"].numpy(), scipy.stats.kurtosis(x64, axis=-1), atol=1e-5)
    if offset >= 1e4:  # the inputs do cancel, so the test can fail
        assert np.abs(naive / x64.std(-1) - 1).max() > 1e-3


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -7.3, 1e30, 1e-30])
@pytest.mark.parametrize("d", [1, 64, 577])
def test_constant_rows(value, d):
    actual = activation_statistics(torch.full((2, d), value))
    value = np.float64(np.float32(value))
    assert (actual["std"] == 0).all()
    assert actual["skewness"].isnan().all()
    assert actual["kurtosis"].isnan().all()
    for name in ("mean", "max", "min"):
        assert (actual[name].double() == value).all()
    np.testing.assert_allclose(actual["l2"].double(), abs(value) * np.sqrt(d), rtol=1e-6)
    np.testing.assert_allclose(actual["l1"].double(), abs(value) * d, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_exactly(dtype):
    x = (torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    actual = activation_statistics(x)
    assert {value.dtype for value in actual.values()} == {torch.float32}
    assert {value.shape for value in actual.values()} == {(3, 5)}
    assert_close(actual, x.double().numpy())


def test_float16_rows_whose_squares_would_overflow():
    x = torch.linspace(-6e4, 6.5e4, 128).half()[None]
    assert_close(activation_statistics(x), x.double().numpy())


def test_float32_rows_whose_powers_would_overflow_or_vanish():
    x = np.random.default_rng(1).standard_normal((2, 64))
    for scale in (1e30, 1e-30):
        scaled = (x * scale).astype(np.float32)
        assert_close(activation_statistics(torch.from_numpy(scaled)), scaled.astype(np.float64))


def test_leading_and_feature_dims():
    x = torch.randn(4, 3, 2, 9, 16)
    actual = activation_statistics(x)
    assert actual["l2"].shape == (4, 3, 2, 9)
    one = activation_statistics(x[2, 1, 1, 5])
    for name in ACTIVATION_STATISTICS:
        assert one[name].shape == ()
        assert torch.equal(actual[name][2, 1, 1, 5], one[name])
    flat = activation_statistics(x.flatten(-2))
    both = activation_statistics(x, feature_ndim=2)
    for name in ACTIVATION_STATISTICS:
        assert torch.equal(both[name], flat[name])
    assert activation_statistics(x[:0])["mean"].shape == (0, 3, 2, 9)


def test_nan_and_infinity_show():
    x = torch.zeros(2, 8)
    x[0, 3], x[1, 3] = torch.nan, torch.inf
    actual = activation_statistics(x)
    assert all(actual[name][0].isnan() for name in ACTIVATION_STATISTICS)
    assert actual["max"][1] == actual["l1"][1] == torch.inf
    assert actual["std"][1].isnan()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("d", [7, 576, 50257])
def test_a_row_does_not_depend_on_the_other_rows(threads, d):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = torch.randn(19, d, generator=torch.Generator().manual_seed(d)) * 3 + 1
        whole = {**activation_statistics(x), **output_statistics(x)}
        for rows in (slice(0, 1), slice(18, 19), slice(3, 5), slice(2, 19)):
            part = {**activation_statistics(x[rows]), **output_statistics(x[rows])}
            for name, values in whole.items():
                assert torch.equal(values[rows], part[name]), name
    finally:
        torch.set_num_threads(before)


def test_the_tile_size_changes_nothing(monkeypatch):
    x = torch.randn(23, 300)
    whole = output_statistics(x)
    monkeypatch.setattr("stratalens.plugin.capture.statistics._TILE_CPU", 1)
    for name, values in output_statistics(x).items():
        assert torch.equal(values, whole[name]), name


def output_reference(z):
    """The output statistics of float64 logits, by NumPy and SciPy."""
    logp = scipy.special.log_softmax(z, axis=-1)
    actual = {f"logit_{name}": value for name, value in reference(z).items()}
    actual["entropy"] = scipy.special.entr(np.exp(logp)).sum(-1)
    actual["max_logprob"] = logp.max(-1)
    actual["logsumexp"] = scipy.special.logsumexp(z, axis=-1)
    actual["logit_percentile"] = np.moveaxis(np.percentile(z, PERCENTILES, axis=-1), 0, -1)
    return actual


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.01, 1.0, 5.0, 100.0]), st.integers(2, 900), st.floats(-1e3, 1e3))
def test_output_statistics(seed, spread, vocabulary, shift):
    z = (np.random.default_rng(seed).standard_normal((2, vocabulary)) * spread + shift).astype(np.float32)
    actual = output_statistics(torch.from_numpy(z))
    expected = output_reference(z.astype(np.float64))
    assert set(actual) == set(expected)
    assert_close({name: actual[f"logit_{name}"] for name in ACTIVATION_STATISTICS}, z.astype(np.float64))
    for name in ("entropy", "max_logprob", "logsumexp", "logit_percentile"):
        size = 1 + np.abs(z).max() if name in ("logsumexp", "logit_percentile") else 10
        np.testing.assert_allclose(actual[name].double(), expected[name], rtol=3e-6, atol=1e-6 * size)


@settings(max_examples=30)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 400)), elements=floats))
def test_percentiles_are_numpys(z):
    actual = output_statistics(torch.from_numpy(z))["logit_percentile"].numpy()
    expected = np.percentile(z.astype(np.float64), PERCENTILES, axis=-1).T
    np.testing.assert_allclose(actual, expected, rtol=2e-7, atol=1e-7 * np.abs(z).max())


def test_a_real_vocabulary_at_once():
    z = torch.randn(2, 3, 49152, generator=torch.Generator().manual_seed(0)).mul(4).bfloat16()
    actual = output_statistics(z)
    expected = output_reference(z.double().numpy())
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name].double(), values, rtol=1e-5, atol=1e-5)
    assert actual["logit_percentile"].shape == (2, 3, len(PERCENTILES))


def test_certain_and_uniform_distributions():
    certain = torch.full((1, 1000), -50.0)
    certain[0, 7] = 80.0
    actual = output_statistics(certain)
    assert actual["entropy"].item() == 0
    assert actual["max_logprob"].item() == 0
    assert actual["logsumexp"].item() == 80
    uniform = output_statistics(torch.full((1, 1000), 1e4))
    assert uniform["entropy"].item() == pytest.approx(np.log(1000), rel=1e-6)


def test_a_forbidden_token_has_no_probability():
    z = torch.tensor([[1.0, 2.0, -torch.inf, 0.5]])
    actual = output_statistics(z)
    expected = output_reference(z[:, [0, 1, 3]].double().numpy())
    for name in ("entropy", "max_logprob", "logsumexp"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-6)
    assert actual["logit_min"].item() == -torch.inf


def test_a_nearly_certain_token_keeps_its_digits():
    # p = 1 / (1 + e): 1 - p is far below what float32 can represent next to 1 after exponentiating plain logits of 60
    z = torch.tensor([[60.0, 50.0, 48.0]])
    actual = output_statistics(z)
    expected = output_reference(z.double().numpy())
    np.testing.assert_allclose(actual["entropy"], expected["entropy"], rtol=1e-3)
    np.testing.assert_allclose(actual["max_logprob"], expected["max_logprob"], rtol=2e-3)


@pytest.mark.gpu
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    x = torch.randn(30, 8, 2, 576) * 5 + 100
    assert_close({k: v.cpu() for k, v in activation_statistics(x.cuda()).items()}, x.double().numpy())
    z = torch.randn(4, 49152) * 4
    actual, expected = output_statistics(z.cuda()), output_reference(z.double().numpy())
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name].cpu().double(), values, rtol=1e-5, atol=1e-5)


def batch(seed, shape, vocabulary, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, vocabulary, generator=generator) * spread
    return logits, torch.randint(vocabulary, shape, generator=generator)


@given(st.integers(0, 10**6), st.tuples(st.integers(1, 4), st.integers(1, 7)), st.integers(2, 40))
def test_losses_token_by_token(seed, shape, vocabulary):
    logits, ids = batch(seed, shape, vocabulary)
    expected = cross_entropy(logits.double().reshape(-1, vocabulary), ids.reshape(-1), reduction="none")
    actual = negative_log_likelihood(logits, ids)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual, expected.reshape(shape), rtol=1e-5, atol=1e-6)


def test_half_precision_logits_and_tiles(monkeypatch):
    logits, ids = batch(2, (5, 6), 50)
    expected = negative_log_likelihood(logits.bfloat16().float(), ids)
    assert torch.equal(negative_log_likelihood(logits.bfloat16(), ids), expected)
    monkeypatch.setattr("stratalens.plugin.capture.statistics._TILE_CPU", 1)
    assert torch.equal(negative_log_likelihood(logits.bfloat16(), ids), expected)


def test_the_loss_of_a_row_does_not_depend_on_the_other_rows():
    logits, ids = batch(3, (11, 9), 577)
    whole = negative_log_likelihood(logits, ids)
    for rows in (slice(0, 1), slice(10, 11), slice(2, 7)):
        assert torch.equal(negative_log_likelihood(logits[rows], ids[rows]), whole[rows])


def test_sure_and_forbidden_tokens():
    logits = torch.tensor([[200.0, 0.0, -torch.inf]])
    assert negative_log_likelihood(logits, torch.tensor([0])).item() == 0
    assert negative_log_likelihood(logits, torch.tensor([1])).item() == 200
    assert negative_log_likelihood(logits, torch.tensor([2])).item() == torch.inf
    assert negative_log_likelihood(logits[:0], torch.tensor([], dtype=torch.long)).shape == (0,)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    vocabulary=st.integers(1, 700),
    slices=st.tuples(st.integers(1, 4), st.sampled_from([1, 300, 4096])),
    scale=st.sampled_from([0.1, 1.0, 40.0]),
    cap=st.sampled_from([None, 5.0]),
    bias=st.sampled_from([None, "random", "masked"]),
    seed=st.integers(0, 99),
)
def test_loss_in_slices_of_the_vocabulary(rows, vocabulary, slices, scale, cap, bias, seed):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 5, generator=draw) * scale
    weight = torch.randn(5, vocabulary, generator=draw).T  # not contiguous, as W_U of TransformerLens
    target = torch.randint(0, vocabulary, (rows,), generator=draw)
    shift = None if bias is None else torch.randn(vocabulary, generator=draw)
    if bias == "masked" and shift is not None:
        shift[torch.rand(vocabulary, generator=draw) < 0.4] = -torch.inf  # a whole slice may have no token
        shift[target] = 1.0

    def scale_logits(logits):
        return logits if cap is None else cap * torch.tanh(logits / cap)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SLICE_ROWS", slices[0])
        patch.setattr(module, "_SLICE_CPU", slices[1])
        actual = output_layer_loss(hidden, weight, shift, target, scale_logits)
    logits = hidden.double() @ weight.double().T + (0 if shift is None else shift.double())
    expected = cross_entropy(scale_logits(logits), target, reduction="none") if rows else logits.new_empty(0)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=2e-6, atol=3e-6 * scale)


def test_loss_of_a_token_that_is_nearly_certain_keeps_its_digits():
    weight = torch.tensor([[0.0], [14.0], [-3.0]])
    actual = output_layer_loss(torch.ones(1, 1), weight, None, torch.tensor([1]))
    expected = np.log1p(np.exp(-14.0) + np.exp(-17.0))
    np.testing.assert_allclose(actual.item(), expected, rtol=0.1)  # 8e-7, where 1 + 8e-7 has one digit left
