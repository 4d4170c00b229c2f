"""Calibration: how often p-values, intervals and verdicts are wrong, by simulation.

cells: a cell, its rates and its aim. runner: data sets in processes, one JSON document a cell, the command line.
designs: null and planted data. confounds: data in which statistics explain the groups. truths: exact quality of linear
probes. readers: p-values and intervals of results.
probe, projection, controls, verdicts: the cells, by analysis. run_all: all of them. page: docs/calibration.md.
"""
