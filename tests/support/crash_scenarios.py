"""Operations that crash tests interrupt: each with what is there before, and the check of a state after a crash."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import xarray as xr

import stratalens as sl
from stratalens.analyses.sweep import cache as sweep_cache
from stratalens.store import open_store, relabel, verify_store
from stratalens.store.errors import DamagedError, InputError
from stratalens.store.format.schema import site_variable, statistic_variables
from stratalens.store.interop.export import export_array
from stratalens.store.state.manifest import Store, load
from stratalens.store.storage.resolve import storage_at
from stratalens.store.writing.create import create
from stratalens.store.writing.writer import ActivationWriter

ROWS, BLOCK, LAYERS, WIDTH, STAGES = 10, 4, 2, 4, ("s0", "s1")

Ack = Callable[[str], None]  # called with the name of a call that has returned


class BrokenPromiseError(Exception):
    """A promise that does not hold after a crash."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise BrokenPromiseError(what)


def ignore(what: str) -> None:
    """Acknowledge nothing."""


def labels(**more: list[str]) -> dict[str, list[str]]:
    return {
        "entity": [f"r{i:03d}" for i in range(ROWS)],
        "entity_id": [f"e{i // 2}" for i in range(ROWS)],
        "prompt": [f"Q {i}?" for i in range(ROWS)],
        "trained_stage": [STAGES[i % 2] for i in range(ROWS)],
        **more,
    }


def make(path: Path, dtype: str = "float32", compression: str = "none", embed: bool = False) -> Store:
    site = site_variable("resid_post", ["d_model"], [WIDTH], dtype, "blocks.{layer}.hook_out")
    variables = [site, *statistic_variables(site)[:1]]
    if embed:
        variables.append(site_variable("embed", ["d_model"], [WIDTH], "float32", "embed.hook_out"))
    return create(
        path,
        entities=labels(),
        layers=range(LAYERS),
        tokens=("last",),
        variables=variables,
        provenance={"model": "m"},
        block_size=BLOCK,
        compression=compression,
    )


def true_values(name: str, stage: str, block: int, store: Store) -> np.ndarray[Any, Any]:
    """Return the values of one variable of one block, in the dtype that the writer takes."""
    layout, (low, high) = store.layouts[name], store.geometry.rows(block)
    variable = layout.variable
    layer, token = [layout.layers] * variable.has("layer"), [layout.tokens] * variable.has("token")
    random = np.random.default_rng([STAGES.index(stage), block, *name.encode()])
    values = random.normal(size=(*layer, high - low, *token, *variable.shape)).astype(np.float32)
    if variable.dtype == "bfloat16":
        return values.astype(ml_dtypes.bfloat16).view(np.uint16)
    return values


def is_derived(store: Store, name: str) -> bool:
    return store.layouts[name].variable.attrs.get("kind") in ("flag", "scale", "error")


def record(path: Path, ack: Ack = ignore, stages: Collection[str] = STAGES, **options: Any) -> None:
    """Make a store and record its stages, or what is missing of them."""
    store = make(path, **options)
    ack("created")
    with ActivationWriter(store) as writer:
        for order, name in enumerate(stages):
            with writer.stage(name, order=order, fingerprint="f-" + name) as stage:
                ack(f"stage {name}")
                for block in stage.pending():
                    buffer = stage.buffer(block)
                    for variable in block.variables:
                        if not is_derived(writer.store, variable):
                            rows = range(block.start, block.stop)
                            buffer.write(variable, rows, true_values(variable, name, block.index, writer.store))
                    stage.submit(buffer)
            ack(f"complete {name}")


def open_writer(path: Path) -> None:
    """Let a writer finish or undo what was interrupted."""
    with ActivationWriter(path):
        pass


