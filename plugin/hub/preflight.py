"""preflight(): which revisions of a suite on the hub are what they claim to be, without moving any weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import pandas as pd

from stratalens.plugin.hub.client import Hub, HubFile
from stratalens.plugin.hub.comparison import Twins, differing_settings, most_frequent
from stratalens.plugin.hub.known_faults import explain, hidden_fault, suite_notes
from stratalens.plugin.hub.revisions import (
    LAST,
    MAIN,
    HubRevision,
    Revisions,
    find_gaps,
    read_revision,
    select_revisions,
    training_order,
)
from stratalens.plugin.hub.sweep_progress import Say, line_printer
from stratalens.plugin.hub.weight_files import (
    CONFIG,
    Header,
    RevisionFiles,
    compare_headers,
    read_header,
)
from stratalens.store.errors import InputError, join_names, suggest

Compare = Literal["all", "selected"]
NOT_LOADABLE = ("missing", "incomplete", "pickled")
_TENSORS_SHOWN = 3


@dataclass(frozen=True)
class FileRow:
    """One row of a preflight: a weight file of a revision, or a file that it should have.

    Attributes:
        revision: name of the revision.
        step: training step in its name, None where it has none.
        file: the file; "" for the revision as a whole.
        verdict: "ok"; "identical": all weight files are those of another revision; "shared": this one is; "missing";
            "incomplete"; "different": another config, dtype or shape than in most revisions; "pickled": not
            safetensors; "reported": a fault that only its reporters can see.
        same_as: other revisions with this file.
        note: the reason, and what is known about it.
        issue: address of the report of a known fault.
        known: whether the fault was reported.
        leave_out: whether a sweep that skips faults leaves this revision out.
        tensors: names of the tensors in a shared file.
        bytes: size of the file.
        digest: hash of the file.
        commit: commit of the revision.
    """

    revision: str
    step: int | None
    file: str
    verdict: str
    same_as: tuple[str, ...] = ()
    note: str = ""
    issue: str = ""
    known: bool = False
    leave_out: bool = False
    tensors: tuple[str, ...] = ()
    bytes: int = 0
    digest: str = ""
    commit: str = ""


@dataclass
class Inspection:
    """What a preflight has read and concluded.

    Attributes:
        repository: name of the repository.
        revisions: the chosen revisions in training order.
        files: their files, by name of the revision.
        rows: one row for each weight file, and for each fault.
        notes: what is known about the suite as a whole.
        main: files of `main`, None where there is none.
    """

    repository: str
    revisions: list[HubRevision]
    files: dict[str, RevisionFiles]
    rows: list[FileRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    main: RevisionFiles | None = None

    def faults(self) -> list[FileRow]:
        """Return the rows about chosen revisions that are not in order."""
        chosen = {revision.name for revision in self.revisions}
        return [row for row in self.rows if row.leave_out and row.revision in chosen]

    def not_loadable(self) -> set[str]:
        """Return the revisions that no model can be loaded from."""
        return {row.revision for row in self.rows if row.verdict in NOT_LOADABLE}

    def table(self) -> pd.DataFrame:
        """Return the rows as a table."""
        names = [f.name for f in fields(FileRow)]
        columns = {name: [getattr(row, name) for row in self.rows] for name in names}
        table = pd.DataFrame(columns, columns=names).astype({"step": "Int64"})
        table.attrs["repository"] = self.repository
        table.attrs["notes"] = list(self.notes)
        return table


def preflight(
    repository: str,
    revisions: Revisions = "step*",
    *,
    compare: Compare = "all",
    hub: Hub | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Name the revisions of a model repository that are not what they claim to be, from hashes and headers alone.

    The hub lists the size and the hash of every file. So this reads no weights: one list of files for each revision,
    and the first bytes of one weight file of each size.

    Args:
        repository: name of the model on the hub, such as "EleutherAI/pythia-70m".
        revisions: a pattern such as `"step*"` or `"stage1-*"`; "log:16" for 16 revisions at about equal distances of
            the logarithm of their step; or a list of names and patterns.
        compare: "all" compares the chosen revisions with every revision of the same run, and with `main`; "selected"
            compares them with each other and with `main`, in fewer requests.
        hub: how to reach the hub; None takes the settings of huggingface_hub.
        progress: print what is read; None does so on a terminal or in a notebook.

    Returns:
        One row for each weight file of each revision, in training order, and one for each file or revision that is
        missing. The columns are those of `stratalens.plugin.hub.preflight.FileRow`; the most important:

        verdict: "ok", "identical", "shared", "missing", "incomplete", "different", "pickled" or "reported".
        same_as: the other revisions that have this file.
        note: the reason, and for the faults of public suites what is known about them.
        issue: the report of a known fault.
        leave_out: whether `sweep_hub(faults="skip")` leaves the revision out.

        `attrs["notes"]` has what is known about the suite as a whole.

    Raises:
        InputError: there is no such repository, it is gated, a revision is unknown, or nothing matches.
        UnreachableError: the hub did not answer.

    Example:
        >>> table = sl.preflight("EleutherAI/pythia-70m", "step*")  # doctest: +SKIP
        >>> table[table.verdict != "ok"][["revision", "verdict", "same_as", "note"]]  # doctest: +SKIP
    """
    return inspect_repository(repository, revisions, compare=compare, hub=hub, say=line_printer(progress)).table()


