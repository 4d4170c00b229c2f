"""One stage of an intervention job: clean passes, random directions, the sweep over layers, directions and doses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.directions.direction_set import Directions
from stratalens.analyses.directions.random_directions import NullKind, random_directions
from stratalens.plugin.capture.batching import BatchSize, length_buckets
from stratalens.plugin.interventions.block_outputs import BlockOutputs
from stratalens.plugin.interventions.edit_hooks import Intervention
from stratalens.plugin.interventions.edited_positions import EditedPositions
from stratalens.plugin.interventions.edits import Add, Edit, Replace, SetCoordinate
from stratalens.plugin.interventions.outcomes import Outcome, OutputReader
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.hooks import observed
from stratalens.plugin.progress import Progress
from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.store.errors import InputError, NonFiniteError

SAMPLE_ROWS = 2048  # activations from which random directions are drawn

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a job does at every stage.

    Attributes:
        kind: steer, ablate or patch.
        directions: the directions.
        doses: lengths of the added vector; (1.0,) for ablate and patch.
        positions: names of the edited positions, or ("all",).
        index: token index of each position, int64 array of shape (rows, positions); None for all.
        outcome: what is measured.
        random: number of random directions.
        null: how they are drawn.
        seed: of the random directions.
        target: coordinate that ablation sets.
        source: recorded activations for patch, float32 array of shape (layers, rows, positions, features).
        batch_size: sequences in a forward pass, or "auto".
        price: unrelated prompts, for the KL divergence, with the index of their positions.
    """

    kind: str
    directions: Directions
    doses: tuple[float, ...]
    positions: tuple[str, ...]
    index: Ids | None
    outcome: Outcome
    random: int
    null: NullKind
    seed: int
    target: float | None
    source: Array | None
    batch_size: int | str
    price: tuple[TokenizedPrompts, Ids | None] | None