def check_store(
    path: Path, acks: Collection[str], check_labels: Callable[[xr.Dataset], None] | None = None, whole: bool = True
) -> None:
    """Open a store, compare it with the truth and with the calls that had returned, and verify it.

    Args:
        path: folder of the store.
        acks: names of the calls that had returned before the crash.
        check_labels: further check of the opened store.
        whole: False permits damage that was there before.
    """
    try:
        ds = open_store(path, dtype="bits", chunks=None)
    except InputError as error:
        require("created" not in acks, f"a created store does not open: {error}")
        return
    store, stages = load(storage_at(path)), {str(name) for name in ds.stage.values}
    for name in STAGES:
        require(name in stages or f"stage {name}" not in acks, f"stage {name} is lost")
        if name in stages:
            recorded = ds.recorded.sel(stage=name).values
            require(f"complete {name}" not in acks or recorded.all() or "recorded_1" in ds, f"{name} lost rows")
            _check_values(ds, store, name, f"complete {name}" in acks)
    if check_labels is not None:
        check_labels(ds)
    # A crash may tear the last line of the history; `verify` says so, and the next writer drops the line.
    damaged = [damage for damage in verify_store(path).damaged if damage.kind != "history"]
    require(not (whole and damaged), f"verify says damaged: {damaged[:1]}")


def _check_values(ds: xr.Dataset, store: Store, stage: str, complete: bool) -> None:
    for name, layout in store.layouts.items():
        if is_derived(store, name) or layout.variable.dtype == "int8":
            continue
        flag = ds[name].attrs.get("recorded", "recorded")
        recorded = ds[flag].sel(stage=stage).values
        require(not complete or name == "embed" or recorded.all(), f"{name} of complete stage {stage} lost rows")
        values = ds[name].sel(stage=stage).transpose("entity", ...).values
        for block in range(store.geometry.blocks):
            low, high = store.geometry.rows(block)
            expected = true_values(name, stage, block, store)
            expected = np.moveaxis(expected, 1, 0) if layout.variable.has("layer") else expected
            known = recorded[low:high]
            require(np.array_equal(values[low:high][known], expected[known]), f"wrong {name} of {stage}, block {block}")


