"""Type aliases of the analyses: arrays by what they hold, and the data that every analysis accepts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

Data = xr.Dataset | xr.DataArray

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]  # a number for each row: its group, its entity, its fold; -1 = none
Signs = npt.NDArray[np.int8]  # +1 = positive class, -1 = negative class, 0 = neither
