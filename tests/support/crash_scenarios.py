"""Operations that crash tests interrupt: each with what is there before, and the check of a state after a crash."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pandas as pd
import xarray as xr
import zarr
from safetensors.numpy import load_file

import stratalens as sl
from stratalens.analyses.sweep import cache as sweep_cache
from stratalens.store import open_store, relabel, verify_store
from stratalens.store.errors import DamagedError, InputError
from stratalens.store.format.checksum import crc32c
from stratalens.store.format.schema import site_variable, statistic_variables
from stratalens.store.interop.export_labels import export
from stratalens.store.interop.icechunk import commit_stages, open_commits
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
        unseen: whether a library without fsync makes changes that Python does not see. Then power is lost only after
            the end of the operation, and kills come at any change.
    """

    name: str
    prepare: Callable[[Path], None]
    act: Callable[[Path, Ack], None]
    check: Callable[[Path, Collection[str]], None]
    files: Callable[[Path], Mapping[str, bytes]] = contents
    unseen: bool = False


COMPLETE = ("created", *(f"complete {name}" for name in STAGES))
EXPORTS = {"x.npy": ("x.npy.json", "x.csv"), "x.safetensors": ("x.csv",), "x.npz": (), "x.parquet": ()}
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


def export_to(name: str, layer: int) -> Callable[[Path, Ack], None]:
    def act(root: Path, ack: Ack) -> None:
        export(store_of(root), root / name, site="resid_post", layer=layer)
        ack("exported")

    return act


def export_folder(root: Path, ack: Ack) -> None:
    if (root / "layer1").is_dir():
        return  # a folder that is complete is not replaced
    export(store_of(root), root / "layer1", site="resid_post", layer=1)
    ack("exported")


def exported_files(root: Path) -> dict[str, bytes]:
    """Return the exported folder; a second name of it that a loss of power leaves is not removed."""
    return {key: content for key, content in contents(root).items() if not key.startswith(".layer1.part/")}


def check_export(name: str, whole: Collection[str]) -> Callable[[Path, Collection[str]], None]:
    """Return a check of an array, and that every file next to it belongs to it.

    Args:
        name: of the array file. The first export had layer 0 and the old labels, the second layer 1 and the new ones.
        whole: names of all files of the export.
    """

    def check(root: Path, acks: Collection[str]) -> None:
        path = root / name
        values, place = _read_export(path), path.with_name(path.name + ".json")
        exported = [_layer(root, layer) for layer in range(LAYERS)]
        layers = [layer for layer in range(LAYERS) if np.array_equal(values, exported[layer])]
        require(len(layers) == 1, "the exported array is no layer")
        if place.exists():
            facts = json.loads(place.read_text())
            require(facts["layer"] == layers[0], "the JSON file describes another array")
            require(facts["crc32c"] == f"{crc32c(path.read_bytes()):08x}", "the checksum is that of another array")
        if (table := path.with_suffix(".csv")).exists():
            expected = "\n".join(["trained_stage", *(NEW_STAGES if layers[0] else labels()["trained_stage"])])
            stored = "\n".join(line.rpartition(",")[2] for line in table.read_text().splitlines())
            require(stored == expected, "the table describes another array")
        complete = layers[0] == 1 and all((root / file).exists() for file in whole)
        require("exported" not in acks or complete, "an export that returned is lost")

    return check


def _read_export(path: Path) -> np.ndarray[Any, Any]:
    if path.suffix == ".safetensors":
        return np.asarray(load_file(path)["resid_post"])
    if path.suffix == ".parquet":
        column = pd.read_parquet(path)["resid_post"]
        return np.stack(list(column)).reshape(len(STAGES), ROWS, 1, WIDTH)
    stored = np.load(path)
    return np.asarray(stored if path.suffix == ".npy" else stored["resid_post"])


def check_folder(root: Path, acks: Collection[str]) -> None:
    folder = root / "layer1"
    require("exported" not in acks or folder.exists(), "an export that returned is lost")
    if folder.exists() and any(folder.iterdir()):
        names = sorted(path.name for path in folder.iterdir())
        require(names == ["README.md", "resid_post.npy", "rows.csv"], f"the folder has {names}")
        require(np.array_equal(np.load(folder / "resid_post.npy"), _layer(root, 1)), "the exported array is wrong")
        require(len((folder / "rows.csv").read_text().splitlines()) == ROWS + 1, "the table is cut")


def commit(root: Path, ack: Ack) -> None:
    commit_stages(store_of(root), root / "run.icechunk")
    ack("committed")


def commit_one(root: Path) -> None:
    record(store_of(root), stages=STAGES[:1])
    commit(root, ignore)
    finished(root)


def check_commits(complete: Collection[str]) -> Callable[[Path, Collection[str]], None]:
    def check(root: Path, acks: Collection[str]) -> None:
        check_store(store_of(root), COMPLETE)
        expected = STAGES if "committed" in acks else complete
        try:
            ds = open_commits(root / "run.icechunk")
        except (InputError, FileNotFoundError, zarr.errors.GroupNotFoundError):
            require(not expected, "a commit is lost")
            return
        stages = [str(name) for name in ds["stage"].values]
        require(set(expected) <= set(stages), "a commit is lost")
        store = load(storage_at(store_of(root)))
        for name in stages:
            for block in range(store.geometry.blocks):
                rows = slice(*store.geometry.rows(block))
                values = ds["resid_post"].sel(stage=name).transpose("layer", "entity", ...).values[:, rows]
                require(np.array_equal(values, true_values("resid_post", name, block, store)), f"wrong {name}")

    return check


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

    def exported(name: str) -> Callable[[Path], None]:
        def prepare(root: Path) -> None:
            finished(root)
            export_to(name, 0)(root, ignore)
            relabelling({"trained_stage": NEW_STAGES})(root, ignore)

        return prepare

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
    for name, more in EXPORTS.items():
        yield Scenario(f"export {name}", exported(name), export_to(name, 1), check_export(name, [name, *more]))
    yield Scenario("export a folder", finished, export_folder, check_folder, exported_files)
    yield Scenario("cached results", finished, sweep, lambda root, acks: sweep(root, ignore), lambda root: {})
    if importlib.util.find_spec("icechunk") is not None:
        for title, prepare, complete in (("first", finished, ()), ("second", commit_one, STAGES[:1])):
            check = check_commits(complete)
            yield Scenario(f"icechunk, {title} commit", prepare, commit, check, lambda root: {}, unseen=True)