@dataclass(eq=False)
class StageJob:
    """The job of one stage.

    Attributes:
        plan: what to do.
        adapter: the model.
        hooks: hook of each layer.
        tested: stage whose directions are used, or None.
        values: float64 array of shape (layers, directions + random, doses, sequences), filled in place; NaN = to do.
        clean: float64 array of shape (sequences,), filled in place.
        kl: float64 array of shape (layers, directions, doses), filled in place; None without unrelated prompts.
        flush: called after every finished batch.
        skipped: whether the blocks below the intervention were left out, at every layer where it was possible.
    """

    plan: Plan
    adapter: Adapter
    hooks: dict[int | None, str]
    tested: str | None
    values: NDArray[np.float64]
    clean: NDArray[np.float64]
    kl: NDArray[np.float64] | None
    flush: Callable[[], None]
    skipped: bool = True
    _reader: OutputReader = field(init=False)

    def __post_init__(self) -> None:
        self._reader = OutputReader(self.adapter)
        # A mask or ids of a function's outcome need all logits, those of answers a few rows.
        self._output: Any = "none" if self._reader.split and self.plan.outcome.function is None else "logits"

    def run(self, progress: Progress) -> None:
        """Fill `values`, `clean` and `kl`."""
        with self._reader.attached():
            sample = self._clean_pass()
            prices = self._price_logits(None) if self.plan.price is not None else None
            for number, (layer, hook) in enumerate(self.hooks.items()):
                vectors = self._vectors(layer, sample.get(hook))
                for sequences, pad_to in self._batches(np.isnan(self.values[number]).any(axis=(0, 1))):
                    self._run_batch(number, layer, hook, vectors, sequences, pad_to)
                    self.flush()
                    progress.advance(len(sequences))
                if prices is not None and self.kl is not None and np.isnan(self.kl[number]).any():
                    self._measure_price(number, hook, vectors, prices)
                    self.flush()

    def todo(self) -> int:
        """Sequences times layers that are not computed yet."""
        return int(np.isnan(self.values).any(axis=(1, 2)).sum())

    def _batches(self, wanted: NDArray[np.bool_]) -> list[tuple[Ids, int]]:
        """Batches of the wanted sequences; a sequence is padded to the same length whatever was done before."""
        lengths = self.plan.outcome.lengths
        width = max(self.adapter.size("d_mlp") or 0, 4 * (self.adapter.size("d_model") or 1024))
        size = BatchSize(self.plan.batch_size, self.adapter, 8 * width * torch.finfo(self.adapter.dtype).bits // 8)
        batches = []
        for bucket in length_buckets(np.arange(len(lengths)), lengths):
            rows = bucket.rows[wanted[bucket.rows]]
            step = size.rows(bucket.pad_to)
            batches += [(rows[start : start + step], bucket.pad_to) for start in range(0, len(rows), step)]
        return batches

    def _run(self, ids: Tensor, mask: Tensor) -> Any:
        device = self.adapter.device
        return self.adapter.run(ids.to(device), mask.to(device), self._output)

    def _score(self, sequences: Ids, ids: Tensor, mask: Tensor) -> NDArray[np.float64]:
        return self.plan.outcome.score(self._reader, self._run(ids, mask), sequences, ids)

    def _clean_pass(self) -> dict[str, Array]:
        """Fill `clean`, and sample the activations at the edited positions, by hook."""
        plan = self.plan
        needs_sample = plan.random > 0 and plan.null != "isotropic"
        rows = plan.outcome.rows
        each = max(1, SAMPLE_ROWS // rows)
        sample: dict[str, list[Array]] = {hook: [] for hook in self.hooks.values()}
        rng = np.random.default_rng([plan.seed, 1])
        picks = {
            s: self._pick(s, each, rng) for s in range(min(rows, SAMPLE_ROWS)) if needs_sample
        }  # before any batch, so that batches do not change the draws
        wanted = np.ones(len(self.clean), bool) if needs_sample else np.isnan(self.clean)
        gathered: dict[tuple[str, int], Array] = {}
        for sequences, pad_to in self._batches(wanted):
            ids, mask = plan.outcome.batch(sequences, pad_to)

            def gather(hook: str, value: Tensor, sequences: Ids = sequences) -> None:
                for i, sequence in enumerate(sequences.tolist()):
                    if sequence in picks:
                        chosen = value[i if value.shape[0] > 1 else 0].flatten(1)[torch.from_numpy(picks[sequence])]
                        gathered[hook, sequence] = chosen.float().cpu().numpy()

            functions = (
                [(self.adapter.points[hook], lambda value, hook=hook: gather(hook, value)) for hook in sample]
                if needs_sample
                else []
            )
            with observed(functions):
                scores = self._score(sequences, ids, mask)
            if not np.isfinite(scores).all():
                raise NonFiniteError(f"outcome {plan.outcome.name!r} is NaN or infinite without an intervention")
            self.clean[sequences] = scores
        self.flush()
        return {
            hook: np.concatenate([gathered[hook, s] for s in sorted(picks) if len(picks[s])])
            for hook in sample
            if gathered
        }

    def _pick(self, row: int, each: int, rng: np.random.Generator) -> Ids:
        """Token positions of a row from which random directions are drawn."""
        if self.plan.index is not None:
            own: Ids = self.plan.index[row]
            own = own[own >= 0]
            return own[:each]
        length = int(self.plan.outcome.variants[0].lengths[row])
        return np.asarray(np.sort(rng.choice(length, size=min(each, length), replace=False)), dtype=np.int64)

    def _vectors(self, layer: int | None, sample: Array | None) -> Tensor:
        """Tested and random unit vectors at one layer, float32 tensor of shape (directions + random, features)."""
        tested = self.plan.directions.at(self.tested, layer)
        if not self.plan.random:
            return torch.from_numpy(tested)
        if not np.isfinite(tested).all(axis=1).any():  # nothing is tested here, so no null is needed
            return torch.full((len(tested) + self.plan.random, tested.shape[1]), torch.nan)
        activations = sample if sample is not None else np.zeros((1, tested.shape[1]), np.float32)
        drawn = random_directions(
            activations,
            self.plan.random,
            self.plan.seed,
            self.plan.null,
            tested,
        )
        if not np.isfinite(drawn).all():
            raise InputError(
                f"the activations at {'layer ' + str(layer) if layer is not None else 'this site'} and these positions "
                "do not vary between prompts, so that random directions cannot be drawn from them; pass "
                "null='isotropic', or select other layers"
            )
        return torch.from_numpy(np.concatenate([tested, drawn.astype(np.float32)]))

    def _edit(self, number: int, vector: Tensor, dose: float, rows: Ids | None) -> Edit:
        plan = self.plan
        if plan.kind == "steer":
            return Add(dose * vector)
        if plan.kind == "ablate":
            return SetCoordinate(vector[None], None if plan.target is None else torch.tensor([plan.target]))
        assert plan.source is not None
        assert rows is not None
        return Replace(torch.from_numpy(plan.source[number][rows]), vector[None])

    def _run_batch(
        self, number: int, layer: int | None, hook: str, vectors: Tensor, sequences: Ids, pad_to: int
    ) -> None:
        """Run all directions and doses on one batch."""
        plan, rows = self.plan, sequences % self.plan.outcome.rows
        ids, mask = plan.outcome.batch(sequences, pad_to)
        index = None if plan.index is None else plan.index[rows]
        below = BlockOutputs(self.adapter, layer)
        if below.can_skip and self.skipped:
            with below.recorded():
                self._score(sequences, ids, mask)
        checked = False
        for v, vector in enumerate(vectors):
            for d, dose in enumerate(plan.doses):
                if not bool(torch.isfinite(vector).all()):
                    self.values[number, v, d, sequences] = np.inf  # not tested: its length is zero here
                    continue
                if plan.kind == "steer" and dose == 0:
                    self.values[number, v, d, sequences] = self.clean[sequences]
                    continue
                name = plan.directions.names[v] if v < len(plan.directions) else "a random direction"
                what = f"dose {dose:g} of {name!r}" if plan.kind == "steer" else f"{plan.kind} along {name!r}"
                edit = self._edit(number, vector, dose, rows)
                with self._edited(hook, edit, index, vectors.shape[1], what):
                    if below.can_skip and self.skipped:
                        with below.replayed():
                            scores = self._score(sequences, ids, mask)
                        if not checked:
                            checked = True
                            whole = self._score(sequences, ids, mask)
                            if not np.array_equal(scores, whole):
                                self.skipped, scores = False, whole
                    else:
                        scores = self._score(sequences, ids, mask)
                if not np.isfinite(scores).all():
                    raise InputError(
                        f"{what} at {hook} makes the outcome {plan.outcome.name!r} NaN or infinite; use a smaller dose"
                    )
                self.values[number, v, d, sequences] = scores
        below.clear()

    def _edited(self, hook: str, edit: Edit, index: Ids | None, width: int, what: str) -> Intervention:
        positions = EditedPositions(self.plan.positions)
        positions.set_index(index)
        return Intervention(self.adapter, {hook: edit}, positions, width, what)

    def _price_logits(self, edited: tuple[str, Edit] | None) -> Tensor:
        """Log probabilities of the token after each unrelated prompt, tensor of shape (prompts, vocabulary)."""
        assert self.plan.price is not None
        tokenized, index = self.plan.price
        rows = np.arange(len(tokenized))
        ids, mask = (torch.from_numpy(a) for a in tokenized.batch(rows, int(tokenized.lengths.max())))
        if edited is None:
            result = self._run(ids, mask)
            logits = self._reader.logits(result, rows, tokenized.lengths - 1)
        else:
            hook, edit = edited
            with self._edited(hook, edit, index, self.plan.directions.at(self.tested, None).shape[1], "the dose"):
                result = self._run(ids, mask)
                logits = self._reader.logits(result, rows, tokenized.lengths - 1)
        return logits.log_softmax(dim=-1)

    def _measure_price(self, number: int, hook: str, vectors: Tensor, clean: Tensor) -> None:
        """Fill `kl`: mean KL divergence of the next token after unrelated prompts, clean from edited, in nats."""
        assert self.kl is not None
        for v in range(len(self.plan.directions)):
            for d, dose in enumerate(self.plan.doses):
                if not bool(torch.isfinite(vectors[v]).all()):
                    self.kl[number, v, d] = np.inf
                    continue
                edited = self._price_logits((hook, self._edit(number, vectors[v], dose, None)))
                self.kl[number, v, d] = float((clean.exp() * (clean - edited)).sum(dim=-1).mean())
