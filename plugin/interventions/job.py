"""One stage of an intervention job: clean passes, random directions, the sweep over layers, directions and doses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.directions.direction_set import Directions
from stratalens.analyses.directions.random_directions import NullKind, random_directions
from stratalens.plugin.capture.batching import BatchSize, free_memory, length_buckets
from stratalens.plugin.interventions.edit_hooks import check_activation
from stratalens.plugin.interventions.edits import Add, Edit, Replace, SetCoordinate
from stratalens.plugin.interventions.outcomes import Outcome
from stratalens.plugin.interventions.output_readers import DivergenceReader, Reader
from stratalens.plugin.interventions.passes import WAYS, Batch, NamedEdit, Passes, Way
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
        compute: how much of a clean pass may be reused.
        own_null: directions in the place of random ones; None draws them.
    """

    kind: str
    directions: Directions
    doses: tuple[float, ...]
    positions: tuple[str, ...]
    index: Ids | None
    outcome: Outcome
    random: int
    null: NullKind | Literal["own"]
    seed: int
    target: float | None
    source: Array | None
    batch_size: int | str
    price: tuple[TokenizedPrompts, Ids | None] | None
    compute: Way = "positions"
    own_null: Directions | None = None


@dataclass(eq=False)
class StageJob:
    """The job of one stage.

    Attributes:
        plan: what to do.
        adapter: the model.
        hooks: hook of each layer.
        stage: name of the stage.
        tested: stage whose directions are used, or None.
        values: float64 array of shape (layers, directions + random, doses, sequences), filled in place; NaN = to do.
        clean: float64 array of shape (sequences,), filled in place.
        kl: float64 array of shape (layers, directions, doses), filled in place; None without unrelated prompts.
        tokens: float64 array of shape (layers, directions, doses, sequences, tokens) of generated token ids, filled in
            place, and one of shape (sequences, tokens) of the clean model; None where no text is generated.
        reuse: float64 array of shape (2,), filled in place: how much of a clean pass was reused, as index into `WAYS`,
            and the largest difference from whole passes in the check before the first batch.
        flush: called after every finished batch.
    """

    plan: Plan
    adapter: Adapter
    hooks: dict[int | None, str]
    stage: str
    tested: str | None
    values: NDArray[np.float64]
    clean: NDArray[np.float64]
    kl: NDArray[np.float64] | None
    tokens: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    reuse: NDArray[np.float64]
    flush: Callable[[], None]
    _reader: Reader = field(init=False)
    _passes: Passes = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        self._reader = plan.outcome.reader(self.adapter, self.stage, self.tested)
        width = math.prod(plan.directions.feature_shape)
        self._passes = Passes(self.adapter, self._reader, self.hooks, plan.positions, width)

    def run(self, progress: Progress) -> None:
        """Fill `values`, `clean`, `kl` and `tokens`."""
        with self._reader.attached():
            sample = self._clean_pass()
            vectors = [self._vectors(layer, sample.get(hook)) for layer, hook in self.hooks.items()]
            wanted = np.asarray(np.isnan(self.values).any(axis=(1, 2)))
            self._choose(vectors, wanted)
            for sequences, pad_to in self._batches(np.asarray(wanted.any(axis=0))):
                self._run_batch(vectors, sequences, pad_to, wanted[:, sequences].sum(axis=1), progress)
        if self.kl is not None and np.isnan(self.kl).any():
            self._measure_price(vectors)

    def todo(self) -> int:
        """Sequences times layers that are not computed yet."""
        return int(np.isnan(self.values).any(axis=(1, 2)).sum())

    def _batches(self, wanted: NDArray[np.bool_]) -> list[tuple[Ids, int]]:
        """Batches of the wanted sequences; a sequence is padded to the same length whatever was done before."""
        lengths = self.plan.outcome.lengths
        adapter = self.adapter
        width = max(adapter.size("d_mlp") or 0, 4 * (adapter.size("d_model") or 1024))
        numbers = 8 * width
        if self.plan.compute == "positions":  # keys and values of every block
            numbers += 2 * (adapter.n_layers or 1) * (adapter.size("d_model") or 1024)
        size = BatchSize(self.plan.batch_size, adapter, numbers * torch.finfo(adapter.dtype).bits // 8)
        batches = []
        for bucket in length_buckets(np.arange(len(lengths)), lengths):
            rows = bucket.rows[wanted[bucket.rows]]
            step = size.rows(bucket.pad_to)
            batches += [(rows[start : start + step], bucket.pad_to) for start in range(0, len(rows), step)]
        return batches

    def _batch(self, sequences: Ids, pad_to: int) -> Batch:
        plan = self.plan
        index = None if plan.index is None else plan.index[sequences % plan.outcome.rows]
        return Batch(sequences, *plan.outcome.batch(sequences, pad_to), index)

    def _choose(self, vectors: list[Tensor], wanted: NDArray[np.bool_]) -> None:
        """Check on the two shortest and the two longest sequences how much of a clean pass can be reused."""
        lengths = self.plan.outcome.lengths
        order = np.argsort(lengths, kind="stable")
        few = np.unique(np.concatenate([order[:2], order[-2:]]))
        batch = self._batch(few, int(lengths.max()))
        edits = {}
        for number, (layer, own) in enumerate(zip(self.hooks, vectors, strict=True)):
            usable = torch.isfinite(own).all(dim=1).nonzero().flatten().tolist()
            if not usable or not wanted[number].any():
                continue
            largest = max(self.plan.doses, key=abs)
            pairs = {(usable[0], largest), (usable[-1], min(self.plan.doses))}
            edits[layer] = [
                NamedEdit(self._edit(number, own[v], dose, few % self.plan.outcome.rows), self._what(v, dose, layer))
                for v, dose in sorted(pairs)
            ]
        if edits:
            self._passes.choose(batch, edits, self.plan.compute)
            used = np.array([WAYS.index(self._passes.way), self._passes.difference])
            self.reuse[:] = np.fmax(self.reuse, used)  # also what an interrupted call has used

    def _clean_pass(self) -> dict[str, Array]:
        """Fill `clean`, and sample the activations at the edited positions, by hook."""
        plan = self.plan
        needs_sample = plan.random > 0 and plan.null not in ("isotropic", "own")
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
            batch = self._batch(sequences, pad_to)

            def gather(hook: str, value: Tensor, sequences: Ids = sequences) -> None:
                check_activation(value, hook, math.prod(plan.directions.feature_shape))
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
                scores = self._passes.clean_scores(batch)
            if self.tokens is not None:
                self.tokens[1][sequences] = self._generated()
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
        plan = self.plan
        tested = plan.directions.at(self.tested, layer)
        if not plan.random:
            return torch.from_numpy(tested)
        if not np.isfinite(tested).all(axis=1).any():  # nothing is tested here, so no null is needed
            return torch.full((len(tested) + plan.random, tested.shape[1]), torch.nan)
        if plan.own_null is not None:
            own = plan.own_null.at(self._stage_of(plan.own_null), layer)
            return torch.from_numpy(np.concatenate([tested, own]))
        activations = sample if sample is not None else np.zeros((1, tested.shape[1]), np.float32)
        assert plan.null != "own"
        drawn = random_directions(activations, plan.random, plan.seed, plan.null, tested)
        if not np.isfinite(drawn).all():
            raise InputError(
                f"the activations at {'layer ' + str(layer) if layer is not None else 'this site'} and these positions "
                "do not vary between prompts, so that random directions cannot be drawn from them; pass "
                "null='isotropic', or select other layers"
            )
        return torch.from_numpy(np.concatenate([tested, drawn.astype(np.float32)]))

    def _stage_of(self, null: Directions) -> str | None:
        return self.tested if null.stage else None

    def _edit(self, number: int, vector: Tensor, dose: float, rows: Ids | None) -> Edit:
        plan = self.plan
        if plan.kind == "steer":
            return Add(dose * vector)
        if plan.kind == "ablate":
            return SetCoordinate(vector[None], None if plan.target is None else torch.tensor([plan.target]))
        assert plan.source is not None
        assert rows is not None
        return Replace(torch.from_numpy(plan.source[number][rows]), vector[None])

    def _what(self, v: int, dose: float, layer: int | None) -> str:
        """Words for an edit, for messages."""
        plan = self.plan
        name = repr(plan.directions.names[v]) if v < len(plan.directions) else "a random direction"
        return f"dose {dose:g} of {name}" if plan.kind == "steer" else f"{plan.kind} along {name}"

    def _run_batch(
        self, vectors: list[Tensor], sequences: Ids, pad_to: int, todo: NDArray[np.int64], progress: Progress
    ) -> None:
        """Run all layers, directions and doses on one batch."""
        batch, layers = self._batch(sequences, pad_to), list(self.hooks)
        numbers = np.flatnonzero(todo).tolist()
        together = self._layers_together(batch)
        for first in range(0, len(numbers), together):
            group = numbers[first : first + together]
            self._passes.start(batch, [layers[number] for number in group])
            for number in group:
                self._run_layer(number, layers[number], vectors[number], batch)
                self.flush()
                progress.advance(int(todo[number]))
        self._passes.clear()

    def _layers_together(self, batch: Batch) -> int:
        """Layers whose clean outputs fit into memory at a time."""
        if self._passes.way != "blocks":
            return len(self.hooks)
        width = self.adapter.size("d_model") or 1024
        each = batch.ids.numel() * width * torch.finfo(self.adapter.dtype).bits // 8
        return max(1, free_memory(self.adapter.device) // 8 // each)

    def _run_layer(self, number: int, layer: int | None, vectors: Tensor, batch: Batch) -> None:
        plan, sequences = self.plan, batch.sequences
        places: list[tuple[int, int]] = []
        edits: list[NamedEdit] = []
        for v, vector in enumerate(vectors):
            for d, dose in enumerate(plan.doses):
                if not bool(torch.isfinite(vector).all()):
                    self.values[number, v, d, sequences] = np.inf  # not tested: its length is zero here
                elif plan.kind == "steer" and dose == 0:
                    self.values[number, v, d, sequences] = self.clean[sequences]
                    if self.tokens is not None and v < len(plan.directions):
                        self.tokens[0][number, v, d, sequences] = self.tokens[1][sequences]
                else:
                    places.append((v, d))
                    edit = self._edit(number, vector, dose, sequences % plan.outcome.rows)
                    edits.append(NamedEdit(edit, self._what(v, dose, layer)))
        step = 1 if self.tokens is not None else max(1, len(edits))
        for first in range(0, len(edits), step):
            some = edits[first : first + step]
            scores = self._passes.scores(batch, layer, some)
            for (v, d), one, own in zip(places[first : first + step], some, scores, strict=True):
                if not np.isfinite(own).all():
                    raise InputError(
                        f"{one.what} at {self.hooks[layer]} makes the outcome {plan.outcome.name!r} NaN or infinite; "
                        "use a smaller dose"
                    )
                if self.tokens is not None and v < len(plan.directions):
                    self.tokens[0][number, v, d, sequences] = self._generated()
                self.values[number, v, d, sequences] = own

    def _generated(self) -> NDArray[np.float64]:
        """Token ids of the texts that were generated last."""
        tokens: NDArray[np.float64] = self._reader.tokens  # type: ignore[attr-defined]
        return tokens

    def _measure_price(self, vectors: list[Tensor]) -> None:
        """Fill `kl`: mean KL divergence of the next token after unrelated prompts, clean from edited, in nats."""
        assert self.kl is not None
        assert self.plan.price is not None
        tokenized, index = self.plan.price
        rows = np.arange(len(tokenized))
        arrays = tokenized.batch(rows, int(tokenized.lengths.max()))
        batch = Batch(rows, torch.from_numpy(arrays[0]), torch.from_numpy(arrays[1]), index)
        reader = DivergenceReader(self.adapter, tokenized.lengths)
        passes = Passes(self.adapter, reader, self.hooks, self.plan.positions, vectors[0].shape[1])
        passes.way = self._passes.way
        with reader.attached():
            passes.clean_scores(batch)
            numbers = [number for number in range(len(self.hooks)) if np.isnan(self.kl[number]).any()]
            layers = list(self.hooks)
            passes.start(batch, [layers[number] for number in numbers])
            for number in numbers:
                layer = layers[number]
                for v in range(len(self.plan.directions)):
                    if not bool(torch.isfinite(vectors[number][v]).all()):
                        self.kl[number, v] = np.inf
                        continue
                    moved = [d for d, dose in enumerate(self.plan.doses) if self.plan.kind != "steer" or dose]
                    self.kl[number, v] = 0
                    edits = [
                        NamedEdit(self._edit(number, vectors[number][v], dose, None), self._what(v, dose, layer))
                        for dose in (self.plan.doses[d] for d in moved)
                    ]
                    if edits:
                        self.kl[number, v, moved] = passes.scores(batch, layer, edits).mean(axis=1)
                self.flush()
