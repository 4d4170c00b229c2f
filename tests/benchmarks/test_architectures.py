"""Six architectures are recorded as the model computes them, and the page says what the documents say."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from support.paths import ROOT

FAMILIES = {
    "LlamaForCausalLM": "dense",
    "MixtralForCausalLM": "mixture of experts",
    "MambaForCausalLM": "state space",
    "Qwen3NextForCausalLM": "hybrid",
    "BertForMaskedLM": "encoder",
    "T5ForConditionalGeneration": "encoder-decoder",
}


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


DOCUMENTS = sorted((ROOT / "benchmarks" / "results" / "architectures").glob("*.json"))
needs_documents = pytest.mark.skipif(not DOCUMENTS, reason="benchmarks.architectures.run_all has not run")


def module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.architectures.{name}")


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_site_is_what_the_model_computes(architecture: str) -> None:
    document = module("verify").verify(architecture)
    assert document["status"] == "recorded", document
    assert document["family"] == FAMILIES[architecture]
    assert document["sites"], document
    assert {site["verdict"] for site in document["sites"].values()} <= {"equal", "rounding"}, document
    assert document["check"] == "ok"
    assert document["hugging_face"] < 1e-4
    has_next_token = FAMILIES[architecture] not in ("encoder", "encoder-decoder")
    assert document["output_statistics"] == ("next token" if has_next_token else "none")
    if has_next_token:
        assert document["loss"] < 1e-5


@needs_documents
def test_the_page_is_made_from_the_documents() -> None:
    page = module("page")
    documents = page.read_documents()
    assert page.PAGE.read_text() == page.page(documents)


@needs_documents
def test_the_documents_cover_every_family_on_both_lines() -> None:
    documents = module("page").read_documents()
    assert {line.partition(".")[0] for line in documents} == {"3", "4"}
    for document in documents.values():
        recorded = [row for row in document["architectures"].values() if row["status"] == "recorded"]
        assert {row["family"] for row in recorded} == set(module("tiny_models").FAMILIES)
        assert len(recorded) >= 40
        assert not any(row["status"] == "stratalens fails" for row in document["architectures"].values())
        verdicts = {site["verdict"] for row in recorded for site in row["sites"].values()}
        assert verdicts <= {"equal", "rounding"}
