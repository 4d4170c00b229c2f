"""Plan of one probe call: folds, targets, and training and test rows."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from stratalens.analyses.data import splits
from stratalens.analyses.data.array_types import Array, Codes, Data, Mask, Signs
from stratalens.analyses.data.groups import clusters, label_column
from stratalens.analyses.data.groups import groups as ordered_groups
from stratalens.analyses.data.targets import Contrasts, Pairs, contrasts, shuffled_labels
from stratalens.analyses.stats.bootstrap import bootstrap_weights
from stratalens.store.errors import InputError, suggest

EACH, JOINT = "each", "joint"
KNOWN_ORDERS = ("order", "stage_order", "categories")
NUMBERS = 2  # increase it when a call with the same arguments gives other numbers or variables

Number = TypeVar("Number", bound=np.floating[Any])


@dataclass(frozen=True)
class Plan:
    """Folds, targets and options that all slabs of one call share.

    Attributes:
        target: label column.
        group_names: names of the groups in their order.
        codes: int64 array of shape (entity,), group of each row; -1 = none.
        units: int64 array of shape (entity,), entity of each row.
        fold: int64 array of shape (entity,), fold of each row.
        folds: number of folds.
        trainable: bool array of shape (entity,), rows to train on.
        testable: bool array of shape (entity,), rows to test on.
        contrasts: targets of the probes.
        permutations: number of label shuffles.
        seed: of folds, shuffles and resamples.
        resamples: number of bootstrap samples.
        tokens: EACH (separate probes for every token) or JOINT (one probe of the features of all tokens).
        ordered: whether the groups have a known order, not that of their names or first appearances.
    """

    target: str
    group_names: list[str]
    codes: Codes
    units: Codes
    fold: Codes
    folds: int
    trainable: Mask
    testable: Mask
    contrasts: Contrasts
    permutations: int
    seed: int
    resamples: int
    tokens: str = EACH
    ordered: bool = True

    def take(self, rows: Codes) -> Plan:
        """Narrow the plan to some rows; units are renumbered without gaps."""
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

    def check(self, rows: Sequence[Codes], stages: Sequence[Hashable]) -> None:
        """Refuse stages at which a class has no row to train on or to test on.

        Raises:
            InputError: names the stage, the class and the fold.
        """
        for used, stage in zip(rows, stages, strict=True):
            plan = self.take(used)
            for label, member in _classes(plan):
                for k in range(self.folds + 1):
                    if not (member & plan.trainable & (plan.fold != k)).any():
                        raise InputError(
                            f"at stage {stage}, {self.target!r} has no row of {label!r} to train on"
                            f"{f' outside fold {k}' if k < self.folds else ''}; use fewer folds, another test "
                            f"selection, or more entities of this group"
                        )
                if not (member & plan.testable).any():
                    raise InputError(
                        f"at stage {stage}, {self.target!r} has no row of {label!r} to test on; the test "
                        f"selection must hold rows of every group"
                    )

    def identity(self) -> dict[str, Array]:
        """Everything that results depend on, for a cache to hash."""
        return {
            "codes": self.codes,
            "units": self.units,
            "fold": self.fold,
            "trainable": self.trainable,
            "testable": self.testable,
            "signs": self.contrasts.signs,
            "counts": np.array([self.permutations, self.seed, self.resamples, self.joint]),
            "numbers": np.array([NUMBERS]),
        }

    def bootstrap_weights(self) -> npt.NDArray[np.float32]:
        """Draw weights (resamples, units) of the entities, stratified by group."""
        return bootstrap_weights(splits.entity_strata(self.codes, self.units), self.resamples, self.seed)

    def shuffle_labels(self, index: int, units: Codes | None = None) -> Plan:
        """Move the labels between entities.

        Args:
            index: number of the shuffle.
            units: int64 array of shape (entity,), rows that move together; None = those of an entity.
        """
        units = self.units if units is None else units
        seed = np.random.SeedSequence([self.seed, index])
        if self.contrasts.kind == "binary":
            signs = shuffled_labels(self.contrasts.signs, self.fold, units, seed)
            return replace(self, contrasts=replace(self.contrasts, signs=signs))
        codes = shuffled_labels((self.codes + 1)[:, None], self.fold, units, seed)[:, 0] - 1
        return replace(self, codes=codes)

    @property
    def joint(self) -> bool:
        """Whether the features of all tokens make one vector."""
        return self.tokens == JOINT

    def features(self, values: npt.NDArray[Number]) -> list[npt.NDArray[Number]]:
        """Split values (n, token, d) by token, or join them as one (n, token * d)."""
        if self.joint:
            return [values.reshape(len(values), -1)]
        return [np.ascontiguousarray(values[:, t]) for t in range(values.shape[1])]

    @property
    def test_signs(self) -> Signs:
        """Targets on test rows, 0 elsewhere, of shape (entity, pair)."""
        return self.contrasts.signs * self.testable[:, None].astype(np.int8)


def _classes(plan: Plan) -> list[tuple[str, Mask]]:
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
    ds: Data,
    target: str,
    pairs: Pairs,
    folds: int,
    groups: str,
    test: Mapping[str, object] | None,
    order: Sequence[object] | None,
    permutations: int,
    seed: int,
    resamples: int,
    tokens: str = EACH,
) -> Plan:
    """Plan one call; the arguments are those of `probe`.

    Raises:
        InputError: arguments that cannot be probed; each message names the remedy.
    """
    if permutations < 0 or resamples < 1:
        raise InputError(
            f"permutations={permutations} and resamples={resamples}; they are counts (resamples at least 1)"
        )
    if tokens not in (EACH, JOINT):
        raise InputError(f"tokens={tokens!r}: {suggest(str(tokens), [EACH, JOINT])}")
    label_groups = ordered_groups(ds, target, order)
    units = clusters(ds, groups)
    splits.require_folds(label_groups, units, folds)
    fold = splits.entity_folds(label_groups.codes, units, folds, seed)
    trainable = testable = np.ones(len(units), dtype=bool)
    if test is not None:
        testable = select_test_rows(ds, test)
        trainable = ~testable
    for k in range(folds):
        splits.assert_disjoint(units, trainable & (fold != k), testable & (fold == k))
    return Plan(
        target=target,
        group_names=[str(n) for n in label_groups.names],
        codes=label_groups.codes,
        units=units,
        fold=fold,
        folds=folds,
        trainable=trainable,
        testable=testable,
        contrasts=contrasts(label_groups, pairs),
        permutations=permutations,
        seed=seed,
        resamples=resamples,
        tokens=tokens,
        ordered=label_groups.ordering in KNOWN_ORDERS,
    )


def select_test_rows(ds: Data, test: Mapping[str, object]) -> Mask:
    """Select the rows of {column: value or list of values} to test on.

    Returns:
        bool array of shape (entity,).

    Raises:
        InputError: an unknown column, a value that no row has, or a selection of no or of all rows.
    """
    selected = np.ones(ds.sizes["entity"], dtype=bool)
    for name, wanted in test.items():
        labels = label_column(ds, name).tolist()
        values = list(wanted) if isinstance(wanted, list | tuple | set | np.ndarray) else [wanted]
        for value in values:
            if value not in labels:
                valid = ", ".join(sorted({str(v) for v in labels})[:12])
                raise InputError(f"test={{{name!r}: {value!r}}}: no row has that value. Valid: {valid}")
        selected &= np.array([label in values for label in labels], dtype=bool)
    if not test or not selected.any() or selected.all():
        raise InputError(
            f"test={dict(test)!r} selects {int(selected.sum())} of {len(selected)} rows; it must leave rows to "
            f"train on and rows to test on"
        )
    return selected
