"""The score of a probe further up in the model, as the outcome of an intervention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from stratalens.analyses.data.results import vectors
from stratalens.plugin.interventions.model_fit import site_hooks
from stratalens.plugin.interventions.outcomes import Outcome
from stratalens.plugin.interventions.output_readers import RunFunction
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.hooks import observed
from stratalens.plugin.prompts.positions import resolve as resolve_positions
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.store.errors import InputError, MismatchError, join_names

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ProbeOutcome(Outcome):
    """The score of a probe at one place: its weights times the activation, plus its intercept.

    Attributes:
        stages: names of the stages of the probe; empty where it has none.
        weights: float64 array of shape (stages, features), one row without stages.
        intercepts: float64 array of shape (stages,).
        site: site of the activations.
        layer: block of the activations; None for a site outside the blocks.
        index: token index in every prompt, int64 array of shape (rows,).
    """

    stages: tuple[str, ...]
    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    site: str
    layer: int | None
    index: Ids

    @property
    def runs_answers(self) -> bool:
        """The model reads the prompts alone."""
        return False

    def reader(self, adapter: Adapter, stage: str, directions_stage: str | None) -> ProbeReader:
        """Read the activations of the probe's place.

        Raises:
            InputError: the probe does not have the stage, or the model not the place.
            MismatchError: the model has another width.
        """
        number = 0
        if self.stages:
            own = [name for name in (stage, directions_stage) if name in self.stages]
            if not own and len(self.stages) > 1:
                raise InputError(
                    f"the probe of the outcome has stages {join_names(self.stages)}, not {stage!r}; choose one: "
                    f"probes.sel(stage={self.stages[-1]!r})"
                )
            number = self.stages.index(own[0]) if own else 0
        layers: Sequence[int] = () if self.layer is None else (self.layer,)
        hook = site_hooks(adapter, self.site, layers)[self.layer]
        weights = torch.from_numpy(self.weights[number])
        return ProbeReader(adapter, hook, self.index, weights, float(self.intercepts[number]))

    def combine(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores are the outcome."""
        return scores

    @property
    def digest(self) -> list[str]:
        """What identifies the outcome."""
        place = [self.name, self.site, str(self.layer), *self.stages, *(v.digest for v in self.variants)]
        return [*place, self.weights.tobytes().hex(), self.intercepts.tobytes().hex(), self.index.tobytes().hex()]


class ProbeReader:
    """Reads an activation of every sequence, and judges it by a linear probe."""

    output: Literal["none", "logits"] = "none"
    one_pass = True

    def __init__(self, adapter: Adapter, hook: str, index: Ids, weights: Tensor, intercept: float) -> None:
        self._adapter, self._hook = adapter, hook
        self._index, self._weights, self._intercept = index, weights, intercept
        self._value: Tensor | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the activations of every forward pass while the context is open."""
        with observed([(self._adapter.points[self._hook], self._keep)]):
            yield
        self._value = None

    def _keep(self, value: Any) -> None:
        self._value = value.flatten(2)

    def span(self, sequences: Ids) -> tuple[Ids, Ids] | None:
        """The position of the probe."""
        return self._index[sequences], self._index[sequences] + 1

    def measure(self, run: RunFunction, sequences: Ids, ids: Tensor, mask: Tensor) -> NDArray[np.float64]:
        """Run whole sequences and judge them."""
        return self.score(run(ids, mask), sequences, ids)

    def score(self, result: Any, sequences: Ids, ids: Tensor, start: Ids | None = None) -> NDArray[np.float64]:
        """Scores of the activations that were kept last."""
        value, self._value = self._value, None
        if value is None:
            raise InputError(f"{self._hook} did not fire, so that the probe has nothing to read")
        if value.shape[-1] != len(self._weights):
            raise MismatchError(
                f"the probe of the outcome has {len(self._weights)} features, {self._hook} has {value.shape[-1]}; use "
                "a probe of this model"
            )
        at = self._index[sequences] - (0 if start is None else start)
        chosen = value[torch.arange(len(at)), torch.from_numpy(at)].double().cpu()
        return np.asarray((chosen @ self._weights).numpy() + self._intercept, dtype=np.float64)


def make_probe_outcome(
    probe: xr.Dataset,
    table: PromptTable,
    tokenized: TokenizedPrompts,
    site: str,
    layers: Sequence[int],
) -> ProbeOutcome:
    """Check a probe as an outcome of interventions at some layers.

    Args:
        probe: result of `stratalens.probe`, of one layer, token and pair.
        table: the prompts.
        tokenized: the prompts as tokens.
        site: site of the intervention.
        layers: layers of the intervention.

    Raises:
        InputError: no probe; several places; a place that the interventions do not reach.
    """
    if "coef" not in probe or "intercept" not in probe:
        raise InputError(
            "outcome= takes the result of stratalens.probe, which has coef and intercept; this Dataset has "
            f"{join_names(map(str, probe.data_vars))}"
        )
    if probe.attrs.get("tokens") == "joint":
        raise InputError("a probe of joint tokens cannot be an outcome; fit it with tokens='each'")
    coef, features = vectors(probe)
    places = [d for d in coef.dims if d not in (*features, "stage")]
    if several := [str(d) for d in places if coef.sizes[d] > 1]:
        example = probe[several[0]].values[-1]
        example = example.item() if hasattr(example, "item") else example
        raise InputError(
            f"the probe of the outcome has several {join_names(several)}; select one of each: "
            f"probes.sel({several[0]}={example!r})"
        )
    coef, intercept = coef.squeeze(places), probe["intercept"].squeeze(places)
    layer = int(coef["layer"]) if "layer" in coef.coords else None
    own_site = str(probe.attrs.get("site", ""))
    below = [i for i in layers if layer is not None and i >= layer]
    if below and not (layer in below and len(below) == 1 and _order(own_site) > _order(site)):
        raise InputError(
            f"the probe of the outcome reads {own_site} of layer {layer}, which an intervention at layer {below[-1]} "
            f"does not change, or changes by the dose alone; select directions below: directions.sel(layer=[...])"
        )
    token = str(coef["token"].item()) if "token" in coef.coords else "last"
    where = resolve_positions((token,), table, tokenized)
    assert where.index is not None
    index = where.index[:, 0]
    if (index < 0).any():
        raise InputError(f"row {int(np.argmin(index))} does not have the position {token!r} of the probe; drop it")
    stages = tuple(str(name) for name in np.atleast_1d(coef["stage"].values)) if "stage" in coef.coords else ()
    shape = (len(stages) or 1, -1)
    order = [d for d in ("stage",) if d in coef.dims]
    weights = np.asarray(coef.transpose(*order, *features).values, dtype=np.float64).reshape(shape)
    if not np.isfinite(weights).all():
        raise InputError("the probe of the outcome was not fitted here: its weights are NaN")
    intercepts = np.asarray(intercept.values, dtype=np.float64).reshape(-1)
    return ProbeOutcome("probe_score", None, table, (tokenized,), stages, weights, intercepts, own_site, layer, index)


def _order(site: str) -> int:
    """Place of a site in the order of computation inside a block; a site of another name counts as the first."""
    order = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    return order.index(site) if site in order else -1
