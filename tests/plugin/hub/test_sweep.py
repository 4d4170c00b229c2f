"""A sweep over revisions: download, record, delete; resume; a hub in trouble; a small disk; refusals."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stratalens as sl
from stratalens.plugin.hub import checkpoint_queue
from stratalens.plugin.hub.checkpoint_queue import has_digest
from stratalens.store.errors import (
    InputError,
    MismatchError,
    NoSpaceError,
    StoreExistsError,
    UnreachableError,
)
from support.hub_suite import pickle_weights
from support.light_checkpoints import OPTIONS, LightCheckpoint, save_light
from support.models import save_checkpoint, table

MODEL = "EleutherAI/pythia-tiny"
STEPS = ("step0", "step1", "step1000", "step2000")
SOUND = ["step0", "step1000", "step2000"]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A suite of light models; step1 has the weights of step0."""
    root = tmp_path_factory.mktemp("hub")
    return {step: save_light(root / step, max(0, n - 1)) for n, step in enumerate(STEPS)}


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load checkpoints in milliseconds; all around them is real."""
    monkeypatch.setattr("stratalens.plugin.hub.sweep.Checkpoint", LightCheckpoint)


def direct(folders: dict[str, Path], steps: Sequence[str], path: Path) -> Any:
    """Record the folders without a hub."""
    stages = {step: LightCheckpoint(folders[step]) for step in steps}
    return sl.capture(
        {step: partial(stage.load, None, None) for step, stage in stages.items()},
        table(6),
        path,
        progress=False,
        **OPTIONS,
    )


def values(ds: Any) -> Any:
    """Return the recorded activations."""
    return next(array.values for array in ds.data_vars.values() if array.attrs.get("kind") == "site")


def checkpoints(store: Path) -> list[str]:
    """Return the checkpoints of a sweep on the disk."""
    folder = store.with_name(f"{store.name}.checkpoints")
    return sorted(place.name.split("-")[0] for place in folder.glob("*/*") if place.is_dir())


def test_real_models_are_what_a_capture_of_their_folders_records(served: Callable[..., Any], tmp_path: Path) -> None:
    steps = ("step0", "step1000")
    folders = {step: save_checkpoint(tmp_path / step, "neox", seed=n) for n, step in enumerate(steps)}
    options: dict[str, Any] = {"statistics": False, "check": False, "positions": ("last", "entity_last")}
    ds = sl.sweep_hub(MODEL, "step*", table(6), tmp_path / "run.zarr", hub=served({MODEL: folders}).hub, **options)
    other = sl.capture(dict(folders), table(6), tmp_path / "direct.zarr", progress=False, **options)
    np.testing.assert_array_equal(ds.resid_post.values, other.resid_post.values)
    assert ds.weights_fingerprint.values.tolist() == other.weights_fingerprint.values.tolist()
    assert ds.attrs["recorded_with"]["model"] == MODEL, "not the folder, which is gone"


@pytest.mark.usefixtures("light")
def test_a_sweep_downloads_one_ahead_and_deletes(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    place, store = served({MODEL: folders}), tmp_path / "run.zarr"
    seen: list[list[str]] = []

    def watch(stage: str, done: int, total: int) -> None:
        if done == total:
            seen.append(checkpoints(store))

    ds = sl.sweep_hub(MODEL, "step*", table(6), store, faults="skip_known", hub=place.hub, progress=watch, **OPTIONS)
    assert ds.stage.values.tolist() == SOUND
    assert ds.stage_order.values.tolist() == [0, 1000, 2000]
    expected = direct(folders, SOUND, tmp_path / "direct.zarr")
    np.testing.assert_array_equal(values(ds), values(expected))
    assert all(len(names) <= 2 for names in seen)
    assert seen[-1] == ["step2000"]
    assert not store.with_name("run.zarr.checkpoints").exists()
    assert len(place.whole_files()) == 3, "step1 was not downloaded"


def test_a_faulty_revision_stops_the_sweep_before_any_weights_move(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    place = served({MODEL: folders})
    with pytest.raises(InputError) as raised:
        sl.sweep_hub(MODEL, "step*", table(4), tmp_path / "run.zarr", hub=place.hub, **OPTIONS)
    for word in ("1 revision is of", "no weights were downloaded", "step1: ", "issues/83", "skip_known"):
        assert word in str(raised.value)
    assert place.whole_files() == []
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("light")
def test_a_repeated_sweep_downloads_nothing_and_later_revisions_find_their_place(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    place, store = served({MODEL: folders}), tmp_path / "run.zarr"
    sl.sweep_hub(MODEL, ["step0", "step2000"], table(6), store, hub=place.hub, **OPTIONS)
    before = {p: p.stat().st_mtime_ns for p in store.rglob("c.*") if p.is_file()}
    count = len(place.whole_files())
    sl.sweep_hub(MODEL, ["step0", "step2000"], table(6), store, hub=place.hub, **OPTIONS)
    assert len(place.whole_files()) == count
    ds = sl.sweep_hub(MODEL, SOUND, table(6), store, hub=place.hub, **OPTIONS)
    assert len(place.whole_files()) == count + 1
    assert ds.stage.values.tolist() == SOUND, "step1000 is between the two"
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with pytest.raises(MismatchError, match="has 6 prompts, and they are not the 9 of this table"):
        sl.sweep_hub(MODEL, SOUND, table(9), store, hub=place.hub, **OPTIONS)
    with pytest.raises(MismatchError, match="positions differs"):
        sl.sweep_hub(MODEL, SOUND, table(6), store, hub=place.hub, **{**OPTIONS, "positions": ("-2",)})
    sites = ("layers.{layer}.hook_state", "embed")
    more = sl.sweep_hub(MODEL, SOUND, table(6), store, hub=place.hub, **{**OPTIONS, "sites": sites})
    assert bool(np.isfinite(more.embed.values).all()), "another site needs every checkpoint again"
    with pytest.raises(MismatchError, match=r"'step2000' .* has other weights on the hub than when stage"):
        sl.sweep_hub(
            MODEL,
            SOUND,
            table(6),
            store,
            faults="record",
            hub=served({MODEL: {**folders, "step2000": folders["step1000"]}}).hub,
            **OPTIONS,
        )


@pytest.mark.usefixtures("light")
def test_a_store_that_a_capture_began_keeps_its_orders(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "run.zarr"
    direct(folders, SOUND[:2], store)
    place = served({MODEL: folders})
    ds = sl.sweep_hub(MODEL, SOUND, table(6), store, hub=place.hub, **OPTIONS)
    assert ds.stage_order.values.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="The store cannot insert step1 before 'step1000'"):
        sl.sweep_hub(MODEL, "step*", table(6), store, faults="record", hub=place.hub, **OPTIONS)


@pytest.mark.usefixtures("light")
def test_a_flaky_hub_and_damaged_downloads_change_nothing(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    kinds: list[Any] = ["wrong", "cut", 503, "drop"]

    def trouble(method: str, path: str, earlier: int) -> Any:
        if path.endswith("model.safetensors") and method == "GET":
            return kinds[earlier] if earlier < len(kinds) else None
        return (503, "drop")[earlier] if earlier < 2 else None

    place, store = served({MODEL: folders}, trouble=trouble, attempts=9), tmp_path / "run.zarr"
    ds = sl.sweep_hub(MODEL, ["step0", "step1000"], table(6), store, hub=place.hub, **OPTIONS)
    np.testing.assert_array_equal(values(ds), values(direct(folders, SOUND[:2], tmp_path / "direct.zarr")))
    assert place.waits
    assert max(place.waits) <= 60


@pytest.mark.usefixtures("light")
def test_bytes_that_stay_wrong_are_refused_and_a_later_call_resumes(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    def trouble(method: str, path: str, earlier: int) -> Any:
        return "wrong" if path.endswith("model.safetensors") and method == "GET" else None

    store = tmp_path / "run.zarr"
    place = served({MODEL: folders}, trouble=trouble, attempts=3)
    with pytest.raises(UnreachableError, match=r"model\.safetensors of .* do not have the hash that the hub lists"):
        sl.sweep_hub(MODEL, ["step0", "step1000"], table(6), store, hub=place.hub, **OPTIONS)
    ds = sl.sweep_hub(MODEL, ["step0", "step1000"], table(6), store, hub=served({MODEL: folders}).hub, **OPTIONS)
    assert ds.recorded.values.all()


class StopSweepError(Exception):
    """Stops a sweep."""


@pytest.mark.usefixtures("light")
def test_a_stopped_sweep_keeps_its_checkpoints_and_the_next_call_uses_them(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    store = tmp_path / "run.zarr"

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "step1000" and done:
            raise StopSweepError

    place = served({MODEL: folders})
    with pytest.raises(StopSweepError):
        sl.sweep_hub(MODEL, SOUND, table(6), store, hub=place.hub, progress=stop, **OPTIONS)
    assert "step1000" in checkpoints(store)
    assert len(checkpoints(store)) <= 2
    again = served({MODEL: folders})
    ds = sl.sweep_hub(MODEL, SOUND, table(6), store, hub=again.hub, **OPTIONS)
    assert ds.recorded.values.all()
    assert len(again.whole_files()) <= 1, "step0 is recorded, and step1000 is on the disk"
    assert checkpoints(store) == []


@pytest.mark.usefixtures("light")
def test_a_small_disk_has_one_checkpoint_at_a_time_or_none(
    served: Callable[..., Any],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = sum(file.stat().st_size for file in folders["step0"].iterdir())
    store, place = tmp_path / "run.zarr", served({MODEL: folders})
    seen: list[list[str]] = []

    def usage(path: Path) -> Usage:
        used = sum(f.stat().st_size for f in store.with_name("run.zarr.checkpoints").rglob("*") if f.is_file())
        return Usage(0, 0, checkpoint_queue.SPARE + int(1.7 * size) - used)

    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path) if "checkpoints" in str(path) else real(path))
    monkeypatch.setattr(
        "stratalens.plugin.hub.sweep.SweepProgress.__call__",
        lambda self, stage, done, total: (self._on_start(stage), seen.append(checkpoints(store))),
    )
    ds = sl.sweep_hub(MODEL, SOUND, table(6), store, hub=place.hub, progress=True, **OPTIONS)
    assert ds.recorded.values.all()
    assert {len(names) for names in seen} == {1}
    assert "step1000 is downloaded when step0 is deleted" in capsys.readouterr().err
    size = 0
    with pytest.raises(NoSpaceError, match=r"the checkpoint of 'step0' needs .* GiB in .*pass scratch="):
        sl.sweep_hub(MODEL, SOUND, table(6), tmp_path / "other.zarr", hub=place.hub, **OPTIONS)


@pytest.mark.usefixtures("light")
def test_faulty_revisions_are_skipped_or_recorded_on_request(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders["step2000"], tmp_path / "pickled")
    pickle_weights(tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"pickled")
    models = {"someone/model": {**folders, "step3000": tmp_path / "pickled", "main": folders["step2000"]}}
    arguments = ("someone/model", "step*", table(6))
    ds = sl.sweep_hub(
        *arguments, tmp_path / "skip.zarr", faults="skip", hub=served(models).hub, progress=True, **OPTIONS
    )
    assert ds.stage.values.tolist() == ["step1000", "step2000"], "it is not known which of step0 and step1 is right"
    said = capsys.readouterr().err
    for words in ("2 checkpoints to record", "to download", "step0 is left out: All weights", "about"):
        assert words in said
    ds = sl.sweep_hub(*arguments, tmp_path / "record.zarr", faults="record", hub=served(models).hub, **OPTIONS)
    assert ds.stage.values.tolist() == ["step0", "step1", "step1000", "step2000"]


@pytest.mark.usefixtures("light")
def test_a_revision_without_tokenizer_takes_that_of_main(
    served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folders["step1000"], bare)
    for path in [*bare.glob("tokenizer*"), *bare.glob("special*"), *bare.glob("vocab*"), *bare.glob("merges*")]:
        path.unlink()
    place = served({MODEL: {"step1000": bare, "step2000": folders["step2000"]}})
    ds = sl.sweep_hub(MODEL, "step1000", table(6), tmp_path / "run.zarr", hub=place.hub, **OPTIONS)
    assert ds.recorded.values.all()
    assert len([r for r in place.requests if r.startswith("GET") and r.endswith("tokenizer.json")]) == 1


REFUSALS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no table": ({"table": ["a prompt"]}, InputError, "table is of type list"),
    "unknown option": ({"sites_": ("z",)}, InputError, "sweep_hub has no option 'sites_': did you mean 'sites'"),
    "rank": ({"rank": (0, 2)}, InputError, "no option 'rank'"),
    "unknown handling": ({"faults": "skp"}, InputError, "faults='skp': did you mean 'skip'"),
    "unknown revision": ({"revisions": ["step3"]}, InputError, "has no revision 'step3'"),
    "nothing matches": ({"revisions": "stage*"}, InputError, "no revision of .* matches"),
    "gated": ({"gated": [MODEL]}, InputError, "is gated"),
    "missing repository": ({"repository": "a/b"}, InputError, "no model repository a/b"),
    "nothing left": ({"revisions": "step1", "faults": "skip"}, InputError, "none of the 1 chosen revisions"),
    "an existing store": ({"resume": False, "exists": True}, StoreExistsError, "exists, and resume=False"),
    "no network": ({"dead": "tree", "attempts": 2}, UnreachableError, "did not answer"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_come_before_any_download(
    case: str, served: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    changes, error, words = REFUSALS[case]
    store = tmp_path / "run.zarr"
    arguments: dict[str, Any] = {
        "repository": MODEL,
        "revisions": ["step0", "step1000"],
        "table": table(4),
        "path": store,
        **OPTIONS,
        **changes,
    }
    options = {key: arguments.pop(key) for key in ("gated", "dead", "attempts") if key in arguments}
    place = served({MODEL: folders}, **options)
    if arguments.pop("exists", False):
        sl.from_arrays(store, {"resid_post": np.ones((1, 1, 4, 1, 2), np.float32)}, table(4))
    with pytest.raises(error, match=re.compile(words, re.DOTALL)):
        sl.sweep_hub(**arguments, hub=place.hub)
    assert place.whole_files() == []
    assert not store.with_name("run.zarr.checkpoints").exists()


def test_hashes_of_the_hub(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"hello\n")
    assert has_digest(file, "git:ce013625030ba8dba906f756967f9e9ca394464a")  # git hash-object
    assert has_digest(file, "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")
    assert not has_digest(file, "sha256:0")
    assert not has_digest(tmp_path / "no", "git:0")
