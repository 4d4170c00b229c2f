"""Makes `old_stores.tar.xz`: stores that stratalens 0.1.0 wrote, and what 0.1.0 read from them.

It was run once, under version 0.1.0 at commit 318bb83, with TransformerLens 4.3.0, from an unpacked copy of that commit
in OLD, whose package is in OLD/pkg:

    PYTHONPATH=OLD/pkg HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python make_old_stores.py --stratalens OLD/pkg

Do not run it again to make `test_old_stores.py` pass: the archive is evidence of what the old version wrote, and an
archive that a newer version writes proves nothing. A later format gets an archive of its own, made by a copy of this
script.

It uses public names and the command line alone. Everything random is drawn here, and the weights and the tokenizer are
in the archive, so that the tests depend on no random generator and on no network. `*.zarr/` is ignored by git, which is
why the stores are in an archive.

What is in the archive:

    checkpoints/{base,week1,week2,week3,later}   tiny Llamas with a byte-level tokenizer that puts a BOS token in front
    tables/*.json                                prompt tables, each column with its dtype
    NAME.zarr                                    the stores
    NAME.npz                                     values that the old version gave for NAME.zarr
    run.yaml, prompts.csv, run.zarr.run.yaml, run.zarr.results/   what the command line took and left
    analyses.npz                                 numbers of the analyses of run.zarr
    expected.json                                how each store was captured, its labels, attributes and facts, and
                                                 which analyses were run
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
import xarray as xr
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import stratalens as sl

HERE = Path(__file__).parent
VERSION, COMMIT = "0.1.0", "318bb83"
STAGES = ("base", "week1", "week2", "week3", "later")
NAMES = ("Ann", "Bob", "Donau", "São Paulo", "it", "Ann Smith", "Norway", "東京", "Bo", "Ελλάδα", "a village", "Zoë")
ALL_STAGES = {name: f"checkpoints/{name}" for name in STAGES}


def stages(*names: str) -> dict[str, str]:
    """Checkpoint folders by stage, seen from the unpacked archive."""
    return {name: ALL_STAGES[name] for name in names}


# How each store was captured: the table, the stages and every further argument of `sl.capture`.
CAPTURES: dict[str, dict[str, Any]] = {
    "float32": {
        "table": "names",
        "stages": stages("base", "week1"),
        "options": {
            "sites": ["resid_post", "q", "z", "embed"],
            "positions": ["last", "entity_last", "word_last"],
            "missing": "nan",
            "block_size": 8,
        },
    },
    "bfloat16": {
        "table": "bare",
        "stages": stages("base", "week1"),
        "options": {
            "sites": ["resid_post", "mlp_out"],
            "layers": [1],
            "positions": ["last", "-2"],
            "dtype": "bfloat16",
            "statistics": False,
            "block_size": 4,
        },
    },
    "float16": {
        "table": "bare",
        "stages": stages("base", "week1"),
        "options": {
            "sites": ["z"],
            "positions": "all",
            "dtype": "float16",
            "statistics": ["l2", "loss", "running_loss"],
            "block_size": 4,
        },
    },
    "int8": {
        "table": "names",
        "stages": stages("base", "week1"),
        "options": {
            "sites": ["resid_post", "k"],
            "positions": ["last", "word_last"],
            "missing": "nan",
            "dtype": "int8",
            "statistics": ["mean"],
            "block_size": 8,
        },
    },
    "int8_zstd": {
        "table": "bare",
        "stages": stages("base"),
        "options": {
            "sites": ["mlp_out"],
            "positions": ["-3", "last"],
            "dtype": "int8",
            "compression": "zstd",
            "statistics": False,
            "block_size": 4,
        },
    },
    "zstd": {
        "table": "names",
        "stages": stages("base", "week1", "week2"),
        "options": {
            "sites": ["resid_post", "z"],
            "positions": ["last", "entity_last"],
            "statistics": ["l2", "std", "loss", "answer_loss"],
            "compression": "zstd",
            "block_size": 4,
        },
    },
    # The same as zstd, unpacked and interrupted in the second of three stages: its values are known.
    "half": {
        "table": "names",
        "stages": stages("base", "week1", "week2"),
        "options": {
            "sites": ["resid_post", "z"],
            "positions": ["last", "entity_last"],
            "statistics": ["l2", "std", "loss", "answer_loss"],
            "block_size": 4,
        },
    },
    # A Recorder in a loop that left out blocks in the middle.
    "holes": {
        "table": "names",
        "stages": stages("base"),
        "options": {
            "sites": ["resid_post", "z"],
            "positions": ["last", "entity_last"],
            "statistics": ["l2", "std"],
            "block_size": 4,
        },
    },
    "relabelled": {
        "table": "relabelled",
        "stages": stages("base", "week1"),
        "options": {"sites": ["resid_post"], "positions": ["last"], "statistics": ["l2"], "block_size": 8},
    },
    # Sites that were added later, and so far at one stage only.
    "grown": {
        "table": "bare",
        "stages": stages("base", "week1"),
        "options": {
            "sites": ["resid_post", "mlp_out", "ln_final"],
            "positions": ["last"],
            "statistics": ["l2"],
            "block_size": 4,
        },
    },
    # A change of the stages that had not finished: the copy of the root is one stage ahead of the root.
    "unfinished": {
        "table": "bare",
        "stages": stages("base", "week1"),
        "options": {"sites": ["resid_post"], "positions": ["last"], "statistics": False, "block_size": 4},
    },
    "run": {
        "table": "prompts.csv",
        "stages": stages("base", "week1", "week2", "week3"),
        "options": {
            "sites": ["resid_post"],
            "positions": ["last", "entity_last"],
            "statistics": ["l2", "mean", "loss", "entropy"],
        },
    },
}

# Analyses of run.zarr: the public name and its arguments. Results of the first four are kept in run.zarr.results/.
CACHED = ("centroids", "project", "ridge", "matched")
ENDS = [["week1", "week3"]]
ANALYSES: dict[str, dict[str, Any]] = {
    "centroids": {"verb": "centroids", "arguments": {}},
    "directions": {"verb": "centroids", "arguments": {"by": "period", "normalize": True}},
    "project": {"verb": "project", "arguments": {"permutations": 50, "bootstrap": 50, "repeats": 5}},
    "ridge": {"verb": "probe", "arguments": {"method": "ridge", "C": 0.1, "backend": "cpu", "resamples": 100}},
    "logistic": {"verb": "probe", "arguments": {"folds": 4, "backend": "cpu", "resamples": 100, "permutations": 3}},
    "matched": {
        "verb": "matched_probe",
        "arguments": {
            "pairs": ENDS,
            "statistics": ["resid_post_l2"],
            "bins": 2,
            "repeats": 3,
            "small": "nan",
            "backend": "cpu",
            "resamples": 100,
        },
    },
    "statistics": {"verb": "statistics_probe", "arguments": {"pairs": ENDS, "resamples": 100}},
    "controls": {
        "verb": "controls",
        "arguments": {
            "pairs": ENDS,
            "which": ["probe", "normalized", "residual_linear", "random_direction", "shuffled_entity"],
            "resamples": 100,
        },
    },
}
# Numbers that are counted or averaged; the weights of a fit depend a little on the linear algebra underneath.
KEPT = (
    "accuracy", "auc", "right", "tested", "entity_fold", "chance", "centroid", "count", "exposure", "entities", "r2",
    "coordinate", "rank_correlation", "inner_rank_correlation", "kendall", "exact_order", "n_matched", "balance", "gap",
)  # fmt: skip

# Facts of `stratalens info --json` that have to stay; `path` depends on where the archive is unpacked.
FACTS = (
    "format", "complete", "dims", "layers", "tokens", "labels", "sites", "stages", "whole_stages", "completeness",
    "bytes", "files", "blocks", "block_size", "provenance", "recorded_with",
)  # fmt: skip
OF_VARIABLES = ("dims", "dtype", "compression", "kind", "hook", "bytes", "bytes_uncompressed")


def make_checkpoints(folder: Path) -> None:
    """Five tiny Llamas of one architecture; their weights have 8 significant bits, which pack well."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>", "<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([f"Q: Who is {name}? The the The\nA: a name" for name in NAMES] * 2, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|end|>")
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=48,
        bos_token_id=1,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    generator = torch.Generator().manual_seed(318)
    for name in STAGES:
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                drawn = 1 + 0.1 * drawn if parameter.ndim == 1 else drawn * (2.0 / parameter.shape[-1] ** 0.5)
                parameter.copy_(drawn.to(torch.bfloat16))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def tables() -> dict[str, pd.DataFrame]:
    """The prompt tables by name."""
    rows = 18
    rng = np.random.default_rng(318)
    who = [NAMES[i // 2] for i in range(rows)]  # two prompts about each
    prompts = [
        f"{'Q: Who' if i % 2 else 'Who'} is {name}?" + " The" * int(rng.integers(0, 6)) for i, name in enumerate(who)
    ]
    starts = [None if i % 5 == 3 else p.index("Who") for i, p in enumerate(prompts)]
    names = pd.DataFrame(
        {
            "prompt": [f"{p}\nA:" for p in prompts],
            "prompt_id": [f"id/{i:02d} é" for i in range(rows)],
            "entity": who,
            "entity_id": [f"e{i // 2}" for i in range(rows)],
            "answer": ["" if i == 4 else f" a {NAMES[i % 5]}" for i in range(rows)],
            "word_start": pd.array(starts, "Int64"),
            "word_end": pd.array([None if start is None else start + 3 for start in starts], "Int64"),
            "trained_stage": [f"week{1 + i // 2 % 3}" for i in range(rows)],
            "note": ["" if i == 2 else f"line {i}\nnächste 🙂" for i in range(rows)],
            "measured": [np.nan if i % 4 == 1 else i / 7 for i in range(rows)],
            "short": np.array([np.nan if i == 0 else -i / 3 for i in range(rows)], np.float32),
            "tiny": np.array([np.inf if i == 3 else i / 8 for i in range(rows)], np.float16),
            "small": np.array([-128 + i for i in range(rows)], np.int8),
            "huge": np.array([2**64 - 1 - i for i in range(rows)], np.uint64),
            "count": np.arange(rows, dtype=np.int64) - 5,
            "seen": np.arange(rows) % 3 == 0,
            "with blank": [f"b {i % 2}" for i in range(rows)],
        }
    )  # fmt: skip
    bare = pd.DataFrame(
        {"prompt": [f"Who is {NAMES[i]}?" for i in range(10)], "group": np.arange(10, dtype=np.int32) % 2}
    )
    relabelled = names[["prompt", "prompt_id", "entity", "entity_id", "answer", "trained_stage", "note", "measured"]]
    return {"names": names, "bare": bare, "relabelled": relabelled}


def run_table() -> pd.DataFrame:
    """The table of the run file: 48 prompts about 24 entities, three groups."""
    who = [f"{NAMES[i // 2 % 12]} {i // 24}" for i in range(48)]
    return pd.DataFrame(
        {
            "prompt": [f"{'Q: ' if i % 2 else ''}Who is {name}?\nA:" for i, name in enumerate(who)],
            "entity": who,
            "trained_stage": [f"week{1 + (i // 2 + i // 24) % 3}" for i in range(48)],
            "period": [("early", "middle", "late")[(i // 2 + i // 24) % 3] for i in range(48)],
            "template": ["question" if i % 2 else "plain" for i in range(48)],
            "size": [i % 7 for i in range(48)],
        }
    )


def written(values: Any) -> dict[str, Any]:
    """A column as JSON: its dtype and its values, None where one is missing."""
    if str(getattr(values, "dtype", "")) == "Int64":
        return {"dtype": "Int64", "values": [None if pd.isna(v) else int(v) for v in values]}
    array = np.asarray(values)
    if array.dtype.kind in "OUT":
        return {"dtype": "text", "values": [None if pd.isna(v) else str(v) for v in array.tolist()]}
    return {"dtype": array.dtype.name, "values": [v if v == v else None for v in array.tolist()]}


def read_table(path: Path) -> sl.PromptTable:
    """A table of the archive."""
    if path.suffix == ".csv":
        return sl.PromptTable.read(path)
    columns = {}
    for name, column in json.loads(path.read_text()).items():
        values = [np.nan if v is None else v for v in column["values"]]
        columns[name] = pd.Series(values, dtype=object if column["dtype"] == "text" else column["dtype"])
    return sl.PromptTable.from_dataframe(pd.DataFrame(columns))


def capture(name: str, **changes: Any) -> None:
    """Capture a store as CAPTURES says, with changes."""
    how = CAPTURES[name]
    given_stages, table = changes.pop("stages", how["stages"]), changes.pop("table", how["table"])
    sl.capture(
        given_stages,
        read_table(Path("tables") / f"{table}.json"),
        f"{name}.zarr",
        **{"device": "cpu", "progress": False, **how["options"], **changes},
    )


def interrupt(stage: str, rows: int) -> Any:
    """A progress function that interrupts a capture once a stage has that many rows."""

    def watch(name: str, done: int, total: int) -> None:
        if name == stage and done >= rows:
            time.sleep(1)  # the writer behind commits what it has
            raise KeyboardInterrupt

    return watch


def command(*arguments: str) -> None:
    """Run a command of stratalens."""
    done = subprocess.run([sys.executable, "-m", "stratalens", *arguments], capture_output=True, text=True)
    sys.stderr.write(done.stderr)
    assert done.returncode == 0, done.stderr


def make_stores() -> None:
    """Every store, in the current folder."""
    for name in ("float32", "bfloat16", "float16", "int8", "int8_zstd", "zstd"):
        capture(name)

    try:
        capture("half", batch_size=2, progress=interrupt("week1", 11))
    except KeyboardInterrupt:
        recorded = sl.open_store("half.zarr").recorded.values
        assert recorded[0].all()
        assert 0 < recorded[1].sum() < 18

    how = CAPTURES["holes"]
    model: Any = sl.Checkpoint("checkpoints/base").load(None, "cpu")
    table = read_table(Path("tables/names.json"))
    with (
        sl.create_store("holes.zarr", table, model, **how["options"]) as store,
        sl.Recorder(model, store, "base") as rec,
    ):
        tokens = table.tokenize(model.tokenizer)
        for rows in (np.arange(4, 8), np.array([17, 16])):
            ids, mask = tokens.batch(rows, int(tokens.lengths[rows].max()))
            rec.batch(rows)
            with torch.no_grad():
                model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))

    first = read_table(Path("tables/relabelled.json")).frame.drop(columns="measured")
    first["trained_stage"] = "week1"
    first["wrong"] = range(len(first))
    spans = ["entity_start", "entity_end"]
    sl.capture(
        CAPTURES["relabelled"]["stages"],
        sl.PromptTable.from_dataframe(first.drop(columns=spans)),
        "relabelled.zarr",
        device="cpu",
        progress=False,
        **CAPTURES["relabelled"]["options"],
    )
    again = first.assign(note="to be corrected").drop(columns=[*spans, "wrong"])
    sl.relabel("relabelled.zarr", sl.PromptTable.from_dataframe(again), drop=["wrong"])
    right = read_table(Path("tables/relabelled.json"))
    shuffled = right.frame.drop(columns=spans).sample(frac=1, random_state=0).to_dict("records")
    rows_of_text = [json.dumps({k: None if v != v else v for k, v in row.items()}) for row in shuffled]
    Path("right.jsonl").write_text("\n".join(rows_of_text))
    command("label", "relabelled.zarr", "right.jsonl")
    Path("right.jsonl").unlink()

    capture("grown", sites=["resid_post"])
    capture("grown", stages=stages("base"))

    capture("unfinished", stages=stages("base"))
    root = Path("unfinished.zarr/zarr.json").read_bytes()
    try:
        capture("unfinished", progress=interrupt("week1", 0))
    except KeyboardInterrupt:
        Path("unfinished.zarr/zarr.json").write_bytes(root)  # as if it had been killed before this was replaced

    run_table().to_csv("prompts.csv", index=False)
    entries = [{"name": n, "path": f"checkpoints/{n}", "order": i * 10} for i, n in enumerate(STAGES[:4])]
    keys: dict[str, Any] = {
        "model": "checkpoints/base",
        "prompts": "prompts.csv",
        "store": "run.zarr",
        "device": "cpu",
        "by": "period",
        **CAPTURES["run"]["options"],
    }
    Path("run.yaml").write_text(yaml.safe_dump({**keys, "stages": [e for e in entries if e["name"] != "week2"]}))
    command("capture", "run.yaml")
    Path("run.yaml").write_text(yaml.safe_dump({**keys, "stages": entries}))
    command("capture", "run.yaml")  # on disk week2 comes after week3
    command("analyze", "run.zarr", "--verbs", "centroids,probes")


def flat(name: str, result: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values) of every number of a result that is kept."""
    if isinstance(result, xr.Dataset):
        for key, variable in result.data_vars.items():
            stem = str(key).removesuffix("_mean").removesuffix("_low").removesuffix("_high")
            if stem.removesuffix("_p").removesuffix("_null") in KEPT:
                yield f"{name}/{key}", variable.values
    else:
        for key, part in result.items():
            yield from flat(f"{name}/{key}", part)


def analyses() -> dict[str, np.ndarray]:
    """Numbers of the analyses of run.zarr; finished slabs of some are kept next to it, as by default."""
    ds = sl.open_store("run.zarr")
    numbers: dict[str, np.ndarray] = {}
    for name, call in ANALYSES.items():
        cache = None if name in CACHED else False
        result = getattr(sl, call["verb"])(ds, progress=False, cache=cache, **call["arguments"])
        numbers.update(flat(name, result))
        if name == "controls":
            table = sl.control_table(result, resamples=100)
            numbers |= {f"control_table/{key}": table[key].values for key in ("accuracy", "effect", "lost")}
    numbers["sweep/norms"] = sl.sweep(ds, norms, compute=True, progress=False).values
    slabs = itertools.count()

    def interrupted(slab: xr.DataArray) -> xr.DataArray:
        if next(slabs) == 5:
            raise KeyboardInterrupt
        return norms(slab)

    try:
        sl.sweep(ds, interrupted, cache="norms", workers=1, progress=False)
    except KeyboardInterrupt:
        assert len(list(Path("run.zarr.results").glob("sweep-norms-*"))) == 1
    return numbers


def norms(slab: xr.DataArray) -> xr.DataArray:
    """Mean square of every feature, the function of a sweep."""
    return (slab**2).mean("entity")


def seen(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the old version shows of a store: facts for the JSON file, and values for the archive."""
    path = f"{name}.zarr"
    ds, bits = sl.open_store(path), sl.open_store(path, dtype="bits")
    values = {str(key): variable.values for key, variable in ds.data_vars.items()}
    values |= {f"bits/{key}": v.values for key, v in bits.data_vars.items() if v.dtype != ds[key].dtype}
    out = subprocess.run([sys.executable, "-m", "stratalens", "info", path, "--json"], capture_output=True, text=True)
    info = json.loads(out.stdout)
    report = sl.verify_store(path)
    facts = {
        **CAPTURES[name],
        "coords": {str(key): {"dims": list(c.dims), **written(c.values)} for key, c in ds.coords.items()},
        "dims": {str(key): list(map(str, v.dims)) for key, v in ds.data_vars.items()},
        "attrs": {key: ds.attrs[key] for key in ("model", "stratalens_format", "provenance", "recorded_with")},
        "variable_attrs": {str(key): v.attrs for key, v in ds.data_vars.items() if "kind" in v.attrs},
        "info": {key: info[key] for key in FACTS},
        "variables": {n: {k: v[k] for k in OF_VARIABLES} for n, v in info["variables"].items()},
        "verify": {
            "ok": report.ok,
            "missing": report.missing,
            "unfinished": report.unfinished,
            "blocks": report.blocks,
            "files": report.files,
            "nbytes": report.nbytes,
        },
    }
    return facts, values


def pack(folder: Path, archive: Path) -> None:
    """Pack a folder so that the same files give the same archive."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
        return entry

    with tarfile.open(archive, "w:xz", preset=9, format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*"), key=lambda p: (p.name != "checkpoints", str(p.relative_to(folder)))):
            tar.add(path, str(path.relative_to(folder)), recursive=False, filter=plain)


def main() -> None:
    """Make everything in a temporary folder and pack it."""
    options = argparse.ArgumentParser(description="Make the archive of old stores.")
    options.add_argument("--stratalens", type=Path, required=True, help="folder that the old package is imported from")
    options.add_argument("--out", type=Path, default=HERE)
    chosen = options.parse_args()
    assert Path(sl.__file__).is_relative_to(chosen.stratalens.resolve()), f"this is {sl.__file__}"
    out = chosen.out.resolve()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="old-stores-") as temporary:
        os.chdir(temporary)
        folder = Path()
        make_checkpoints(folder / "checkpoints")
        (folder / "tables").mkdir()
        for name, frame in tables().items():
            text = json.dumps({key: written(column) for key, column in frame.items()}, ensure_ascii=False)
            (folder / "tables" / f"{name}.json").write_text(text)
        make_stores()
        expected: dict[str, Any] = {"version": VERSION, "commit": COMMIT, "stores": {}, "analyses": ANALYSES}
        for name in CAPTURES:
            facts, values = seen(name)
            expected["stores"][name] = facts
            np.savez(folder / f"{name}.npz", **values)
        np.savez(folder / "analyses.npz", **analyses())
        text = json.dumps(expected, indent=1, ensure_ascii=False, sort_keys=True)
        (folder / "expected.json").write_text(text + "\n")
        pack(Path(temporary), out / "old_stores.tar.xz")
        os.chdir(out)


if __name__ == "__main__":
    main()
