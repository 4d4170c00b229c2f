"""Verify every architecture with the installed TransformerLens.

    python -m benchmarks.architectures.run_all [--only NAME ...] [--again]

Not part of the suite of benchmarks. A run takes about ten minutes of one core. It writes a document for each
line of TransformerLens into benchmarks/results/architectures, after each architecture, so that a stopped run resumes.
`python -m benchmarks.architectures.page` writes docs/architectures.md.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.architectures.tiny_models import other_architectures, text_architectures
from benchmarks.architectures.verify import verify

RESULTS = Path(__file__).parents[1] / "results" / "architectures"
PACKAGES = ("transformer-lens", "transformers", "torch")


def versions() -> dict[str, str]:
    """Return the versions that decide what a model computes."""
    return {package: version(package) for package in PACKAGES}


def document_path(folder: Path = RESULTS) -> Path:
    """Return the document of the installed line of TransformerLens."""
    return folder / f"transformer-lens-{version('transformer-lens').split('.')[0]}.json"


def read_document(path: Path) -> dict[str, Any]:
    """Read a document, or return an empty one."""
    if path.exists():
        document: dict[str, Any] = json.loads(path.read_text())
        return document
    return {"versions": versions(), "not_run": {}, "architectures": {}}


def run(names: list[str], path: Path, again: bool = False) -> dict[str, Any]:
    """Verify architectures and write the document after each."""
    document = read_document(path)
    if document["versions"] != versions():
        document = {"versions": versions(), "not_run": {}, "architectures": {}}
    document["not_run"] = other_architectures()
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        if again or name not in document["architectures"]:
            result = verify(name)
            document["architectures"][name] = result
            print(name, result["status"], result.get("reason", ""), flush=True)
            document["architectures"] = dict(sorted(document["architectures"].items()))
            path.write_text(json.dumps(document, indent=1) + "\n")
    return document


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="architectures to verify, such as LlamaForCausalLM")
    parser.add_argument("--again", action="store_true", help="verify architectures that the document has already")
    arguments = parser.parse_args()
    run(arguments.only or text_architectures(), document_path(), arguments.again)


if __name__ == "__main__":
    main()
