"""Run the study on three architectures trained from scratch: Llama (RMSNorm), GPT-2 (LayerNorm), GPT-NeoX (parallel).

No package index has pretrained weights of the other two. All three therefore start from random weights and the same
tokenizer, and the first stage also teaches the language of questions and answers. The script writes a run folder for
each architecture, and `architectures.json` and `architectures.md` with every number, its interval, null and untrained
control, the share of taught answers that the model knows at the end, and for Llama every site at every layer. It takes
about 45 minutes of one core. `--only KIND` runs one architecture, so that several can run in parallel; the last call
writes the table.

    python -m benchmarks.data.architectures --out /tmp/architectures
    python -m benchmarks.data.architectures --tune --out /tmp/tuning   # learning rates, on a seed that is not reported

Not part of the suite: it shows the results of a study, compares no times, and trains for most of an hour.
"""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import stratalens as sl
from stratalens.plugin.study.config import templates as texts
from stratalens.plugin.study.config.settings import AnalysisSettings, RecordSettings, StudySettings, TrainSettings
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.models.base_model import load_base
from stratalens.plugin.study.run import run_study
from stratalens.plugin.study.training.train import loss_curves, train_stages

SEED, TUNING_SEED = 0, 100
KINDS = ("llama", "gpt2", "gpt_neox")
BLOCKS, WIDTH, HEADS = 4, 128, 4
LEARNING_RATES = (1e-3, 3e-3)
# On the tuning seed 10 epochs teach the names and the form of the answers, but not the answers. The loss of Llama stays
# at .43 until about epoch 25 and ends at .28 after 60.
EPOCHS = 60
LEARNING_RATE = 1e-3  # from `--tune`: the lowest training loss at the end of the last stage, for all three
EVERY_SITE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "ln_final")
PARTS = {"value": "mean", "low": "low", "high": "high"}
SHOWN = {
    "first v last accuracy": "first v last",
    "first v last accuracy, untrained": "the same, untrained",
    "first v last accuracy after the final norm": "first v last, after the final norm",
    "first v last accuracy after the final norm, untrained": "the same, untrained",
    "early v late accuracy": "early v late",
    "rank correlation of held-out centroids": "rank correlation of centroids",
    "rank correlation of held-out centroids, untrained": "the same, untrained",
    "first v last accuracy from norms, losses and confidence alone": "norms, losses, confidence alone",
    "first v last accuracy with norms, losses and confidence regressed out": "with these regressed out",
    "answer accuracy, entities of s1": "answers known, s1",
    "answer accuracy, entities of s6": "answers known, s6",
}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the words of the study."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    words = [phrase for kind in texts.QUESTIONS.values() for phrase in kind] + list(texts.TEMPLATES.values())
    words += [f"A: {w}" for group in (texts.REGIONS, texts.OCCUPATIONS, texts.NATIONALITIES) for w in group]
    words += [f"A: {year}" for year in range(1700, 2000)]
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(words * 2, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|pad|>")


def save_base(kind: str, folder: Path) -> Path:
    """Save a model with random weights of one architecture, and the tokenizer."""
    words = tokenizer()
    ends = {"eos_token_id": words.eos_token_id, "bos_token_id": words.eos_token_id}
    size = len(words) + 8
    wide = {"vocab_size": size, "hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, **ends}
    configs: dict[str, Any] = {
        "llama": lambda: transformers.LlamaConfig(
            **wide, intermediate_size=3 * WIDTH, max_position_embeddings=64, tie_word_embeddings=True
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=size, n_embd=WIDTH, n_layer=BLOCKS, n_head=HEADS, n_positions=64, **ends
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**wide, intermediate_size=4 * WIDTH, max_position_embeddings=64),
    }
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(configs[kind]()).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def settings(kind: str, base: Path, seed: int, learning_rate: float, sites: tuple[str, ...]) -> StudySettings:
    """Return the settings of the study, the same for each architecture."""
    return StudySettings(
        preset=f"architectures-{kind}",
        model=str(base),
        entities_per_stage=200,
        train_questions=4,
        seed=seed,
        device="cpu",
        train=TrainSettings(
            epochs=EPOCHS, batch_size=32, learning_rate=learning_rate, optimizer="adamw", schedule="linear",
            precision="float32",
        ),
        record=RecordSettings(sites=sites, positions=("last",)),
        analysis=AnalysisSettings(repeats=10, permutations=500, sweep_permutations=20, probe_permutations=100),
    )  # fmt: skip


def tune(out: Path) -> dict[str, float]:
    """Return the last training loss of two stages by architecture and rate, on entities that are not reported."""
    results = {}
    words = tokenizer()
    corpus = make_corpus(words, stages=("s1", "s2"), entities_per_stage=200, seed=TUNING_SEED, train_questions=4)
    for kind in KINDS:
        base = save_base(kind, out / f"base-{kind}")
        for rate in LEARNING_RATES:
            how = settings(kind, base, TUNING_SEED, rate, ("resid_post",)).train
            start = partial(load_base, str(base))
            folder = out / f"{kind}-{rate}"
            checkpoints = train_stages(start, corpus, how, folder, seed=TUNING_SEED, base={}, device="cpu")
            last = [row["loss"] for row in loss_curves(checkpoints) if row["stage"] == "s2"][-10:]
            results[f"{kind} {rate}"] = round(sum(last) / len(last), 3)
            print(kind, rate, results[f"{kind} {rate}"], flush=True)
    return results


def sweep(folder: Path) -> list[dict[str, Any]]:
    """Probe first against last at every recorded site and layer, in the last stage and the untrained one."""
    ds = sl.open_store(folder / "run.zarr").sel(stage=["untrained", "s6"])
    rows = []
    for site in EVERY_SITE:
        probes = sl.probe(ds, site=site, pairs=[("s1", "s6")], seed=SEED, progress=False)
        for stage in ("untrained", "s6"):
            for layer in probes.layer.values.tolist() if "layer" in probes.dims else [None]:
                here = probes.sel(stage=stage) if layer is None else probes.sel(stage=stage, layer=layer)
                results = {key: float(here[f"accuracy_{part}"].squeeze()) for key, part in PARTS.items()}
                same = math.isnan(results["value"])  # all rows are equal, so no probe can distinguish them
                rows.append(
                    {"site": site, "layer": layer, "stage": stage, **(dict.fromkeys(results) if same else results)}
                )
    return rows


def formatted(row: dict[str, Any] | None) -> str:
    """Format a number with its interval and its null."""
    if row is None or row["value"] is None:
        return "not known"
    text = f"{row['value']:.2f}"
    text += "" if row["low"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
    return text + ("" if row["null"] is None else f", null {row['null']:.2f}")


def table(results: dict[str, list[dict[str, Any]]], sites: list[dict[str, Any]]) -> str:
    """Return all results as Markdown."""
    lines = ["| after stage 6, last block, last token | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    named = {kind: {row["name"]: row for row in rows} for kind, rows in results.items()}
    for name, words in SHOWN.items():
        lines.append(f"| {words} | " + " | ".join(formatted(rows.get(name)) for rows in named.values()) + " |")
    lines += ["", "| Llama, first v last | layer | after stage 6 | untrained |", "|---|---|---|---|"]
    by_place: dict[tuple[str, Any], dict[str, dict[str, Any]]] = {}
    for row in sites:
        by_place.setdefault((row["site"], row["layer"]), {})[row["stage"]] = row
    for (site, layer), stages in by_place.items():
        rows = [stages[stage] for stage in ("s6", "untrained")]
        cells = ["the same for all rows" if r["value"] is None else formatted({**r, "null": None}) for r in rows]
        lines.append(f"| `{site}` | {'' if layer is None else layer} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tune", action="store_true", help="try learning rates on another seed, then exit")
    parser.add_argument("--only", choices=KINDS, help="run only this architecture and write no table")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tune:
        print(json.dumps(tune(options.out), indent=1))
        return
    results = {}
    for kind in [options.only] if options.only else KINDS:
        base = options.out / f"base-{kind}"
        if not base.exists():
            save_base(kind, base)
        sites = EVERY_SITE if kind == "llama" else ("resid_post", "ln_final")
        done = run_study(settings(kind, base, SEED, LEARNING_RATE, sites), options.out / kind)
        results[kind] = json.loads(done.summary.read_text())
    if options.only:
        return
    sites_of_llama = sweep(options.out / "llama")
    (options.out / "architectures.json").write_text(
        json.dumps({"rows": results, "sites": sites_of_llama}, indent=1, allow_nan=False) + "\n"
    )
    (options.out / "architectures.md").write_text(table(results, sites_of_llama))
    print((options.out / "architectures.md").read_text())


if __name__ == "__main__":
    main()
