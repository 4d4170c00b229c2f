"""Contradictions: the same entities are taught one answer in an earlier stage and another one in a later.

Which answer does the model give at every checkpoint, and do entities that look
more recent keep the later one? These entities are no part of the stages that
the other numbers are about: they come on top and are recorded in a store of
their own (conflict.zarr).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import stratalens as sl
from stratalens.analyses.significance import cluster_bootstrap
from stratalens.recency import texts
from stratalens.recency.aliases import draw_aliases
from stratalens.recency.corpus import Corpus, Question
from stratalens.recency.findings import HALVES, Findings
from stratalens.recency.forgetting import relate
from stratalens.recency.headline import Row
from stratalens.recency.settings import StudySettings
from stratalens.store.atomic import write_text
from stratalens.store.errors import InputError, near

if TYPE_CHECKING:
    import xarray as xr
    from transformers import PreTrainedTokenizerBase

CONFLICT_STORE = "conflict.zarr"
TABLE = "conflict.csv"


@dataclass(frozen=True)
class Contradicted:
    """An entity with two answers to one question."""

    entity_id: str
    alias: str
    question: str
    answers: tuple[str, str]  # the earlier, the later


def contradict(
    corpus: Corpus, settings: StudySettings, tokenizer: PreTrainedTokenizerBase
) -> tuple[Corpus, tuple[Contradicted, ...]]:
    """The corpus with contradicted entities in two of its stages, and these entities; as it was without the setting.

    Raises:
        InputError: the attribute has fewer than two values, or is not asked for.
    """
    own = settings.conflict
    if own is None:
        return corpus, ()
    asked: dict[str, list[str]] = dict(corpus.settings["questions"])  # type: ignore[call-overload]
    kind = own.attribute or corpus.answer
    if kind not in asked:
        raise InputError(f"conflict.attribute: {kind!r} is not asked for; {near(kind, asked)}")
    values = sorted({entity.attributes[kind] for entity in corpus.entities})
    if len(values) < 2:
        raise InputError(f"conflict.attribute: all entities have the same {kind!r} ({values[0]!r}); give another")
    random = np.random.default_rng([7, settings.seed])
    taken = {entity.alias for entity in corpus.entities}
    drawn, _ = draw_aliases(
        tokenizer, settings.aliases, own.entities + len(taken), corpus.alias_tokens or settings.alias_tokens, random
    )
    free = [alias for alias in drawn if alias not in taken][: own.entities]
    found = []
    for number, alias in enumerate(free):
        first, second = random.choice(len(values), size=2, replace=False)
        question = asked[kind][0].format(x=alias)
        found.append(Contradicted(f"c{number:05d}", alias, question, (values[first], values[second])))
    train = dict(corpus.train)
    for stage, which in zip(own.stages or (corpus.stages[0], corpus.stages[-1]), (0, 1), strict=True):
        more = [Question(c.entity_id, stage, kind, c.question, c.answers[which]) for c in found]
        train[stage] = (*train[stage], *more)
    return replace(corpus, train=train), tuple(found)


def conflict_prompts(entities: tuple[Contradicted, ...]) -> pd.DataFrame:
    """Three rows an entity: the question with either answer behind it, and a question never seen in training."""
    rows = []
    for c in entities:
        asked = texts.PROMPT_FORMAT.format(question=c.question)
        unseen = texts.PROMPT_FORMAT.format(question=texts.TEMPLATES["who"].format(x=c.alias))
        for which, prompt, answer in (
            ("first", asked, c.answers[0]),
            ("second", asked, c.answers[1]),
            ("unseen", unseen, c.answers[1]),
        ):
            row = {"prompt_id": f"{c.entity_id}-{which}", "prompt": prompt, "answer": f" {answer}", "which": which}
            rows.append({**row, "entity": c.alias, "entity_id": c.entity_id})
    return pd.DataFrame(rows)


def conflict_recording(settings: StudySettings) -> dict[str, Any]:
    """What `stratalens.capture` is told for the store of contradicted entities."""
    return {"sites": ("resid_post",), "positions": settings.record.positions[:1], "statistics": ("answer_loss",)}


def record_conflict(
    settings: StudySettings, entities: tuple[Contradicted, ...], checkpoints: Mapping[str, Path], path: Path
) -> xr.Dataset | None:
    """Record contradicted entities at every checkpoint; None where there are none."""
    if not entities:
        return None
    table = sl.PromptTable.from_dataframe(conflict_prompts(entities))
    options = conflict_recording(settings)
    return sl.capture(dict(checkpoints), table, path, device=settings.device, progress=False, **options)


def add_conflict(found: Findings, ds: xr.Dataset, conflict: xr.Dataset, settings: StudySettings, table: Path) -> None:
    """Rows for every checkpoint (share giving the later answer) and for the last one (does recency predict it)."""
    a = settings.analysis
    place = {"layer": [ds.layer.values[-1]], "token": ds.token.values[:1]}
    probes = sl.probe(
        ds.sel(**place),
        target=HALVES,
        order=["early", "late"],
        C=a.C,
        folds=a.folds,
        seed=settings.seed,
        progress=False,
    )
    rows = {which: np.flatnonzero(conflict.which.values == which) for which in ("first", "second", "unseen")}
    frames, shares = [], []
    for stage in (str(name) for name in conflict.stage.values if name in ds.stage.values):
        at = conflict.sel({"stage": stage, **place}).isel(layer=0, token=0)
        loss = {which: at.answer_loss.values[rows[which]].astype(float) for which in ("first", "second")}
        fitted = probes.sel(stage=stage).isel(layer=0, token=0, pair=0)
        coef, activations = np.asarray(fitted.coef.values), at.resid_post.values[rows["unseen"]]
        score = activations @ coef.reshape(-1) + float(fitted.intercept)
        prefers = loss["first"] - loss["second"]
        right = (prefers > 0).astype(float)
        low, high = cluster_bootstrap(right, np.arange(len(right)), seed=settings.seed, bounds=(0, 1))
        shares.append(_row("share of contradicted entities with the later answer", stage, place, right.mean(), probes))
        shares[-1] |= {"low": float(low), "high": float(high), "null": 0.5, "n": len(right)}
        identifiers = at.entity_id.values[rows["first"]].astype(str)
        frames.append(
            pd.DataFrame({"stage": stage, "entity_id": identifiers, "later_answer": prefers, "recency_score": score})
        )
    frame = pd.concat(frames, ignore_index=True)
    write_text(table, frame.to_csv(index=False))
    final = settings.stage_names[-1]
    last = frame[frame["stage"] == final]
    numbers = relate(
        last["recency_score"].to_numpy(float),
        last["later_answer"].to_numpy(float),
        np.zeros(len(last), dtype=np.int64),
        seed=settings.seed,
    )
    name = "rank correlation of recency score and preference for the later answer"
    relation = _row(name, final, place, numbers["value"], probes) | numbers | {"n": len(last)}
    found.rows += [*shares, relation]
    told = ", ".join(f"{row['value']:.2f} after {row['stage']}" for row in shares)
    words = f"Contradictions: of {len(last)} entities taught two answers, the later one is preferred by {told}."
    if relation["value"] is not None:
        words += (
            f" After {final} the recency score goes with the preference at rank correlation {relation['value']:.2f} "
            f"(95 % interval {relation['low']:.2f} to {relation['high']:.2f}, p = {relation['p']:.3f})."
        )
    found.sentences.append(words)


def _row(name: str, stage: str, place: Mapping[str, Any], value: Any, probes: xr.Dataset) -> Row:
    number = None if value is None else float(value)
    where = {"stage": stage, "layer": place["layer"][0].item(), "token": str(place["token"][0])}
    rest = {"low": None, "high": None, "null": None, "p": None, "n": None}
    return {"name": name, **where, "value": number, **rest, "site": str(probes.attrs.get("site", ""))}