def contents(root: Path) -> dict[str, bytes]:
    """Return the bytes of every file but the histories, which hold times."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "history.jsonl")
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@dataclass(frozen=True)
class Scenario:
    """One operation that a crash may interrupt.

    Attributes:
        name: name of the operation.
        prepare: makes what is there before, in an empty folder.
        act: the operation; it acknowledges what has returned. Called again after a crash, it has to finish.
        check: judges a folder after a crash, with the acknowledgements before it.
        files: contents that must be those of a run without a crash in the end.
    """

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path, Ack], None]
    check: Callable[[Path, Collection[str]], None]
    files: Callable[[Path], Mapping[str, bytes]] = contents


COMPLETE = ("created", *(f"complete {name}" for name in STAGES))
NEW_STAGES, SPLIT = [f"n{i}" for i in range(ROWS)], [str(i) for i in range(ROWS)]


def store_of(root: Path) -> Path:
    return root / "run.zarr"


def finished(root: Path) -> None:
    record(store_of(root))


def checked(*acks: str) -> Callable[[Path, Collection[str]], None]:
    return lambda root, more: check_store(store_of(root), {*acks, *more})


def create_store(root: Path, ack: Ack) -> None:
    make(store_of(root))
    ack("created")
    open_writer(store_of(root))


def relabelling(columns: Mapping[str, list[str]], drop: Collection[str] = ()) -> Callable[[Path, Ack], None]:
    def act(root: Path, ack: Ack) -> None:
        stored = open_store(store_of(root), chunks=None)
        present = [name for name in drop if name in stored.coords]
        if columns or present:
            relabel(store_of(root), {"entity": labels()["entity"], **columns}, drop=present)
        ack("labelled")
        open_writer(store_of(root))

    return act


def either_labels(old: Mapping[str, list[str]], new: Mapping[str, list[str]]) -> Callable[..., None]:
    def check(root: Path, acks: Collection[str]) -> None:
        def check_labels(ds: xr.Dataset) -> None:
            stored = {str(n): [str(v) for v in c.values] for n, c in ds.coords.items() if c.dims == ("entity",)}
            require(stored in (old, new), "the labels are neither the old nor the new ones")
            require(stored == new or "labelled" not in acks, "a change of labels that returned is lost")

        check_store(store_of(root), {*COMPLETE, *acks}, check_labels)

    return check


def damaged(key: str) -> Callable[[Path], None]:
    def prepare(root: Path) -> None:
        finished(root)
        path = store_of(root) / key
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 4
        path.write_bytes(data)

    return prepare


def repair(root: Path, ack: Ack) -> None:
    verify_store(store_of(root), repair=True)
    ack("repaired")
    record(store_of(root))


def check_repair(root: Path, acks: Collection[str]) -> None:
    try:
        check_store(store_of(root), acks, whole="repaired" in acks)
    except DamagedError:
        if "repaired" in acks:
            raise


@contextmanager
def no_compaction() -> Iterator[None]:
    module = importlib.import_module("stratalens.store.writing.writer")
    with mock.patch.object(module, "compact", return_value=False):
        yield


def uncompacted(root: Path) -> None:
    with no_compaction():
        finished(root)


def export(layer: int) -> Callable[[Path, Ack], None]:
    def act(root: Path, ack: Ack) -> None:
        export_array(store_of(root), site="resid_post", layer=layer, target=root / "x.npy")
        ack("exported")

    return act


def check_export(root: Path, acks: Collection[str]) -> None:
    stored, json_file = np.load(root / "x.npy"), root / "x.npy.json"
    exported = [_layer(root, layer) for layer in range(LAYERS)]
    layers = [layer for layer in range(LAYERS) if np.array_equal(stored, exported[layer])]
    require(layers, "the exported array is no layer")
    if json_file.exists():
        require(json.loads(json_file.read_text())["layer"] in layers, "the JSON file describes another array")
    require("exported" not in acks or (layers == [1] and json_file.exists()), "an export that returned is lost")


def _layer(root: Path, layer: int) -> np.ndarray[Any, Any]:
    store = load(storage_at(store_of(root)))
    blocks = range(store.geometry.blocks)
    return np.stack([np.concatenate([true_values("resid_post", s, b, store)[layer] for b in blocks]) for s in STAGES])


def means(slab: xr.DataArray) -> xr.Dataset:
    return xr.Dataset({"mean": ("d", slab.mean("entity").values.ravel() + 10)})


def sweep(root: Path, ack: Ack) -> None:
    with mock.patch.object(sweep_cache, "FLUSH_SECONDS", 0.0):
        result = sl.sweep(open_store(store_of(root)), means, cache="means", workers=1)
    ack("swept")
    for layer in range(LAYERS):
        expected = _layer(root, layer).mean(axis=1).reshape(len(STAGES), -1) + 10
        require(np.allclose(result["mean"].values[:, layer], expected, atol=1e-5), "a cached result is wrong")


def scenarios() -> Iterator[Scenario]:
    """Yield all operations that write."""

    def nothing(root: Path) -> None:
        """Begin with an empty folder."""

    def recording(**options: Any) -> Callable[[Path, Ack], None]:
        return lambda root, ack: record(store_of(root), ack, **options)

    old, new = labels(), labels(trained_stage=NEW_STAGES, split=SPLIT)
    first_change = relabelling({"trained_stage": NEW_STAGES, "split": SPLIT})

    def relabelled(root: Path) -> None:
        finished(root)
        first_change(root, ignore)

    def exported(root: Path) -> None:
        finished(root)
        export(0)(root, ignore)

    yield Scenario("create", nothing, create_store, checked())
    yield Scenario("record float32", nothing, recording(), checked())
    yield Scenario("record bfloat16, zstd", nothing, recording(dtype="bfloat16", compression="zstd"), checked())
    yield Scenario("record int8", nothing, recording(dtype="int8"), checked())
    one_stage = Scenario("add a stage", lambda root: record(store_of(root), stages=STAGES[:1]), recording(), checked())
    yield replace(one_stage, check=checked("created", "complete s0"))
    yield Scenario("add a site", finished, recording(embed=True), checked(*COMPLETE))
    yield Scenario("compact", uncompacted, lambda root, ack: open_writer(store_of(root)), checked(*COMPLETE))
    yield Scenario("relabel", finished, first_change, either_labels(old, new))
    again = relabelling({"trained_stage": SPLIT})
    yield Scenario("relabel again", relabelled, again, either_labels(new, {**new, "trained_stage": SPLIT}))
    dropped = labels(trained_stage=NEW_STAGES)
    yield Scenario("drop a label", relabelled, relabelling({}, ["split"]), either_labels(new, dropped))
    for key in (
        "resid_post/c.1.0.1.0.0",
        "zarr.json",
        ".stratalens/commits/0001.0",
        "resid_post/zarr.json",
        "stage/c.0",
    ):
        yield Scenario(f"repair {key}", damaged(key), repair, check_repair)
    yield Scenario("export", exported, export(1), check_export)
    yield Scenario("cached results", finished, sweep, lambda root, acks: sweep(root, ignore), lambda root: {})
