"""The folder of an unfinished summary: its lock, its stages, and the saved sums of an unfinished stage."""

from __future__ import annotations

import json
import math
import os
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.analyses.data.summary import FORMAT, read_root, stage_folder, write_root, write_stage
from stratalens.analyses.data.summary_arrays import Arrays, row_arrays, site_arrays
from stratalens.plugin.capture.output_hooks import Sequences
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.capture.summary_plan import SummaryPlan
from stratalens.plugin.capture.summary_sums import SiteSums
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.processing import differing_flags
from stratalens.plugin.stages.stage import Stage, resolve_stage_order
from stratalens.store.errors import DamagedError, InputError, MismatchError, StoreBusyError, quote
from stratalens.store.files import user_path
from stratalens.store.state.manifest import StageEntry
from stratalens.store.storage.atomic_files import remove_file, replaced_file
from stratalens.store.storage.local_locks import FileLock
from stratalens.store.storage.resolve import is_url

BLOCK_ROWS = 512  # rows between two points where a run can resume
SAVE_SHARE = 20  # time between two saved states, in times of saving one


def process_rows(rows: int, block_size: int | None, rank: tuple[int, int]) -> tuple[NDArray[np.int64], int]:
    """Choose the rows of one process, and the block size.

    Args:
        rows: rows of the table.
        block_size: rows of a block; None chooses one that gives work to every process.
        rank: (rank, number of processes).

    Raises:
        InputError: an invalid number, or a process without rows.

    Example:
        >>> process_rows(5, 2, (1, 2))
        (array([2, 3]), 2)
    """
    index, processes = rank
    if processes < 1 or not 0 <= index < processes:
        raise InputError(f"rank={rank!r} is not valid. Pass (rank, number of processes) with 0 <= rank < number.")
    if block_size is not None and (isinstance(block_size, bool) or block_size < 1):
        raise InputError(f"block_size={block_size!r} is not valid. Pass a number of rows from 1.")
    size = block_size or min(BLOCK_ROWS, math.ceil(rows / processes))
    mine = np.flatnonzero(np.arange(rows) // size % processes == index).astype(np.int64)
    if not len(mine):
        raise InputError(f"rank {index} of {processes} has no rows: the table has {rows}, in blocks of {size}.")
    return mine, size


def row_blocks(rows: NDArray[np.int64], block_size: int) -> list[NDArray[np.int64]]:
    """Cut the rows of a process into blocks."""
    return [rows[start : start + block_size] for start in range(0, len(rows), block_size)]


class StageSums:
    """The sums of all sites of one stage."""

    def __init__(self, plan: SummaryPlan, device: torch.device) -> None:
        self.plan = plan
        self.sites = {site.name: SiteSums(site, plan, device) for site in plan.spec.selection.sites}

    def add(self, rows: NDArray[np.int64], batch: Sequences, values: Mapping[str, Tensor]) -> None:
        """Add the activations of one batch, by site."""
        group = self.plan.groups_of(rows, batch.index, batch.ids)
        for name, sums in self.sites.items():
            sums.add(rows, group, values[name])

    def state(self) -> dict[str, NDArray[Any]]:
        """All arrays, bit for bit."""
        return {f"{name}/{key}": a for name, sums in self.sites.items() for key, a in sums.state().items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from saved arrays."""
        for name, sums in self.sites.items():
            sums.restore({key.partition("/")[2]: a for key, a in state.items() if key.partition("/")[0] == name})

    def arrays(self) -> Arrays:
        """The arrays of the finished stage."""
        count = next(iter(self.sites.values())).count
        out = row_arrays(count, self.plan.samples)
        for name, description in zip(self.sites, describe_sites(self.plan.spec), strict=True):
            sums = self.sites[name]
            norms, buckets = (sums.sums[key].cpu().numpy() for key in ("norms", "buckets"))
            out |= site_arrays(description, sums.moments, norms, buckets, sums.sample)
        return out


def describe_sites(spec: CaptureSpec) -> list[dict[str, Any]]:
    """Describe the sites for the summary's root."""
    return [
        {
            "name": site.name,
            "hook": site.hook,
            "feature_dims": list(site.feature_dims),
            "feature_shape": list(site.feature_shape),
            "dtype": str(site.dtype).removeprefix("torch."),
            "in_blocks": site.in_blocks,
        }
        for site in spec.selection.sites
    ]


class SummaryFolder(AbstractContextManager["SummaryFolder"]):
    """A locked folder that is being summarized into.

    Args:
        path: the folder.
        plan: groups and sampled rows.
        adapter: the model of the first stage.
        sample: most sampled rows of each place.
        seed: of the sample.
        share: rank, number of processes, and block size.

    Raises:
        MismatchError: the folder summarizes something else.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        plan: SummaryPlan,
        adapter: Adapter,
        sample: int,
        seed: int,
        share: tuple[int, int, int],
    ) -> None:
        if is_url(path):
            raise InputError(f"{path} is a URL; a summary is written to a local folder. Copy it when it is complete.")
        self.path = user_path(path)
        self.plan = plan
        self.block_size = share[2]
        spec = plan.spec
        facts = spec.provenance()
        identity = {
            "sites": describe_sites(spec),
            "layers": list(spec.selection.layers),
            "tokens": plan.tokens,
            "by": plan.by,
            "order": plan.order,
            "sample": sample,
            "seed": seed,
            "tokenizer_fingerprint": facts["tokenizer_fingerprint"],
            "architecture": facts["architecture"],
            "processing": facts["processing"],
        }
        part = {
            "digest": facts["token_ids_digest"],
            "groups_digest": plan.digest,
            "rank": list(share),
            "mixed": plan.mixed,
        }
        root = {
            "format": FORMAT,
            "identity": identity,
            "groups": plan.names,
            "ordering": plan.ordering,
            "model": adapter.name,
            "parts": [part],
            "stages": [],
        }
        self.root: dict[str, Any] = json.loads(json.dumps(root, default=_plain))
        self._lock = FileLock(self.path / ".lock")

    def __enter__(self) -> Self:
        existing = read_root(self.path)  # refuses another kind of folder before anything is written
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._lock.try_acquire():
            raise StoreBusyError(f"{self.path} is being written by {self._lock.holder()}. Wait until it has finished.")
        try:
            self._lock.note()
            existing = read_root(self.path)
            if existing is not None:
                self._check(existing)
                self.root = existing
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _check(self, existing: Mapping[str, Any]) -> None:
        """Refuse to add to sums of something else."""
        remedy = "Repeat the call with the same arguments, or summarize into another folder."
        pairs = {name: (existing["identity"].get(name), value) for name, value in self.root["identity"].items()}
        before, now = pairs["processing"]
        if not differing_flags(before or {}, now):
            del pairs["processing"]
        pairs["groups"] = existing["groups"], self.root["groups"]
        if len(existing["parts"]) > 1:
            raise MismatchError(f"{self.path} was merged from {len(existing['parts'])} summaries. {remedy}")
        mine, theirs = self.root["parts"][0], existing["parts"][0]
        subjects = {
            "digest": "tokens of the prompts (digest)",
            "groups_digest": "labels or entities of the prompts (digest)",
            "rank": "rank, number of processes and block size",
        }
        pairs |= {subject: (theirs[name], mine[name]) for name, subject in subjects.items()}
        for name, (old, new) in pairs.items():
            if old != new:
                raise MismatchError(
                    f"{self.path}: {name} differ. The summary has {quote(old)}, this call has {quote(new)}. {remedy}"
                )

    def stage_orders(self, stages: Sequence[Stage], named: bool) -> dict[str, int]:
        """Decide the place of every stage in training order, as `resolve_stage_order`."""
        stored = [StageEntry(s["name"], s["order"], s["fingerprint"]) for s in self.root["stages"]]
        return resolve_stage_order(stages, stored, named=named)

    def begin(self, name: str, order: int, fingerprint: str, hooks: list[str], allow_same_weights: bool) -> int:
        """Start or resume a stage; return its number.

        Raises:
            MismatchError: the stage has other weights than before, or those of another stage.
        """
        stage = {"name": name, "order": order, "fingerprint": fingerprint, "hooks": hooks}
        for number, other in enumerate(self.root["stages"]):
            if other["name"] == name:
                for fact in ("fingerprint", "hooks"):
                    if other[fact] != stage[fact]:
                        subject = "weights (fingerprint)" if fact == "fingerprint" else "hooks of the caller"
                        raise MismatchError(
                            f"stage {name!r}: {subject} differ. The summary has {quote(other[fact])}, this model has "
                            f"{quote(stage[fact])}. Load the model of the first run, or choose another stage name or "
                            "folder."
                        )
                return number
            if other["fingerprint"] == fingerprint and not allow_same_weights:
                raise MismatchError(
                    f"stages {other['name']!r} and {name!r} have the same weights (fingerprint {fingerprint}): check "
                    "the checkpoint's path or revision. If this is intended, pass allow_same_weights=True."
                )
        self.root["stages"].append(stage)
        write_root(self.path, self.root)
        return len(self.root["stages"]) - 1

    def is_complete(self, number: int) -> bool:
        """Whether the sums of a stage are finished; a state that a killed process left behind is removed."""
        if not stage_folder(self.path, number).is_dir():
            return False
        remove_file(self._state(number))
        return True

    def _state(self, number: int) -> Path:
        return self.path / f"stage-{number:03d}.state"

    def restore(self, number: int, sums: StageSums) -> int:
        """Load the saved sums of a stage; return the number of blocks in them, 0 without saved sums.

        Raises:
            DamagedError: the saved sums are damaged.
        """
        file = self._state(number)
        if not file.is_file():
            return 0
        try:
            with np.load(file, allow_pickle=False) as saved:
                state = {name: saved[name] for name in saved.files}  # zip compares the checksum of every array
            done = int(state.pop("blocks"))
            sums.restore(state)
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError, RuntimeError) as error:
            raise DamagedError(f"{file} is damaged: {error}. Delete it to start the stage again.") from error
        return done

    def save(self, number: int, sums: StageSums, blocks: int) -> None:
        """Save the sums of a stage durably, in place of those saved before."""
        arrays: dict[str, Any] = {"blocks": np.int64(blocks), **sums.state()}
        with replaced_file(self._state(number)) as file:
            np.savez(file, **arrays)

    def saver(self, number: int, sums: StageSums, seconds: float) -> Callable[[int], None]:
        """Function to call after every block, which saves the sums now and then."""
        last, cost = time.monotonic(), 0.0

        def after_block(blocks: int) -> None:
            nonlocal last, cost
            start = time.monotonic()
            if seconds > 0 and start - last < max(seconds, SAVE_SHARE * cost):
                return
            self.save(number, sums, blocks)
            last = time.monotonic()
            cost = last - start

        return after_block

    def finish(self, number: int, sums: StageSums) -> None:
        """Write the finished stage, and remove its saved sums."""
        write_stage(stage_folder(self.path, number), sums.arrays())
        remove_file(self._state(number))


def _plain(value: Any) -> Any:
    """Convert NumPy numbers for JSON."""
    return value.item() if isinstance(value, np.generic) else str(value)
