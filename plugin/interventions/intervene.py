"""intervene(): an intervention along directions on a table of prompts, over stages, layers and doses, with a null."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray

from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.directions.direction_set import Directions
from stratalens.analyses.directions.direction_set import directions as make_directions
from stratalens.analyses.directions.effects import summarise_effects
from stratalens.analyses.directions.random_directions import NULLS, NullKind
from stratalens.plugin.check.sample import TEXTS
from stratalens.plugin.interventions.arguments import check_arguments, choice_of, own_null, scored_rows
from stratalens.plugin.interventions.job import Plan, StageJob
from stratalens.plugin.interventions.model_fit import check_width, refuse_training, site_hooks, stage_of_weights
from stratalens.plugin.interventions.outcome_argument import OutcomeArgument, make_outcome
from stratalens.plugin.interventions.outcomes import OUTCOMES, Outcome
from stratalens.plugin.interventions.partial_results import PartialResults, identity_of
from stratalens.plugin.interventions.passes import Way
from stratalens.plugin.interventions.steer import PositionNames, recorded_values
from stratalens.plugin.interventions.text_outcome import TextOutcome
from stratalens.plugin.models.adapters import Adapter, ForwardFunction, adapt
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.models.site_resolution import resolve as resolve_sites
from stratalens.plugin.models.tokenizers import own_tokenizer
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.plugin.progress import Progress, ProgressFunction
from stratalens.plugin.prompts.positions import resolve as resolve_positions
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.plugin.stages.stage import loaded_model, parse_stages
from stratalens.store.errors import InputError, MismatchError, NonFiniteError, join_names

_REUSE: dict[str, Way] = {"auto": "positions", "blocks": "blocks", "nothing": "all"}


def intervene(
    stages: Any,
    table: PromptTable,
    directions: Directions | Data,
    kind: Literal["steer", "ablate", "patch"] = "steer",
    doses: Sequence[float] = (-2.0, -1.0, 1.0, 2.0),
    outcome: OutcomeArgument = "answer_loss",
    positions: PositionNames = "all",
    random: int = 20,
    seed: int = 0,
    *,
    null: NullKind | Directions | Data = "covariance",
    against: str = "other_answer",
    to: float | None = None,
    source: xr.Dataset | None = None,
    source_stage: str | None = None,
    source_rows: Sequence[int] | Sequence[str] | None = None,
    unrelated: PromptTable | Sequence[str] | None = None,
    other_stage: bool = False,
    overlap: Literal["exclude", "refuse", "allow"] = "exclude",
    reuse: Literal["auto", "blocks", "nothing"] = "auto",
    path: str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    prepend_bos: bool | None = None,
    forward: ForwardFunction | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str | torch.device | None = None,
    progress: bool | ProgressFunction | None = None,
) -> xr.Dataset:
    """Measure what an intervention along directions does to the output of a model.

    Every layer of the directions is changed alone. The same intervention along random directions is the null.

    Most of the work is shared, where an architecture allows it. The blocks below the intervention run once for each
    batch; the results are equal bit for bit. The tokens before the first changed one run once too, and later passes
    read their keys and values; the results are equal within rounding (1e-4 of the outcome). Four sequences are run both
    ways at every layer before the first batch. Where they differ, everything is computed. The attributes `computed`,
    `computed_positions` and `computed_difference` of the result say which it was.

    Args:
        stages: as for `capture`: one hooked model, or {name: model, function or checkpoint folder}.
        table: the prompts. Their `answer` is what most outcomes need.
        directions: result of `stratalens.directions`, or what it takes. Of several stages, a model is given those of
            its own weights. Pass `entities=` there to score only entities that did not make the directions.
        kind: "steer" adds dose x direction, "ablate" projects the direction out, "patch" replaces the coordinate
            along it by that of a recorded activation.
        doses: for steer: lengths of the added vector. The other kinds have the one dose 1.
        outcome: "answer_loss" (nats per token of the answer), "answer_difference" (log probability of `answer` minus
            that of `against`, in nats), "answer_probability", or a function `(logits, batch) -> (rows,)` of logits
            (rows, positions, vocabulary); `batch` has rows, ids, lengths and table. "text" or `GeneratedText(...)`
            generates text, keeps it, and counts how often it has the answer. The result of `probe`, selected to one
            layer, token and pair, gives the score of that probe, which has to be above the intervention.
        positions: "all", or names as for `capture`.
        random: number of random directions, at least 19 for a verdict.
        seed: of the random directions.
        null: "covariance" draws them from the covariance of the clean activations at these positions, "isotropic"
            without it, "orthogonal" from the covariance but orthogonal to the tested directions. Directions of your
            own, such as the result of `shuffled_probes`, take the place of the random ones; `random` is then their
            number.
        against: label column with the other answer.
        to: for ablate: the coordinate along the direction; None projects it out.
        source: for patch: result of `open_store`, with the same site and positions.
        source_stage: for patch: stage of `source`; None if there is one.
        source_rows: for patch: row of `source` for every row of the table.
        unrelated: prompts for the price of the intervention, the KL divergence of the next token after them; None
            takes four English sentences where the positions exist in them.
        other_stage: accept directions of another checkpoint than the model's.
        overlap: what happens to prompts of entities that made the directions, as far as these are known: "exclude" does
            not score them, "refuse" raises an error, "allow" scores them.
        reuse: "auto", "blocks" for results that are equal bit for bit, or "nothing".
        path: folder that ends in .zarr for the result. An interrupted job resumes with the same call; a complete one is
            opened.
        tokenizer: None takes the checkpoint's.
        prepend_bos: as for `capture`: True for one BOS token in front of every prompt, False for none, None for what
            the tokenizer adds. Use that of the store whose directions are tested.
        forward: your own forward function, as in `capture`.
        batch_size: sequences in a forward pass, or "auto" by memory.
        device: where models run; None leaves them where they are.
        progress: as for `capture`.

    Returns:
        Dataset over stage, layer, direction and dose; a site outside the blocks has no layer:

        - outcome (stage, layer, direction, dose, entity), clean (stage, entity): float64.
        - effect, effect_low, effect_high, effect_p (stage, layer, direction, dose): mean of intervened minus clean, its
          95 % interval over entities, and the share of directions as strong, random ones and this one.
        - null (stage, layer, dose, random): effects of the random directions.
        - slope, slope_low, slope_high, slope_p (stage, layer, direction), null_slope (stage, layer, random): effect per
          unit of dose; only with several doses.
        - p_max (stage, layer, direction): p of the largest effect over the doses, controlled over stages,
          layers and doses.
        - kl (stage, layer, direction, dose): nats, the price on unrelated prompts.
        - text (stage, layer, direction, dose, entity), clean_text (stage, entity): generated text, where the outcome
          is text.

        The attribute `verdict` says in one sentence for each direction what was tested and what it showed.

    Raises:
        InputError: an argument is invalid; prompts have no answers; every entity has made the directions; a dose makes
            an activation NaN or infinite. Nothing is written to `path` then.
        MismatchError: the directions do not fit a model, or `path` belongs to another job.
    """
    parsed = parse_stages(stages)
    chosen = make_directions(directions)
    own = None if isinstance(null, str) else own_null(null, chosen)
    null_kind: NullKind | Literal["own"] = "own" if own is not None else null  # type: ignore[assignment]
    numbers = check_arguments(kind, doses, random, null_kind, to, source, source_rows, table)
    fastest = choice_of(reuse, "reuse", _REUSE)
    choice_of(overlap, "overlap", dict.fromkeys(("exclude", "refuse", "allow")))
    scored = scored_rows(table, chosen, own, overlap)
    job: _Job | None = None
    for number, stage in enumerate(parsed):
        with loaded_model(stage, tokenizer, device) as model:
            adapter = adapt(model, forward)
            refuse_training(adapter)
            hooks = site_hooks(adapter, chosen.site, chosen.layer)
            check_width(adapter, chosen)
            fingerprint = weights_fingerprint(adapter)
            tested = stage_of_weights(adapter, chosen, other_stage, fingerprint)
            used = tokenizer if tokenizer is not None else own_tokenizer(adapter)
            with evaluation_mode(adapter.model):
                if job is None:
                    measured = make_outcome(outcome, table, used, adapter.max_length, against, chosen, prepend_bos)
                    where = resolve_positions(positions, table, measured.variants[0])
                    names = ("all",) if where.is_all else tuple(str(name) for name in where.labels)
                    recorded = None
                    if kind == "patch":
                        assert source is not None
                        blocks = chosen.layer or None
                        recorded, _ = recorded_values(source, chosen.site, source_stage, source_rows, names, blocks)
                _dry_run(adapter, hooks, measured)
                if job is None:
                    index = None if where.is_all else where.index
                    price = _price(unrelated, positions, used, adapter, kind, prepend_bos)
                    plan = Plan(
                        kind=kind, directions=chosen, doses=numbers, positions=names, index=index, outcome=measured,
                        random=random if own is None else len(own), null=null_kind, seed=seed, target=to,
                        source=recorded, batch_size=batch_size, price=price, compute=fastest, own_null=own,
                    )  # fmt: skip
                    stages_named = [s.name for s in parsed]
                    identity = _identity(plan, stages_named, table)
                    job = _Job(plan, table, stages_named, PartialResults(path, identity), scored)
                if (finished := job.finished(number, fingerprint)) is None:
                    job.run(adapter, hooks, tested, fingerprint, progress)
    assert job is not None
    return finished if finished is not None else job.result()


def _dry_run(adapter: Adapter, hooks: dict[int | None, str], measured: Outcome) -> None:
    """Run a few tokens: the site must fire, and the output layer may turn out to run separately."""
    ids = torch.from_numpy(np.concatenate([measured.variants[0].ids[0]] * 4))
    resolve_sites(adapter, [next(iter(hooks.values()))], None, ids)


def _price(
    unrelated: PromptTable | Sequence[str] | None,
    positions: PositionNames,
    tokenizer: Any,
    adapter: Adapter,
    kind: str,
    prepend_bos: bool | None,
) -> tuple[TokenizedPrompts, NDArray[np.int64] | None] | None:
    """Tokenise the unrelated prompts; None where there are none, or default ones without these positions."""
    if kind == "patch" or adapter.dry_run_result is None:
        return None  # recorded activations belong to the table, or the model returns no logits
    if unrelated is None or isinstance(unrelated, PromptTable):
        prompts = unrelated
    else:
        prompts = PromptTable.from_dataframe(pd.DataFrame({"prompt": list(unrelated)}))
    own = prompts if prompts is not None else PromptTable.from_dataframe(pd.DataFrame({"prompt": list(TEXTS)}))
    try:
        tokenized = own.tokenize(tokenizer, max_length=adapter.max_length, prepend_bos=prepend_bos)
        where = resolve_positions(positions, own, tokenized)
    except InputError:
        if prompts is None:
            return None
        raise
    return tokenized, None if where.is_all else where.index


def _identity(plan: Plan, stages: list[str], table: PromptTable) -> str:
    """Hash of everything that the values depend on, except the weights."""
    directions = plan.directions
    return identity_of(
        {
            "version": 1,
            "kind": plan.kind,
            "site": directions.site,
            "names": directions.names,
            "layers": directions.layer,
            "vectors": directions.vectors.values,
            "doses": plan.doses,
            "positions": plan.positions,
            "index": plan.index if plan.index is not None else "all",
            "outcome": plan.outcome.digest,
            "random": [plan.random, plan.null, plan.seed],
            **({} if plan.own_null is None else {"null": plan.own_null.vectors.values}),
            "to": plan.target,
            "source": plan.source if plan.source is not None else "",
            "price": plan.price[0].digest if plan.price is not None else "",
            "stages": stages,
            "rows": [str(name) for name in table.labels()["entity"]],
            "fingerprints": sorted(directions.fingerprints.values()),
        }
    )


@dataclass(eq=False)
class _Job:
    """A job over all stages.

    Attributes:
        plan: what to do.
        table: the prompts.
        stages: names of the stages.
        parts: what is finished.
        scored: rows whose outcome is scored, bool array of shape (rows,).
    """

    plan: Plan
    table: PromptTable
    stages: list[str]
    parts: PartialResults
    scored: NDArray[np.bool_]
    fingerprints: list[str] = field(default_factory=list)
    outcomes: list[Array] = field(default_factory=list)
    cleans: list[Array] = field(default_factory=list)
    prices: list[Array | None] = field(default_factory=list)
    texts: list[tuple[Array, Array]] = field(default_factory=list)
    reuse: list[Array] = field(default_factory=list)

    def finished(self, number: int, fingerprint: str) -> xr.Dataset | None:
        """Result of an earlier call, or None.

        Raises:
            MismatchError: it was computed with other weights at this stage.
        """
        result = self.parts.finished()
        if result is not None and str(result["weights_fingerprint"].values[number]) != fingerprint:
            raise MismatchError(
                f"{self.parts.path} was computed with other weights at stage {self.stages[number]!r}; choose another "
                "path"
            )
        return result

    def run(
        self,
        adapter: Adapter,
        hooks: dict[int | None, str],
        tested: str | None,
        fingerprint: str,
        progress: bool | ProgressFunction | None,
    ) -> None:
        """Run one stage, or what an earlier call left of it."""
        plan, name = self.plan, f"{len(self.outcomes)}-{fingerprint[:16]}"
        sequences = len(plan.outcome.lengths)
        shape = (len(hooks), len(plan.directions) + plan.random, len(plan.doses), sequences)
        values, clean = self.parts.array(f"{name}-values", shape), self.parts.array(f"{name}-clean", (sequences,))
        kl = None if plan.price is None else self.parts.array(f"{name}-kl", (shape[0], len(plan.directions), shape[2]))
        reuse = self.parts.array(f"{name}-reuse", (2,))
        tokens, stage = None, self.stages[len(self.outcomes)]
        if isinstance(plan.outcome, TextOutcome):
            each = (sequences, plan.outcome.new_tokens)
            tokens = (
                self.parts.array(f"{name}-tokens", (shape[0], len(plan.directions), shape[2], *each)),
                self.parts.array(f"{name}-clean-tokens", each),
            )
        job = StageJob(plan, adapter, hooks, stage, tested, values, clean, kl, tokens, reuse, self.parts.flush)
        total = shape[0] * sequences
        try:
            with Progress(stage, total - job.todo(), total, progress) as bar:
                job.run(bar)
        except (InputError, NonFiniteError):
            self.parts.discard()  # the same input will be refused again
            raise
        self.fingerprints.append(fingerprint)
        self.outcomes.append(plan.outcome.combine(_untested(job.values)))
        self.cleans.append(plan.outcome.combine(np.array(job.clean)))
        self.prices.append(None if kl is None else _untested(kl))
        if tokens is not None:
            assert isinstance(plan.outcome, TextOutcome)
            self.texts.append((plan.outcome.texts(tokens[0]), plan.outcome.texts(tokens[1])))
        self.reuse.append(np.nan_to_num(np.array(reuse)))

    def result(self) -> xr.Dataset:
        """Compute the effects, and write them where the caller gave a path."""
        return self.parts.finish(self._assemble())

    def _assemble(self) -> xr.Dataset:
        plan, chosen, count = self.plan, self.plan.directions, len(self.plan.directions)
        values = np.stack(self.outcomes)
        labels = self.table.labels()
        dims = ["stage", "layer", "direction", "dose", "entity"]
        coords: dict[Any, Any] = {
            "stage": np.array(self.stages, object),
            "direction": np.array(chosen.names, object),
            "dose": np.array(plan.doses),
            "entity": labels.pop("entity"),
        }
        if chosen.layer:
            coords["layer"] = list(chosen.layer)
        coords |= {c: v for c, v in chosen.data.coords.items() if v.dims == ("direction",) and c != "direction"}
        labels.pop("prompt")
        coords |= {name: ("entity", value) for name, value in labels.items() if name not in coords}
        tested = xr.DataArray(values[:, :, :count], dims=dims, name="outcome")
        if not chosen.layer:
            tested = tested.isel(layer=0)
        tested = tested.assign_coords(coords)
        clean = xr.DataArray(np.stack(self.cleans), dims=("stage", "entity"))
        entity = np.array([str(name) for name in labels["entity_id"]])
        scored = self.scored
        seen = np.isin(entity, sorted(chosen.entities)) if chosen.entities else np.zeros(len(entity), bool)
        least = min(int(values[0]) for values in self.reuse)  # of all stages
        attrs = {
            "kind": plan.kind,
            "site": chosen.site,
            "positions": join_names(plan.positions),
            "outcome": plan.outcome.name,
            "unit": OUTCOMES.get(plan.outcome.name, ""),
            "null_kind": _null_words(plan),
            "random": plan.random,
            "seed": plan.seed,
            "interval": "95 % over the entities whose outcome is scored",
            "computed": "all blocks" if least == 0 else "blocks above the intervention",
            "computed_positions": "from the first changed token on" if least == 2 else "all positions",
            "computed_difference": float(max(values[1] for values in self.reuse)),
        }
        attrs |= {
            k: v for k, v in chosen.data.attrs.items() if k in ("method", "target", "by", "stratalens_key", "model")
        }
        attrs["entities_that_made_the_directions"] = len(np.unique(entity[seen]))
        attrs["overlap"] = _overlap_words(chosen, seen, scored)
        units = np.unique(entity, return_inverse=True)[1]
        kl = None
        if all(price is not None for price in self.prices):
            kl = xr.DataArray(np.stack([p for p in self.prices if p is not None]), dims=dims[:4])
            kl = kl if chosen.layer else kl.isel(layer=0)
        result = summarise_effects(
            tested, clean, values[:, :, count:], units=units, scored=scored, attrs=attrs, price=kl
        )
        if self.texts:
            texts, clean_texts = (np.stack(parts) for parts in zip(*self.texts, strict=True))
            result["text"] = (dims, texts) if chosen.layer else (tested.dims, texts[:, 0])
            result["clean_text"] = (("stage", "entity"), clean_texts)
        return result.assign_coords(
            scored=("entity", scored), weights_fingerprint=("stage", np.array(self.fingerprints, object))
        )


def _null_words(plan: Plan) -> str:
    """Words for the directions of the null."""
    if plan.own_null is not None and "shuffled" in plan.own_null.data.attrs:
        return f"of the same length, from shuffled {plan.own_null.data.attrs['shuffled']}"
    return NULLS[plan.null]


def _overlap_words(directions: Directions, seen: NDArray[np.bool_], scored: NDArray[np.bool_]) -> str:
    """Say whether entities that are scored made the directions."""
    if not directions.entities:
        return "not known: the directions do not say which entities made them"
    if not seen.any():
        return "none: no entity of the prompts made the directions"
    if (seen & scored).any():
        return "entities that made the directions are scored too"
    return "entities that made the directions are not scored"


def _untested(values: Array) -> Array:
    """Values with NaN where a direction has length zero."""
    return np.where(np.isinf(values), np.nan, values)