def inspect_repository(
    repository: str,
    revisions: Revisions,
    *,
    compare: str = "all",
    hub: Hub | None = None,
    say: Say = lambda line: None,
) -> Inspection:
    """Read and compare the revisions of a repository; arguments and errors are those of `preflight`."""
    if compare not in ("all", "selected"):
        raise InputError(f"compare={compare!r}: {suggest(str(compare), ('all', 'selected'))}")
    _check_repository(repository)
    hub = hub or Hub()
    refs = hub.refs(repository)
    chosen = select_revisions(revisions, refs, repository)
    runs = {revision.series for revision in chosen}
    run = [r for r in (read_revision(name, commit) for name, commit in refs.items()) if r.series in runs]
    others = [] if compare == "selected" else run
    if MAIN in refs:
        others = [*others, read_revision(MAIN, refs[MAIN])]
    known = {revision.name: revision for revision in [*others, *chosen]}
    pool = sorted(known.values(), key=lambda r: (LAST if r.order is None else r.order, r.name))
    say(f"{repository}: reading the lists of files of {len(pool)} revisions")
    files = dict(zip((r.name for r in pool), _read_files(hub, repository, pool), strict=True))
    inspection = Inspection(repository, chosen, {r.name: files[r.name] for r in chosen}, main=files.get(MAIN))
    inspection.notes = suite_notes(repository)
    reader = _Reader(hub, repository, files)
    twins = Twins(files, [name for name in training_order(r.name for r in run) if name != MAIN])
    for revision in chosen:
        inspection.rows += _explained(repository, _rows(files[revision.name], reader, twins))
    if isinstance(revisions, str) and not revisions.startswith("log:"):
        inspection.rows += _explained(repository, _gap_rows(run, revisions))
    return inspection


def _check_repository(repository: object) -> None:
    if not isinstance(repository, str) or not repository:
        raise InputError(f"repository={repository!r} is no name on the hub. Pass one such as 'EleutherAI/pythia-70m'.")
    if Path(repository).exists():
        raise InputError(
            f"{repository!r} is a local path, which has no revisions. Pass the folder of each checkpoint to sl.capture."
        )


def _read_files(hub: Hub, repository: str, revisions: Sequence[HubRevision]) -> list[RevisionFiles]:
    """Read the lists of files and the assignments of tensors to shards."""
    listed = hub.parallel(lambda revision: hub.files(repository, revision.commit), revisions)
    all_files = [RevisionFiles(revision, files) for revision, files in zip(revisions, listed, strict=True)]
    indices = {f.files[f.index].digest: f for f in all_files if f.index}  # most revisions have the same one
    documents = dict(
        zip(
            indices,
            hub.parallel(lambda f: hub.read_json(repository, f.revision.commit, f.index), indices.values()),
            strict=True,
        )
    )
    for files in all_files:
        if files.index:
            files.read_index(documents[files.files[files.index].digest])
    return all_files


class _Reader:
    """Headers and configs of the revisions, each content read once."""

    def __init__(self, hub: Hub, repository: str, files: Mapping[str, RevisionFiles]) -> None:
        self._hub, self._repository = hub, repository
        sizes = [(p, f.files[p].size) for f in files.values() if f.format == "safetensors" for p in f.weights]
        owners = {(p, f.files[p].size): f for f in files.values() if f.format == "safetensors" for p in f.weights}
        self.headers: dict[tuple[str, int], Header] = dict(
            zip(owners, hub.parallel(self._header, owners.items()), strict=True)
        )
        counts = Counter(sizes)
        paths = {path for path, _ in sizes}
        self._usual = {
            path: max((key for key in counts if key[0] == path), key=lambda key: counts[key]) for path in paths
        }
        configs = {f.files[CONFIG].digest: f for f in files.values() if CONFIG in f.files}
        documents = hub.parallel(lambda f: hub.read_json(repository, f.revision.commit, CONFIG), configs.values())
        self._configs = dict(zip(configs, documents, strict=True))
        self._usual_config = most_frequent([f.files[CONFIG].digest for f in files.values() if CONFIG in f.files])

    def _header(self, item: tuple[tuple[str, int], RevisionFiles]) -> Header:
        (path, _), files = item
        return read_header(self._hub, self._repository, files.revision.commit, files.files[path])

    def header(self, file: HubFile) -> Header:
        """Return the header of a safetensors file, which files of the same name and size have in common."""
        return self.headers[file.path, file.size]

    def difference(self, file: HubFile) -> tuple[str, str]:
        """Return verdict and reason where a file differs in form from the same file of most revisions."""
        header = self.header(file)
        if header.problem:
            return "incomplete", f"{header.problem}."
        usual = self._usual[file.path]
        if usual == (file.path, file.size) or self.headers[usual].problem:
            return "ok", ""
        reason = compare_headers(header, self.headers[usual])
        if not reason:
            return "ok", ""
        return ("incomplete" if reason.startswith("it has no") else "different"), f"{reason}."

    def config_difference(self, files: RevisionFiles) -> str:
        """Say how the config of a revision differs from that of most; "" where it does not."""
        digest = files.files[CONFIG].digest
        if digest == self._usual_config:
            return ""
        differing = differing_settings(self._configs[digest], self._configs[self._usual_config])
        return f"{'; '.join(differing[:3])}{' and more' if len(differing) > 3 else ''}." if differing else ""


