"""Run every cell of the calibration.

    python -m benchmarks.calibration.run_all [--cells PATTERN ...] [--datasets N] [--quick] [--again] [--unclear]

Not part of the suite of benchmarks: a full run takes hours. A stopped run resumes; cells that are complete are left.
`python -m benchmarks.calibration.page` writes docs/calibration.md from the documents in benchmarks/results/calibration.
"""

from benchmarks.calibration.runner import main

if __name__ == "__main__":
    main(__doc__)
