"""What all slabs of one probe call share: folds, targets, rows to train and to test on, laid out and checked once.

Fits and scores of one slab are in probe_slab.py, the verb in probes.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data import splits
from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.groups import clusters, label_column
from stratalens.analyses.data.groups import groups as ordered_groups
from stratalens.analyses.data.targets import Contrasts, Pairs, contrasts, shuffled_labels
from stratalens.analyses.stats.bootstrap import bootstrap_weights
from stratalens.store.errors import InputError, suggest

EACH, JOINT = "each", "joint"


Number = TypeVar("Number", bound=np.floating[Any])


@dataclass(frozen=True)
class Plan:
    """What every slab of one call has in common; arrays are over all rows of the entity dim.

    Attributes:
        target: label column.
        group_names: names of the groups in their order.
        codes: [shape: (entity,)] group of each row, -1 = none.
        units: [shape: (entity,)] entity of each row.
        fold: [shape: (entity,)].
        folds: their number.
        trainable, testable: [shape: (entity,)] bool.
        contrasts: the probes.
        permutations, seed, resamples: numbers.
        tokens: EACH (probes of every token by itself) or JOINT (of all tokens' features side by side).
    """

    target: str
    group_names: list[str]
    codes: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]
    fold: npt.NDArray[np.int64]
    folds: int
    trainable: npt.NDArray[np.bool_]
    testable: npt.NDArray[np.bool_]
    contrasts: Contrasts
    permutations: int
    seed: int
    resamples: int
    tokens: str = EACH

    def take(self, rows: npt.NDArray[np.int64]) -> Plan:
        """The same plan for some of the rows; units are renumbered without gaps."""
        _, units = np.unique(self.units[rows], return_inverse=True)
        return replace(
            self,
            codes=self.codes[rows],
            units=units.ravel(),
            fold=self.fold[rows],
            trainable=self.trainable[rows],
            testable=self.testable[rows],
            contrasts=replace(self.contrasts, signs=self.contrasts.signs[rows]),
        )

    def check(self, rows: Sequence[npt.NDArray[np.int64]], stages: Sequence[str]) -> None:
        """Refuse stages at which some fit would lack a class, or some probe test rows.

        Raises:
            InputError: naming the stage, the pair, and what it lacks.
        """
        for used, stage in zip(rows, stages, strict=True):
            part = self.take(used)
            classes = _class_columns(part)
            for label, member in classes:
                for k in range(self.folds + 1):
                    if not (member & part.trainable & (part.fold != k)).any():
                        raise InputError(
                            f"at stage {stage}, {self.target!r} has no row of {label!r} to train on"
                            f"{f' outside fold {k}' if k < self.folds else ''}; use fewer folds, another test "
                            f"selection, or more entities of this group"
                        )
                if not (member & part.testable).any():
                    raise InputError(
                        f"at stage {stage}, {self.target!r} has no row of {label!r} to test on; the test "
                        f"selection must hold rows of every group"
                    )

    def identity(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays that results depend on, for a cache to hash."""
        return {
            "codes": self.codes, "units": self.units, "fold": self.fold,
            "trainable": self.trainable, "testable": self.testable, "signs": self.contrasts.signs,
            "counts": np.array([self.permutations, self.seed, self.resamples, self.joint]),
        }  # fmt: skip

    def draws(self) -> npt.NDArray[np.float32]:
        """Bootstrap weights of the entities, stratified by group, shape (resamples, units)."""
        return bootstrap_weights(splits.entity_strata(self.codes, self.units), self.resamples, self.seed)

    def shuffled(self, index: int, units: npt.NDArray[np.int64] | None = None) -> Plan:
        """The same plan with the labels moved between entities; `index` numbers the shuffle.

        `units` says what moves as one where that is something else than entities.
        """
        units = self.units if units is None else units
        seed = np.random.SeedSequence([self.seed, index])
        signs = self.contrasts.signs
        if self.contrasts.kind == "binary":
            moved = shuffled_labels(signs, self.fold, units, seed)
            return replace(self, contrasts=replace(self.contrasts, signs=moved))
        codes = shuffled_labels((self.codes + 1)[:, None], self.fold, units, seed)[:, 0] - 1
        return replace(self, codes=codes)

    @property
    def joint(self) -> bool:
        """Whether all tokens make one vector."""
        return self.tokens == JOINT

    def features(self, values: npt.NDArray[Number]) -> list[npt.NDArray[Number]]:
        """What is probed: values (n, token, d) as one (n, d) for each token, or a single (n, token * d)."""
        if self.joint:
            return [values.reshape(len(values), -1)]
        return [np.ascontiguousarray(values[:, t]) for t in range(values.shape[1])]

    @property
    def test_signs(self) -> npt.NDArray[np.int8]:
        """Truth on test rows, 0 elsewhere; shape (entity, pair)."""
        return self.contrasts.signs * self.testable[:, None].astype(np.int8)


def _class_columns(plan: Plan) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Every class that some probe needs, with its rows."""
    if plan.contrasts.kind != "binary":
        return [(name, plan.codes == g) for g, name in enumerate(plan.group_names)]
    signs = plan.contrasts.signs
    return [
        (name, signs[:, p] == side)
        for names, side in ((plan.contrasts.first, -1), (plan.contrasts.second, 1))
        for p, name in enumerate(names)
    ]


def make_plan(
    ds: Data, target: str, pairs: Pairs, folds: int, groups: str, test: Mapping[str, object] | None,
    order: Sequence[object] | None, permutations: int, seed: int, resamples: int, tokens: str = EACH,
) -> Plan:  # fmt: skip
    """Lay out one call; the arguments are those of `probe`.

    Raises:
        InputError: whatever in them cannot be probed; each message says how to mend it.
    """
    if permutations < 0 or resamples < 1:
        raise InputError(
            f"permutations={permutations} and resamples={resamples}; they are counts (resamples at least 1)"
        )
    if tokens not in (EACH, JOINT):
        raise InputError(f"tokens={tokens!r}: {suggest(str(tokens), [EACH, JOINT])}")
    found = ordered_groups(ds, target, order)
    units = clusters(ds, groups)
    splits.require_folds(found, units, folds)
    fold = splits.entity_folds(found.codes, units, folds, seed)
    trainable = testable = np.ones(len(units), dtype=bool)
    if test is not None:
        testable = held_out(ds, test)
        trainable = ~testable
    for k in range(folds):
        splits.assert_disjoint(units, trainable & (fold != k), testable & (fold == k))
    return Plan(
        target, [str(n) for n in found.names], found.codes, units, fold, folds, trainable, testable,
        contrasts(found, pairs), permutations, seed, resamples, tokens,
    )  # fmt: skip


def held_out(ds: Data, test: Mapping[str, object]) -> npt.NDArray[np.bool_]:
    """Rows that a test selection {column: value or list of values} holds out, shape (entity,).

    Raises:
        InputError: an unknown column, a value that no row has, or a selection of no or of all rows.
    """
    chosen = np.ones(ds.sizes["entity"], dtype=bool)
    for name, wanted in test.items():
        have = label_column(ds, name)
        values = list(wanted) if isinstance(wanted, list | tuple | set | np.ndarray) else [wanted]
        matches = np.zeros(len(have), dtype=bool)
        for value in values:
            match = np.array([v == value for v in have.tolist()], dtype=bool)
            if not match.any():
                valid = ", ".join(sorted({str(v) for v in have.tolist()})[:12])
                raise InputError(f"test={{{name!r}: {value!r}}}: no row has that value; there are {valid}")
            matches |= match
        chosen &= matches
    if not test or not chosen.any() or chosen.all():
        raise InputError(
            f"test={dict(test)!r} selects {int(chosen.sum())} of {len(chosen)} rows; it must leave rows to "
            f"train on and rows to test on"
        )
    return chosen
