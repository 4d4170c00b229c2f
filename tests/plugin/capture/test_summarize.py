"""A summary gives the centroids and closed-form probes of the store of the same rows, and resumes to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import stratalens as sl
from stratalens.analyses.data.norm_sketch import ACCURACY
from stratalens.analyses.estimators.closed_form import fit_closed_form
from stratalens.store.errors import InputError, MismatchError, NonFiniteError, StoreBusyError
from stratalens.store.storage.local_locks import FileLock
from support.models import TwoLayers, bridge, run_two_layers, table, tokenizer
from support.paths import TESTS
from support.thorough import THOROUGH, thorough

SITES = ("layers.{layer}.hook_state",)
SITE = "state"
MODEL = {"tokenizer": tokenizer(), "forward": run_two_layers, "sites": SITES, "check": False, "progress": False}
METHODS = ("ridge", "lda", "diffmeans")


def summarize(path: Path, stages: Any = None, prompts: Any = None, **options: Any) -> xr.Dataset:
    options = {"by": "group", "positions": ("last", "-2"), "block_size": 8, "batch_size": 4, **options}
    stages = {"s0": TwoLayers(), "s1": TwoLayers(1)} if stages is None else stages
    return sl.summarize(stages, table(60) if prompts is None else prompts, path, **{**MODEL, **options})


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=str(name))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("stored")
    stages = {"s0": TwoLayers(), "s1": TwoLayers(1)}
    options = {**MODEL, "positions": ("last", "-2"), "statistics": False}
    return sl.capture(stages, table(60), folder / "run.zarr", **options).load()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return summarize(tmp_path_factory.mktemp("whole") / "run.summary", sample=12).load()


def reference(x: np.ndarray, codes: np.ndarray, signs: np.ndarray, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Fit the probes of one place to the stored rows, in float64."""
    fit = fit_closed_form(x.astype(np.float64), signs[:, :, None], codes, method)
    return fit.coef, fit.intercept


def test_it_is_the_stored_run(stored: xr.Dataset, whole: xr.Dataset) -> None:
    """Centroids, moments, norms, and the probes of every method, pair and place."""
    site = SITE
    x, codes = stored[site].values, stored["group"].values
    centroids = sl.summary_centroids(whole, site)
    expected = sl.centroids(stored, "group", site, progress=False)
    assert centroids.centroid.dims == expected.centroid.dims
    np.testing.assert_allclose(centroids.centroid, expected.centroid, atol=1e-6)
    for g in range(3):
        rows = x[:, :, codes == g].astype(np.float64)
        deviation = rows - rows.mean(axis=2, keepdims=True)
        own = whole.isel(group=g)
        assert (own["count"] == (codes == g).sum()).all()
        for power, name in ((2, "variance"), (3, "third_moment"), (4, "fourth_moment")):
            np.testing.assert_allclose(own[f"{site}_{name}"], (deviation**power).mean(axis=2), atol=1e-12)
        scatter = np.einsum("slntd,slnte->sltde", deviation, deviation)
        np.testing.assert_allclose(own[f"{site}_scatter"], scatter, atol=1e-11)
        norm = np.linalg.norm(rows, axis=-1)
        np.testing.assert_allclose(own[f"{site}_norm_mean"], norm.mean(axis=2), rtol=1e-12)
        np.testing.assert_allclose(own[f"{site}_norm_std"], norm.std(axis=2), rtol=1e-9)
        quantiles = np.moveaxis(np.quantile(norm, own.q, axis=2, method="lower"), 0, -1)
        np.testing.assert_allclose(own[f"{site}_norm_quantile"], quantiles, rtol=1.01 * ACCURACY)
    for method in METHODS:
        for pairs in ("all", *(("rest",) if method == "lda" else ("ordinal",) if method == "ridge" else ())):
            own = sl.summary_probe(whole, site, pairs, method, folds=0)
            direct = sl.probe(stored, "group", site, pairs, method, progress=False, cache=False, resamples=1)
            assert own.pair.values.tolist() == direct.pair.values.tolist()
            # The probes of a store are solved in float32, to 2e-5 of their length.
            length = np.linalg.norm(direct.coef, axis=-1)
            assert (np.linalg.norm(own.coef - direct.coef, axis=-1) < 2e-5 * length).all()
            cosine = (own.coef * direct.coef).sum(own.coef.dims[-1])
            np.testing.assert_allclose(cosine / length / np.linalg.norm(own.coef, axis=-1), 1, atol=1e-6)
            if pairs == "ordinal":
                continue
            names = ("0", "1", "2")
            for place in np.ndindex(2, 2, 2):
                s, layer, t = place
                for p, (first, second) in enumerate(zip(own.pair_first.values, own.pair_second.values, strict=True)):
                    high = codes == names.index(second)
                    low = ~high if first == "rest" else codes == names.index(first)
                    signs = (high.astype(np.int8) - low.astype(np.int8))[:, None]
                    coef, intercept = reference(x[s, layer, :, t], codes, signs, method)
                    np.testing.assert_allclose(own.coef.values[place][p], coef[0], rtol=1e-6, atol=1e-6)
                    np.testing.assert_allclose(own.intercept.values[place][p], intercept[0], rtol=1e-6, atol=1e-6)


