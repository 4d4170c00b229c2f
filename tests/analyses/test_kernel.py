"""A real Jupyter kernel draws a plot in the last line of a cell, and progress is not a warning."""

from __future__ import annotations

import nbformat
import pytest

nbclient = pytest.importorskip("nbclient")

CELLS = (
    """
import numpy as np
import xarray as xr
import stratalens as sl

rng = np.random.default_rng(0)
ds = xr.Dataset(
    {"resid_post": (("layer", "entity", "token", "d_model"), rng.standard_normal((2, 40, 1, 8)).astype("float32"))},
    coords={"layer": [0, 1], "token": ["last"], "entity": [f"r{i}" for i in range(40)]},
).assign_coords(entity_id=("entity", [f"e{i}" for i in range(40)]), week=("entity", ["a", "b"] * 20))
probes = sl.probe(ds, target="week", folds=2)
""",
    "sl.plots.layer_sweep(probes)",
    "sl.plots.pair_matrix(probes)",
)


def test_a_plot_at_the_end_of_a_cell_is_drawn() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    first, again = (cell["outputs"] for cell in notebook.cells[1:])
    outputs = [output for output in (*first, *again) if output["output_type"] in ("execute_result", "display_data")]
    shown = [output["data"] for output in outputs]
    drawn = [data for data in shown if "application/vnd.holoviews_exec.v0+json" in data]
    assert any("Bokeh" in str(data.get("application/javascript", "")) for data in shown[:-1])  # once, before the first
    assert len([data for data in drawn if "text/html" in data]) >= 2
    assert not [output for cell in notebook.cells for output in cell["outputs"] if output["output_type"] == "error"]
