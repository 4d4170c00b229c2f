"""A preflight names every planted fault from hashes and headers, before any weights move."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import stratalens as sl
from stratalens.plugin.hub.client import Hub
from stratalens.store.errors import InputError, UnreachableError
from support.hub_suite import (
    SHARD,
    checkpoint,
    copy_weights,
    pickle_weights,
    pointer,
    suite,
    truncate,
    without_tensor,
)

STEPS = [f"step{n}" for n in (0, 1, 1000, 2000, 3000, 4000, 5000)]
MODEL = "someone/model"


def verdicts(table: pd.DataFrame) -> dict[str, set[str]]:
    """Return the verdicts that are not "ok", by revision."""
    wrong = table[table.verdict != "ok"]
    return {name: set(rows.verdict) for name, rows in wrong.groupby("revision", sort=False)}


def faults(table: pd.DataFrame) -> list[str]:
    """Return the revisions that a sweep would leave out."""
    return list(dict.fromkeys(table[table.leave_out].revision))


def test_a_sound_suite_is_ok_and_main_equals_its_last_revision(served: Callable[..., Any], tmp_path: Path) -> None:
    place = served({MODEL: suite(tmp_path, STEPS)})
    table = sl.preflight(MODEL, hub=place.hub)
    assert set(table.verdict) == {"ok"}
    assert list(table.revision) == STEPS
    assert list(table.step) == [0, 1, 1000, 2000, 3000, 4000, 5000]
    assert not table.leave_out.any()
    assert (table.bytes > 0).all()
    assert table.digest.str.startswith("sha256:").all()
    assert len(place.weights_read()) == 2  # one header, which all files have in common
    assert place.whole_files() == []


# -- the reported faults of public suites ----------------------------------------------------------------------------


def test_step0_and_step1_of_pythia_are_explained(served: Callable[..., Any], tmp_path: Path) -> None:
    name = "EleutherAI/pythia-70m"
    folders = suite(tmp_path, STEPS)
    copy_weights(folders, "step0", "step1")
    table = sl.preflight(name, hub=served({name: folders}).hub)
    assert verdicts(table) == {"step0": {"identical"}, "step1": {"identical"}}
    assert faults(table) == ["step1"], "step0 is what it says"
    row = table[table.revision == "step1"].iloc[0]
    assert row.known
    assert row.same_as == ("step0",)
    assert row.issue == "https://github.com/EleutherAI/pythia/issues/83"
    assert "All weights are the same bytes as those of step0" in row.note


def test_the_same_twins_in_another_suite_are_no_known_fault(served: Callable[..., Any], tmp_path: Path) -> None:
    folders = suite(tmp_path, STEPS)
    copy_weights(folders, "step0", "step1")
    table = sl.preflight(MODEL, hub=served({MODEL: folders}).hub)
    assert faults(table) == ["step0", "step1"], "hashes do not say which of the two the weights are"
    assert not table.known.any()


def test_final_weights_in_early_steps_are_named_and_the_final_step_stays(
    served: Callable[..., Any], tmp_path: Path
) -> None:
    """Many revisions of pythia-2.8b hold one of two final files."""
    folders = suite(tmp_path, STEPS)
    for early in ("step0", "step1", "step1000"):
        copy_weights(folders, "step5000", early)
    copy_weights(folders, "step3000", "step2000")
    for name, known in ((MODEL, False), ("EleutherAI/pythia-2.8b", True)):
        table = sl.preflight(name, hub=served({name: folders}).hub)
        assert faults(table) == ["step0", "step1", "step1000", "step2000", "step3000"]
        assert table[table.leave_out].known.all() == known
        assert table[table.revision == "step0"].same_as.item() == ("step1", "step1000", "step5000")
    assert table[table.leave_out].issue.str.endswith("/205").all()


def test_a_shard_of_another_checkpoint_is_named_with_its_tensors(served: Callable[..., Any], tmp_path: Path) -> None:
    """As the first shard of step50000 and step58000 of pythia-12b."""
    names = ["step49000", "step50000", "step57000", "step58000", "step143000"]
    folders = suite(tmp_path, names, shards=3)
    shard = SHARD.format(1, 3)
    for wrong in ("step50000", "step58000"):
        copy_weights(folders, "step143000", wrong, shard)
    name = "EleutherAI/pythia-12b"
    place = served({name: folders})
    table = sl.preflight(name, hub=place.hub)
    wrong = table[table.verdict != "ok"]
    assert list(wrong.revision) == ["step50000", "step58000"]
    assert set(wrong.file) == {shard}
    assert set(wrong.verdict) == {"shared"}
    assert wrong.known.all()
    assert wrong.iloc[0].same_as == ("step58000", "step143000")
    assert wrong.iloc[0].tensors == ("embed.weight",)
    assert "with 1 tensor (embed.weight) is the same file as in step58000, step143000" in wrong.iloc[0].note
    assert place.whole_files() == []
    few = sl.preflight(name, ["step49000", "step50000"], hub=place.hub)
    assert faults(few) == ["step50000"], "the owner of the shard need not be chosen"
    alone = sl.preflight(name, ["step49000", "step50000"], compare="selected", hub=place.hub)
    assert alone[alone.leave_out].same_as.item() == ("main",), "always compared"


def test_three_identical_revisions_of_olmo(served: Callable[..., Any], tmp_path: Path) -> None:
    names = [f"stage1-step{n}000-tokens{n}B" for n in (100, 101, 175, 300, 301)]
    folders = suite(tmp_path, names, shards=2)
    for target in names[2:4]:
        copy_weights(folders, names[1], target)
    name = "allenai/OLMo-2-1124-7B"
    table = sl.preflight(name, "stage1-*", hub=served({name: folders}).hub)
    assert faults(table) == names[1:4]
    assert table[table.leave_out].known.all()
    assert len(table[table.leave_out]) == 6, "one row for each file"


def test_revisions_without_weights_and_pickled_ones(served: Callable[..., Any], tmp_path: Path) -> None:
    name = "EleutherAI/pythia-410m-seed9"
    folders = suite(tmp_path, ["step30000", "step40000", "step50000", "step60000"])
    (folders["step40000"] / "model.safetensors").unlink()
    pickle_weights(folders["step50000"])
    table = sl.preflight(name, hub=served({name: folders}).hub)
    assert verdicts(table) == {"step40000": {"missing"}, "step50000": {"pickled"}}
    assert list(table[table.known].revision) == ["step40000"]
    assert table[table.known].issue.item().endswith("/202")


def test_pickled_shards_are_compared_too(served: Callable[..., Any], tmp_path: Path) -> None:
    folders = suite(tmp_path, ["step1", "step2", "step3"], shards=2)
    copy_weights(folders, "step3", "step2", SHARD.format(1, 2))
    for folder in folders.values():
        pickle_weights(folder)
    table = sl.preflight(MODEL, hub=served({MODEL: folders}).hub)
    assert verdicts(table)["step2"] == {"shared", "pickled"}
    assert table[table.verdict == "shared"].iloc[0].tensors == ("embed.weight", "blocks.0.weight")


def test_reported_faults_that_hashes_do_not_show(served: Callable[..., Any], tmp_path: Path) -> None:
    name = "EleutherAI/pythia-160m-weight-seed1"
    table = sl.preflight(name, hub=served({name: suite(tmp_path, STEPS)}).hub)
    assert verdicts(table) == {"step0": {"reported"}}
    name = "allenai/OLMo-2-1124-13B"
    table = sl.preflight(name, hub=served({name: suite(tmp_path / "b", STEPS)}).hub)
    assert "issues/842" in table.attrs["notes"][0]


# -- faults of single revisions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shards", "plant", "verdict", "words"),
    [
        (1, truncate, "incomplete", "ends 40 bytes too early"),
        (1, pointer, "incomplete", "are no safetensors file, or only its beginning"),
        (1, lambda f: (f / "model.safetensors").write_bytes(b""), "incomplete", "the 0 bytes are no safetensors"),
        (1, lambda f: without_tensor(f, "head.weight", 2), "incomplete", "it has no tensor head.weight"),
        (1, lambda f: (f / "config.json").unlink(), "missing", "no config.json"),
        (2, lambda f: (f / SHARD.format(2, 2)).unlink(), "missing", "is one of the shards, and it does not exist"),
        (2, lambda f: (f / "model.safetensors.index.json").unlink(), "incomplete", "several shards, and no model.saf"),
        (2, lambda f: (f / "model.safetensors.index.json").write_text("<html>"), "incomplete", "names no shards"),
    ],
    ids=["truncated", "pointer", "empty", "tensor", "config", "shard", "index", "damaged index"],
)
def test_an_incomplete_revision_is_named(
    shards: int, plant: Callable[[Path], None], verdict: str, words: str, served: Callable[..., Any], tmp_path: Path
) -> None:
    folders = suite(tmp_path, STEPS, shards)
    plant(folders["step1000"])
    place = served({MODEL: folders})
    table = sl.preflight(MODEL, hub=place.hub)
    assert verdicts(table) == {"step1000": {verdict}}
    assert words in table[table.verdict == verdict].note.item()
    assert place.whole_files() == []


def test_another_dtype_or_config_is_named(served: Callable[..., Any], tmp_path: Path) -> None:
    folders = suite(tmp_path, STEPS[:4])
    folders["step3000"] = checkpoint(tmp_path / "step3000", 9, dtype="float16")
    folders["step4000"] = checkpoint(tmp_path / "step4000", 10, rope_theta=5.0)
    folders["step5000"] = checkpoint(tmp_path / "step5000", 11, transformers_version="9.9")
    table = sl.preflight(MODEL, hub=served({MODEL: folders}).hub)
    assert verdicts(table) == {"step3000": {"different"}, "step4000": {"different"}}
    notes = " ".join(table[table.leave_out].note)
    assert 'torch_dtype is "float16", in most revisions "float32"' in notes
    assert "4 of its 4 tensors have another dtype or shape" in notes
    assert "rope_theta is 5.0, in most revisions null" in notes


def test_tied_and_computed_tensors_may_be_absent(served: Callable[..., Any], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from support.hub_suite import tensors

    folders = suite(tmp_path, STEPS)
    for number, name in enumerate(STEPS[:-1]):
        extra = dict.fromkeys(("lm_head.weight", "h.0.attn.bias", "rotary_emb.inv_freq"), tensors(0)["head.weight"])
        save_file(tensors(number) | extra, folders[name] / "model.safetensors")
    table = sl.preflight(MODEL, hub=served({MODEL: folders}).hub)
    assert verdicts(table) == {}


def test_a_gap_in_the_suite_is_named_for_a_pattern(served: Callable[..., Any], tmp_path: Path) -> None:
    names = [f"step{n}000" for n in (1, 2, 3, 4, 6, 7, 8)]
    place = served({MODEL: suite(tmp_path, names)})
    table = sl.preflight(MODEL, hub=place.hub)
    assert verdicts(table) == {"step5000": {"missing"}}
    assert "every 1000 steps, and after step4000 step5000 is missing" in table[table.leave_out].note.item()
    assert verdicts(sl.preflight(MODEL, names, hub=place.hub)) == {}


def test_main_is_the_last_revision_once_more(served: Callable[..., Any], tmp_path: Path) -> None:
    table = sl.preflight(MODEL, ["step1000", "step5000", "main"], hub=served({MODEL: suite(tmp_path, STEPS)}).hub)
    assert faults(table) == ["main"]
    assert table[table.leave_out].known.all()


# -- a hub in trouble ------------------------------------------------------------------------------------------------


def test_every_request_is_repeated_with_growing_waits(served: Callable[..., Any], tmp_path: Path) -> None:
    """The first two requests of each kind fail in turn."""
    folders = suite(tmp_path, STEPS)
    truncate(folders["step2000"])
    kinds: list[Any] = [503, "drop", "cut", 429, 500]

    def trouble(method: str, path: str, earlier: int) -> Any:
        return kinds[(len(path) + earlier) % len(kinds)] if earlier < 2 else None

    place = served({MODEL: folders}, trouble=trouble)
    table = sl.preflight(MODEL, hub=place.hub)
    assert verdicts(table) == {"step2000": {"incomplete"}}
    assert {1.0, 2.0} <= set(place.waits) <= {1.0, 2.0, 4.0}


def test_a_hub_that_never_answers_is_unreachable_after_all_attempts(served: Callable[..., Any], tmp_path: Path) -> None:
    place = served({MODEL: suite(tmp_path, STEPS[:2])}, dead="refs", attempts=8)
    with pytest.raises(UnreachableError, match=r"did not answer for someone/model after 8 attempts.*repeat"):
        sl.preflight(MODEL, hub=place.hub)
    assert place.waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]


def test_a_longer_wait_is_that_of_the_hub() -> None:
    from huggingface_hub.errors import HfHubHTTPError

    class Response:
        status_code, headers, request = 429, {"retry-after": "77"}, None

    error = HfHubHTTPError.__new__(HfHubHTTPError)
    error.response = Response()  # type: ignore[assignment]
    answers: list[Any] = [error, "an answer"]
    waits: list[float] = []

    def request() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert Hub(wait=waits.append).request("x", request) == "an answer"
    assert waits == [77.0]


# -- refusals --------------------------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "missing repository": ({"repository": "someone/modle"}, "no model repository someone/modle on the hub"),
    "gated repository": ({"gated": [MODEL]}, "is gated.*Accept them on its page.*hf auth login"),
    "unknown revision": ({"revisions": ["step0", "step1001"]}, "no revision 'step1001': did you mean 'step1000'"),
    "nothing matches": ({"revisions": "stage1-*"}, "no revision of someone/model matches 'stage1-\\*'"),
    "no name": ({"repository": "a//b c"}, "is no name of a repository"),
    "a local path": ({"repository": "."}, "is a local path, which has no revisions"),
    "not a text": ({"repository": None}, "repository=None is no name on the hub"),
    "wrong compare": ({"compare": "al"}, "compare='al': did you mean 'all'"),
    "offline": ({"offline": True}, "HF_HUB_OFFLINE is set"),
    "no access": ({"status": 403}, "refused access to someone/model \\(status 403\\).*HF_TOKEN"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str, served: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    changes, words = REFUSALS[case]
    arguments = {"repository": MODEL, "revisions": "step*", **changes}
    options = {key: arguments.pop(key) for key in ("gated",) if key in arguments}
    if "status" in arguments:
        code = arguments.pop("status")
        options["trouble"] = lambda method, path, earlier: code
    place = served({MODEL: suite(tmp_path, STEPS)}, **options)
    if arguments.pop("offline", False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=re.compile(words, re.DOTALL)):
        sl.preflight(**arguments, hub=place.hub)
    assert place.waits == [], "a refusal is not repeated"


def test_no_network(served: Callable[..., Any]) -> None:
    place = served({})
    nothing = Hub(endpoint="http://127.0.0.1:9", attempts=2, wait=place.waits.append)  # no server has port 9
    with pytest.raises(UnreachableError, match=r"the hub \(http://127.0.0.1:9\) did not answer"):
        sl.preflight(MODEL, hub=nothing)


def test_a_hub_does_not_show_its_token() -> None:
    assert "secret" not in repr(Hub(token="secret"))
    assert json.dumps(repr(Hub()))