def test_accuracies_come_from_entities_that_the_probe_never_saw(stored: xr.Dataset, whole: xr.Dataset) -> None:
    """The same as taking the rows of the fold out of the store and fitting to the rest."""
    own = sl.summary_probe(whole, SITE, [("0", "1")], "lda", folds=2)
    assert own.attrs["accuracies"] == "from a sample of the rows"
    assert (own.sample_rows == 24).all()  # 12 of each group, one row an entity
    assert ((own.sample_accuracy_low <= own.sample_accuracy) & (own.sample_accuracy <= own.sample_accuracy_high)).all()
    place = {"stage": 1, "layer": 0, "token": 1}
    sampled, values = whole.sample_entity.isel(stage=1, token=1).values, whole[f"{SITE}_sample"].isel(place).values
    x, codes = stored[SITE].isel(place).values, stored["group"].values
    numbers = np.unique(sampled)
    right = []
    for k in range(2):
        test = [np.isin(sampled[g], numbers[k::2]) for g in (0, 1)]
        unseen = np.concatenate([values[g][test[g]] for g in (0, 1)])
        rest = (codes < 2) & ~(x[:, None] == unseen).all(axis=-1).any(axis=1)
        coef, intercept = reference(
            x[rest], codes[rest], np.where(codes[rest] == 1, 1, -1)[:, None].astype(np.int8), "lda"
        )
        for g in (0, 1):
            right += (((values[g][test[g]] @ coef[0] + intercept[0]) > 0) == (g == 1)).tolist()
    assert float(own.sample_accuracy.isel({**place, "pair": 0})) == pytest.approx(np.mean(right))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_all_tokens_by_token_class(kind: str, tmp_path: Path) -> None:
    """Another architecture in bfloat16, a site with heads, one outside the blocks, and every token of the prompts."""
    model, prompts = bridge(kind, dtype=torch.bfloat16), table(12)
    options: dict[str, Any] = {"sites": ("resid_post", "z", "embed"), "positions": "all", "progress": False}
    stored = sl.capture(model, prompts, tmp_path / "run.zarr", statistics=False, **options).load()
    ids = [tokenizer()(prompt).input_ids for prompt in prompts.labels()["prompt"]]
    common = np.unique(np.concatenate(ids))
    classes = {"first": common[: len(common) // 3].tolist(), "second": common[len(common) // 3 : -2].tolist()}
    own = sl.summarize(model, prompts, tmp_path / "run.summary", by=classes, sample=64, batch_size=5, **options)
    assert own.token.values.tolist() == ["all"]
    assert "layer" not in own.embed_mean.dims
    assert own.z_mean.dims == ("stage", "layer", "token", "group", "head", "d_head")
    assert own.attrs["entities_in_several_groups"] == 1
    code = np.full(stored.resid_post.shape[2:4], -1)
    for row, tokens in enumerate(ids):
        code[row, code.shape[1] - len(tokens) :] = [
            0 if i in classes["first"] else 1 if i in classes["second"] else -1 for i in tokens
        ]
    for site in ("resid_post", "z", "embed"):
        x = stored[site].values.reshape(*stored[site].shape[: stored[site].dims.index("token") + 1], -1)
        for g in range(2):
            rows = x[..., code == g, :].astype(np.float64)
            mean = own[f"{site}_mean"].isel(token=0, group=g).values
            np.testing.assert_allclose(mean.reshape(rows.mean(axis=-2).shape), rows.mean(axis=-2), atol=1e-12)
    rows, codes = stored.resid_post.values[0, 1][code >= 0], code[code >= 0]
    for method in METHODS:
        probes = sl.summary_probe(own, method=method, folds=2)
        coef, intercept = reference(rows, codes, np.where(codes == 1, 1, -1)[:, None].astype(np.int8), method)
        np.testing.assert_allclose(probes.coef.values[0, 1, 0, 0], coef[0], rtol=1e-6, atol=1e-6 * abs(coef).max())
        np.testing.assert_allclose(probes.intercept.values[0, 1, 0, 0], intercept[0], rtol=1e-6, atol=1e-6)
    sampled = own.sample_entity.values[0, 0]
    assert set(sampled[0]) | set(sampled[1]) != {-1}
    for g in range(2):  # whole prompts, in both groups
        present = own.resid_post_sample.values[0, 1, 0, g][sampled[g] >= 0]
        assert (present[:, None] == rows[codes == g][None]).all(axis=-1).any(axis=1).all()


def test_an_interrupted_run_resumes_to_the_same_bits(whole: xr.Dataset, tmp_path: Path) -> None:
    """Interrupted at ever later batches, in any stage, with the state of every block saved."""

    class Stop(BaseException):
        pass

    interruptions = 0
    while True:
        reports = [0]

        def report(
            stage: str, done: int, total: int, reports: list[int] = reports, most: int = 5 + interruptions
        ) -> None:
            reports[0] += 1
            if reports[0] > most:
                raise Stop

        try:
            resumed = summarize(tmp_path / "run.summary", sample=12, checkpoint_seconds=0, progress=report)
            break
        except Stop:
            interruptions += 1
            assert not (tmp_path / "run.summary" / "stage-001").exists()
    assert interruptions > 4
    same(whole, resumed)
    assert sorted(p.name for p in (tmp_path / "run.summary").iterdir()) == [
        ".lock",
        "stage-000",
        "stage-001",
        "summary.json",
    ]
    # A process that was killed after it finished a stage leaves the saved sums.
    (tmp_path / "run.summary" / "stage-001.state").write_bytes(b"x")
    same(whole, summarize(tmp_path / "run.summary", sample=12))
    added = {"s0": TwoLayers(), "s1": TwoLayers(1), "s2": TwoLayers(2)}
    more = summarize(tmp_path / "run.summary", added, sample=12)
    assert more.stage.values.tolist() == ["s0", "s1", "s2"]
    same(whole, more.isel(stage=slice(2)))


def test_summaries_of_ranks_and_of_shards_merge_in_any_order(whole: xr.Dataset, tmp_path: Path) -> None:
    parts = [tmp_path / f"rank{r}" for r in range(3)]
    for r, part in enumerate(parts):
        summarize(part, sample=12, rank=(r, 3))
    merged = sl.merge_summaries(parts, tmp_path / "merged").load()
    same(merged, sl.merge_summaries(parts[::-1], tmp_path / "reversed"))
    results = [merged]
    if THOROUGH:
        two = sl.merge_summaries(parts[1:], tmp_path / "two").attrs["path"]
        results.append(sl.merge_summaries([two, parts[0]], tmp_path / "nested"))
    for data in results:
        for name in whole.data_vars:
            exact = name in ("count", f"{SITE}_norm_counts", f"{SITE}_sample") or str(name).startswith("sample")
            close = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-6}
            np.testing.assert_allclose(data[name], whole[name], **close, err_msg=str(name))
        own, direct = sl.summary_probe(data, SITE, method="lda"), sl.summary_probe(whole, SITE, method="lda")
        np.testing.assert_allclose(own.coef, direct.coef, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(own.sample_accuracy, direct.sample_accuracy)
    with pytest.raises(MismatchError, match="would count twice"):
        sl.merge_summaries([parts[0], tmp_path / "merged"], tmp_path / "twice")
    frame = table(60).frame
    shards = [tmp_path / f"shard{n}" for n in range(2)]
    for rows, shard in zip((frame["group"] != 1, frame["group"] == 1), shards, strict=True):
        summarize(shard, prompts=sl.PromptTable.from_dataframe(frame[rows]), sample=12, order=[0, 1, 2])
    joined = sl.merge_summaries(shards, tmp_path / "joined")
    np.testing.assert_allclose(joined[f"{SITE}_mean"], whole[f"{SITE}_mean"], atol=1e-12)
    np.testing.assert_array_equal(joined[f"{SITE}_sample"], whole[f"{SITE}_sample"])
    with pytest.raises(InputError, match="has 0 rows"):
        sl.summary_probe(sl.open_summary(shards[0]), SITE)


def test_the_forecast_is_the_size(whole: xr.Dataset) -> None:
    folder = Path(whole.attrs["path"])
    chunks = [f for f in folder.rglob("*") if f.is_file() and f.name != "zarr.json" and f.parent != folder]
    actual = sum(f.stat().st_size - 4 for f in chunks)  # without checksums
    options = {k: v for k, v in MODEL.items() if k not in ("check", "progress")}
    stages = {"s0": TwoLayers(), "s1": TwoLayers(1)}
    forecast = sl.forecast_summary(stages, table(60), by="group", positions=("last", "-2"), sample=12, **options)
    assert 0 <= forecast["bytes"] - actual < 0.02 * actual
    assert forecast["rows"] == 60
    assert forecast["stored_bytes"] == 60 * 2 * 2 * 2 * 12 * 4
    larger = sl.forecast_summary(stages, table(60), by="group", rows=forecast["rows_for_one_percent"], **options)
    assert larger["tokens"] > forecast["tokens"]


@pytest.mark.parametrize("layers", [16, 22])  # Pythia 1B, OLMo 1B, Llama 3.2 1B; TinyLlama 1.1B
def test_a_billion_tokens_of_a_1b_model_fit_into_2_gb(layers: int) -> None:
    size = sl.summary_size(layers=layers, features=2048, rows=10**9, groups=2)
    assert size["bytes"] < 2e9
    assert size["stored_bytes"] == 10**9 * layers * 2048 * 2
    assert size["share"] < 1e-4
    rows = size["rows_for_one_percent"]
    before, after = (sl.summary_size(layers=layers, features=2048, rows=n, groups=2)["share"] for n in (rows - 1, rows))
    assert before >= 0.01 > after


def _broken() -> TwoLayers:
    model = TwoLayers()
    with torch.no_grad():
        model.embed.weight.fill_(torch.nan)
    return model


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"prompts": []}, InputError, "no rows|empty"),
        ({"prompts": "text"}, InputError, "neither a PromptTable nor a list"),
        ({"by": "colour"}, InputError, "no label column 'colour'"),
        ({"by": "one"}, InputError, "'one' has one group"),
        ({"by": {}}, InputError, "names no token class"),
        ({"by": {"a": ["two words here"]}}, InputError, "one token"),
        ({"by": {"a": [3], "b": [3]}}, InputError, "in two classes"),
        ({"order": ["x"]}, InputError, "no row of 'group'"),
        ({"sites": ("resid_pots",)}, InputError, "resid_pots"),
        ({"probes": ("logistic",)}, InputError, "logistic"),
        ({"sample": -1}, InputError, "sample=-1"),
        ({"rank": (2, 2)}, InputError, "rank="),
        ({"rank": (9, 10), "block_size": 60}, InputError, "has no rows"),
        ({"stages": _broken()}, NonFiniteError, "stage 'model'.* is nan"),
        ({"path": "s3://bucket/x"}, InputError, "local folder"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], kind: type[Exception], match: str, tmp_path: Path) -> None:
    frame = table(20).frame.assign(one="same")
    options = {"prompts": sl.PromptTable.from_dataframe(frame), "stages": TwoLayers(), **options}
    with pytest.raises(kind, match=match):
        summarize(options.pop("path", tmp_path / "run"), **options)
    assert not list(tmp_path.rglob("stage-*"))