def _rows(files: RevisionFiles, reader: _Reader, twins: Twins) -> Iterator[FileRow]:
    """Judge one revision file by file."""
    revision = files.revision
    base = FileRow(revision.name, revision.step, "", "ok", commit=revision.commit)
    if CONFIG not in files.files:
        yield replace(base, file=CONFIG, verdict="missing", note="The revision has no config.json.")
    elif difference := reader.config_difference(files):
        yield replace(base, file=CONFIG, verdict="different", note=f"config.json: {difference}")
    if files.format == "none":
        yield replace(base, verdict="missing", note="The revision has no weights.")
    for path in files.missing:
        yield replace(base, file=path, verdict="missing", note=f"{path} is one of the shards, and it does not exist.")
    if files.index and not files.tensors_of:
        yield replace(base, file=files.index, verdict="incomplete", note=f"{files.index} names no shards.")
    if files.format == "safetensors" and len(files.weights) > 1 and not files.index:
        yield replace(base, verdict="incomplete", note="There are several shards, and no model.safetensors.index.json.")
    identical = twins.identical(revision.name) if files.weights else []
    for path in files.weights:
        file = files.files[path]
        row = replace(base, file=path, bytes=file.size, digest=file.digest)
        verdict, note = reader.difference(file) if files.format == "safetensors" else ("ok", "")
        if verdict == "incomplete":
            yield replace(row, verdict=verdict, note=f"{path}: {note}")
            continue
        sharing = identical or twins.sharing(revision.name, file.digest)
        if sharing and revision.name != twins.final:
            names = _tensor_names(files, path, reader)
            yield replace(
                row,
                verdict="identical" if identical else "shared",
                same_as=tuple(sharing),
                tensors=names,
                note=_shared_note(path, sharing, names, whole=bool(identical)),
            )
        elif verdict == "ok" and files.format == "pickle":
            yield replace(row, verdict="pickled", note="Only pickled weights, which are never loaded.")
        else:
            yield replace(row, verdict=verdict, note=f"{path}: {note}" if note else "")
    if files.format == "pickle" and (identical or any(twins.sharing(revision.name, d) for d in files.digests.values())):
        yield replace(base, verdict="pickled", note="Only pickled weights, which are never loaded.")


def _tensor_names(files: RevisionFiles, path: str, reader: _Reader) -> tuple[str, ...]:
    if files.format == "safetensors":
        return tuple(reader.header(files.files[path]).tensors)
    return files.tensors_of.get(path, ())


def _shared_note(path: str, sharing: Sequence[str], tensors: Sequence[str], whole: bool) -> str:
    others = join_names(sharing, 4)
    if whole:
        return f"All weights are the same bytes as those of {others}."
    count = "1 tensor" if len(tensors) == 1 else f"{len(tensors)} tensors"
    content = f" with {count} ({join_names(tensors, _TENSORS_SHOWN)})" if tensors else ""
    return f"{path}{content} is the same file as in {others}; the other weight files are not."


def _gap_rows(run: Sequence[HubRevision], pattern: str) -> Iterator[FileRow]:
    """Name revisions that are missing in the regular part of a run."""
    for series in dict.fromkeys(revision.series for revision in run):
        for gap in find_gaps([r for r in run if r.series == series]):
            if fnmatchcase(gap.first, pattern):
                which = gap.first if gap.count == 1 else f"{gap.count} revisions, {gap.first} to {gap.last},"
                note = (
                    f"The suite has a revision every {gap.interval} steps, and after {gap.after} {which} "
                    f"{'is' if gap.count == 1 else 'are'} missing on the hub."
                )
                yield FileRow(gap.first, read_revision(gap.first).step, "", "missing", note=note)


def _explained(repository: str, rows: Iterable[FileRow]) -> Iterator[FileRow]:
    """Add what is known about the faults of a revision, and whether it is to be left out."""
    revisions = []
    for row in rows:
        revisions.append(row.revision)
        if row.verdict == "ok":
            yield row
            continue
        fault = explain(repository, row.revision, row.verdict, row.same_as)
        if fault is None:
            yield replace(row, leave_out=True)
            continue
        note = f"{row.note} {fault.note}"
        yield replace(row, note=note, issue=fault.issue, known=True, leave_out=not fault.is_sound(row.revision))
    for name in dict.fromkeys(revisions):
        if (hidden := hidden_fault(repository, name)) is not None:
            step = read_revision(name).step
            yield FileRow(name, step, "", "reported", note=hidden.note, issue=hidden.issue, known=True, leave_out=True)
