"""Null and planted data: groups of entities with known means, data sets as layers of one Dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

Doubles = npt.NDArray[np.float64]
GROUP = "group"  # the label column


@dataclass(frozen=True)
class Design:
    """Entities in groups, their rows and their noise.

    Attributes:
        words: description.
        sizes: entities of every group.
        d: features.
        rows: rows of an entity.
        ragged: an entity has 1 to `rows` rows.
        entity_sd: standard deviation of the noise that the rows of an entity share; that of a row is 1.
        torn: entities of every group half of whose rows are in the next group; -1 = all.
        effect: distance of group means along one feature in a planted data set, chosen for a power of about .5 to .9.
    """

    words: str
    sizes: tuple[int, ...]
    d: int = 10
    rows: int = 1
    ragged: bool = False
    entity_sd: float = 0.0
    torn: int = 0
    effect: float = 1.0

    def labels(self, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the group and the entity of every row."""
        own = np.repeat(np.arange(len(self.sizes)), self.sizes)
        count = rng.integers(1, self.rows + 1, len(own)) if self.ragged else np.full(len(own), self.rows)
        entity = np.repeat(np.arange(len(own)), count)
        group = own[entity]
        if self.torn:
            place = np.concatenate([np.arange(n) for n in self.sizes])  # number of an entity in its group
            chosen = place < (self.torn if self.torn > 0 else len(own))
            number = np.concatenate([np.arange(c) for c in count])  # number of a row in its entity
            moved = chosen[entity] & (number < count[entity] // 2)
            group = np.where(moved, (group + 1) % len(self.sizes), group)
        return group, entity

    def means(self, effect: float, layout: str = "line") -> Doubles:
        """Return the means (group, feature): steps along the first feature, or one feature for each group."""
        k = len(self.sizes)
        means = np.zeros((k, self.d))
        if layout == "line":
            means[:, 0] = effect * np.arange(k)
        else:
            means[np.arange(k), np.arange(k)] = effect
        return means

    @property
    def sd(self) -> float:
        """Standard deviation of a feature around the mean of its group."""
        return float(np.sqrt(1 + self.entity_sd**2))

    def noise(self, rng: np.random.Generator, entity: npt.NDArray[np.int64], layers: int) -> Doubles:
        """Draw noise (layer, row, feature) of which the rows of an entity share a part."""
        x = rng.standard_normal((layers, len(entity), self.d))
        if self.entity_sd:
            x += self.entity_sd * rng.standard_normal((layers, int(entity.max()) + 1, self.d))[:, entity]
        return x

    def data(
        self, seed: int, layers: int, effect: float = 0.0, layout: str = "line", shared: float = 0.0
    ) -> xr.Dataset:
        """Draw data sets, one in each layer, with the same labels.

        Args:
            seed: of all draws.
            layers: number of data sets.
            effect: distance of the means of neighbouring groups ("line"), or of each from zero ("axes", "random").
            layout: "line", "axes", or "random": a random direction for the mean of every group of every data set.
            shared: correlation of the noise of two layers.
        """
        rng = np.random.default_rng([seed, len(self.sizes), self.d])
        group, entity = self.labels(rng)
        x = self.noise(rng, entity, layers)
        if shared:
            x = np.sqrt(1 - shared) * x + np.sqrt(shared) * self.noise(rng, entity, 1)
        if layout == "random":
            centres = effect * rng.standard_normal((layers, len(self.sizes), self.d))
            x += centres[:, group]
        else:
            x += self.means(effect, layout)[group]
        return dataset(x, group, entity)


def dataset(
    x: Doubles,
    group: npt.NDArray[np.int64],
    entity: npt.NDArray[np.int64],
    statistics: dict[str, Doubles] | None = None,
) -> xr.Dataset:
    """Return activations (layer, row, feature) and statistics (layer, row) as a Dataset like those of a store."""
    variables = {
        "resid_post": (("layer", "entity", "token", "d_model"), x[:, :, None].astype(np.float32)),
        **{name: (("layer", "entity"), values) for name, values in (statistics or {}).items()},
    }
    return xr.Dataset(
        variables,
        coords={
            "layer": np.arange(len(x)),
            "token": np.array(["last"], object),
            "entity": np.array([f"row{i:05d}" for i in range(len(group))], object),
            "entity_id": ("entity", np.array([f"e{i:05d}" for i in entity], object)),
            GROUP: ("entity", np.array([f"group {chr(97 + g)}" for g in group], object)),
        },
    )


def names(design: Design) -> list[str]:
    """Return the names of the groups of a design, in order."""
    return [f"group {chr(97 + g)}" for g in range(len(design.sizes))]


TWO = {
    "iid": Design("20 v 20 entities", (20, 20), effect=1.3),
    "clustered": Design("15 v 15 entities x 4 rows, shared noise 3 sd", (15, 15), rows=4, entity_sd=3.0, effect=5.0),
    "ragged": Design("15 v 15 entities x 1 to 6 rows, shared noise 1 sd", (15, 15), rows=6, ragged=True, entity_sd=1.0,
                     effect=1.6),
    "unbalanced": Design("40 v 8 entities", (40, 8), effect=1.6),
    "wide": Design("15 v 15 entities, 60 features (n < d)", (15, 15), d=60, effect=2.4),
    "torn": Design("15 v 15 entities x 4 rows, 3 of each group in both, shared noise 1 sd", (15, 15), rows=4,
                   entity_sd=1.0, torn=3, effect=1.6),
    "inside": Design("20 v 20 entities x 2 rows, all in both groups, shared noise 3 sd", (20, 20), rows=2,
                     entity_sd=3.0, torn=-1, effect=1.6),
}  # fmt: skip
THREE = {
    "iid": Design("3 x 15 entities", (15, 15, 15), effect=0.6),
    "clustered": Design("3 x 12 entities x 4 rows, shared noise 3 sd", (12, 12, 12), rows=4, entity_sd=3.0, effect=2.4),
    "unbalanced": Design("30, 10 and 6 entities", (30, 10, 6), effect=0.8),
    "wide": Design("3 x 10 entities, 60 features (n < d)", (10, 10, 10), d=60, effect=1.2),
    "torn": Design("3 x 12 entities x 4 rows, 3 of each group in two, shared noise 1 sd", (12, 12, 12), rows=4,
                   entity_sd=1.0, torn=3, effect=0.9),
}  # fmt: skip