def test_another_run_is_refused(tmp_path: Path, stored: xr.Dataset) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done > 16:
            raise KeyboardInterrupt

    path = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        summarize(path, {"s": TwoLayers()}, checkpoint_seconds=0, progress=stop)
    for stages, options, match in (
        ({"s": TwoLayers(5)}, {}, "weights"),
        ({"t": TwoLayers()}, {}, "same weights"),
        ({"s": TwoLayers()}, {"sample": 3}, "sample"),
        ({"s": TwoLayers()}, {"positions": ("last",)}, "tokens"),
        ({"s": TwoLayers()}, {"probes": ("ridge",)}, "order"),
        ({"s": TwoLayers()}, {"prompts": table(61)}, "prompts"),
        ({"s": TwoLayers()}, {"by": "entity_id"}, "by"),
    ):
        with pytest.raises(MismatchError, match=match):
            summarize(path, stages, **options)
    with pytest.raises(sl.errors.NotRecordedError, match="no stage is complete"):
        sl.open_summary(path)
    with pytest.raises(InputError, match="there is no summary"):
        sl.open_summary(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(InputError, match="is not a summary"):
        summarize(tmp_path / "other")
    state = path / "stage-000.state"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 255
    state.write_bytes(content)
    with pytest.raises(sl.errors.DamagedError, match="Delete it to start the stage again"):
        summarize(path, {"s": TwoLayers()})
    state.unlink()
    lock = FileLock(path / ".lock")
    assert lock.try_acquire()
    with pytest.raises(StoreBusyError, match="being written"):
        summarize(path, {"s": TwoLayers()})
    lock.release()
    done = summarize(path, {"s": TwoLayers()}, probes=None)
    with pytest.raises(InputError, match="needs a summary"):
        sl.summary_probe(stored, SITE)
    with pytest.raises(InputError, match="Other probes need a store"):
        sl.summary_probe(done, SITE, method="logistic")
    with pytest.raises(InputError, match="not in this summary"):
        sl.summary_centroids(done, "resid_mid")
    with pytest.raises(InputError, match="needs rows"):
        sl.summary_probe(done, SITE, "multiclass")


def test_what_the_sums_and_groups_allow(tmp_path: Path) -> None:
    frame = table(20).frame
    frame["rare"] = ["one"] + ["many"] * 19
    prompts = sl.PromptTable.from_dataframe(frame)
    rare = summarize(tmp_path / "rare", TwoLayers(), prompts, by="rare", probes=("diffmeans",))
    assert f"{SITE}_scatter" not in rare
    with pytest.raises(InputError, match="group 'one' has 1 rows"):
        sl.summary_probe(rare, SITE, method="diffmeans")
    with pytest.raises(InputError, match=r"probes=\('lda',\)"):
        sl.summary_probe(rare, SITE, method="lda")
    texts = frame["prompt"].tolist()
    plain = summarize(tmp_path / "texts", TwoLayers(), texts, by=None)
    assert plain.group.values.tolist() == ["all"]
    assert f"{SITE}_scatter" in plain
    assert int(plain["count"][0, 0, 0]) == 20
    with pytest.raises(InputError, match="at least 2 are needed"):
        sl.summary_probe(plain, SITE)
    pd.testing.assert_index_equal(plain.indexes["layer"], pd.Index([0, 1], name="layer"))


@thorough
@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "support.killed_summary", str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    same(sl.open_summary(tmp_path / "whole"), sl.open_summary(tmp_path / "run"))
