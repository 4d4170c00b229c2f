"""Repeat the trials from which the demo's settings were chosen.

Each trial trains on a tuning seed, never on the demo's own seed 1. It measures the demo's quantities with plain
transformers and scikit-learn: five-fold accuracy of early against late and of first against last entities at the last
token, and the positions of held-out centroids along the axis from first to last. Shuffled labels and the untrained
model are the controls.

    python -m benchmarks.data.demo_tuning --seed 101 --trial demo
    python -m benchmarks.data.demo_tuning --list

Not part of the suite: it chooses settings, compares no tools, and a trial takes minutes to hours.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from threadpoolctl import threadpool_limits

from stratalens.plugin.study.config.presets import get_preset
from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.models.smollm import load_smollm2
from stratalens.plugin.study.models.vocabulary import cut_vocabulary
from stratalens.plugin.study.training.checkpoints import load_checkpoint
from stratalens.plugin.study.training.train import loss_curves, train_stages

TUNING_SEEDS = (0, 101, 102)

# Start of the trials: 8 blocks, 4 epochs at 5e-4, otherwise the preset "demo".
START: dict[str, Any] = {"layers": 8, "train": {"epochs": 4, "learning_rate": 5e-4}}

# Changes to START; "demo" is the preset itself.
TRIALS: dict[str, dict[str, Any]] = {
    "demo": {},
    "start": {},
    "fewer-layers": {"layers": 6},
    "longer": {"train": {"epochs": 5}},
    "warm-up": {"train": {"warmup_steps": 8}},
    "gentler": {"train": {"learning_rate": 3e-4}},
    "natural-aliases": {"aliases": "natural"},
    # as many updates with half of the computation: half the batch size, half as many epochs
    "small-batches": {"train": {"batch_size": 16, "epochs": 2}},
    "small-batches-fewer-layers": {"layers": 6, "train": {"batch_size": 16, "epochs": 2}},
    "three-fast-epochs": {"train": {"epochs": 3, "learning_rate": 7e-4}},
}


def settings_of(trial: str, seed: int) -> StudySettings:
    base = get_preset("demo", seed=seed)
    if trial == "demo":
        return base
    changes = {**START, **TRIALS[trial]}
    changes["train"] = {**base.train.model_dump(), **START["train"], **TRIALS[trial].get("train", {})}
    return get_preset("demo", seed=seed, **changes)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def last_token(folder: Path, corpus: Corpus) -> dict[str, np.ndarray]:
    """Return the output of the last block and of the final norm at the last token of every prompt."""
    model, tokenizer = load_checkpoint(folder)
    ids = torch.tensor(tokenizer(list(corpus.prompts(("who",))["prompt"]))["input_ids"])
    results: dict[str, list[np.ndarray]] = {"resid_post": [], "ln_final": []}

    def keep(module: Any, options: Any, output: torch.Tensor) -> None:
        results["resid_post"].append(options[0][:, -1].numpy())
        results["ln_final"].append(output[:, -1].numpy())

    hook = model.model.norm.register_forward_hook(keep)
    with torch.no_grad():
        for start in range(0, len(ids), 128):
            model.model(input_ids=ids[start : start + 128])
    hook.remove()
    return {name: np.concatenate(parts) for name, parts in results.items()}


def accuracy(X: np.ndarray, y: np.ndarray) -> float:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    with threadpool_limits(1):
        model = LogisticRegression(C=0.1, max_iter=2000, tol=1e-6)
        return float(cross_val_score(model, X, y, cv=folds).mean())


def places(X: np.ndarray, stage: np.ndarray, repeats: int = 20) -> list[float]:
    """Return the positions of held-out centroids on the axis from the first (0) to the last stage (1)."""
    random = np.random.default_rng(0)
    numbers = np.unique(stage)
    results = []
    for _ in range(repeats):
        half = random.random(len(stage)) < 0.5
        axis_centroids = np.array([X[half & (stage == s)].mean(0) for s in numbers])
        shown = np.array([X[~half & (stage == s)].mean(0) for s in numbers])
        results.append(shown @ (axis_centroids[-1] - axis_centroids[0]))
    mean = np.mean(results, 0)
    return [round(float(v), 2) for v in (mean - mean[0]) / (mean[-1] - mean[0])]


def measure(X: np.ndarray, stage: np.ndarray) -> dict[str, Any]:
    ends = (stage == stage.min()) | (stage == stage.max())
    late = stage > np.median(np.unique(stage))
    random = np.random.default_rng(1)
    return {
        "early v late": round(accuracy(X, late), 3),
        "early v late, shuffled": round(accuracy(X, random.permutation(late)), 3),
        "first v last": round(accuracy(X[ends], stage[ends] == stage.max()), 3),
        "first v last, norm alone": round(
            accuracy(np.linalg.norm(X[ends], axis=1, keepdims=True), stage[ends] == stage.max()), 3
        ),
        "places": places(X, stage),
    }


def run(trial: str, seed: int, folder: Path) -> dict[str, Any]:
    settings = settings_of(trial, seed)
    model, tokenizer = load_smollm2(settings.layers)
    corpus = make_corpus(
        tokenizer,
        stages=settings.stage_names,
        entities_per_stage=settings.entities_per_stage,
        seed=seed,
        aliases=settings.aliases,
        paraphrases=settings.paraphrases,
        train_questions=settings.train_questions,
        templates=("who",),
    )
    began = cpu_seconds()
    checkpoints = train_stages(
        lambda: cut_vocabulary(model, tokenizer, corpus.all_texts()),
        corpus,
        settings.train,
        folder,
        seed=seed,
        base={"trial": trial},
    )
    spent = cpu_seconds() - began
    names = corpus.prompts(("who",))["trained_stage"]
    stage = np.array([settings.stage_names.index(name) for name in names])
    losses = loss_curves(checkpoints)
    result: dict[str, Any] = {"trial": trial, "seed": seed, "training cpu seconds": round(spent)}
    result["last loss of each stage"] = [
        [row["loss"] for row in losses if row["stage"] == name][-1] for name in settings.stage_names
    ]
    for name in (settings.stage_names[-1], UNTRAINED):
        for site, X in last_token(checkpoints[name], corpus).items():
            result[f"{name}, {site}"] = measure(X, stage)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", choices=sorted(TRIALS), default="demo")
    parser.add_argument("--seed", type=int, choices=TUNING_SEEDS, default=101)
    parser.add_argument("--list", action="store_true", help="print the trials and exit")
    options = parser.parse_args()
    if options.list:
        print(json.dumps(TRIALS, indent=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(options.trial, options.seed, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
