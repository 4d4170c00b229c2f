"""Bad input of a job is named with its remedy; nothing is half-written, and no hook stays on the model."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import stratalens as sl
from stratalens.store.errors import InputError
from support.models import TwoLayers, bridge, run_two_layers, table, tokenizer


def axis(width: int = 32, layers: tuple[int, ...] | None = (1,), site: str = "resid_post") -> Any:
    x = xr.DataArray(np.random.default_rng(0).normal(size=width), dims="d_model")
    return sl.directions(x if layers is None else x.expand_dims(layer=list(layers)), site=site, name="axis")


@cache
def shared(kind: str) -> Any:
    if kind == "half":
        return bridge("llama", dtype=torch.float16)
    if kind == "training":
        model = bridge("llama", 5)
        model.original_model.train()
        return model
    return TwoLayers() if kind == "own" else bridge("llama")


def without(column: str | None, **changes: Any) -> sl.PromptTable:
    frame = table(4, answers=True).frame.drop(columns=["entity_start", "entity_end"])
    for row, value in changes.pop("answers", {}).items():
        frame.loc[row, "answer"] = value
    return sl.PromptTable.from_dataframe(frame if column is None else frame.drop(columns=[column]))


def source(positions: tuple[str, ...]) -> xr.Dataset:
    x = np.ones((4, len(positions), 3, 32), np.float32)
    return xr.Dataset(
        {"resid_post": (("entity", "token", "layer", "d_model"), x)},
        coords={"token": list(positions), "layer": [0, 1, 2], "entity": list("abcd")},
    )


OWN: dict[str, Any] = {"stages": "own", "tokenizer": tokenizer, "forward": lambda: run_two_layers}
INTERCHANGE: dict[str, Any] = {"kind": "patch", "source_rows": [0, 1, 2, 3]}
Case = tuple[dict[str, Any], str]
CASES: dict[str, Case] = {
    # directions
    "unknown direction": (
        {"directions": lambda: axis().sel(direction="axes")},
        r"direction='axes' is not among the directions: did you mean 'axis'",
    ),
    "unknown layer of the model": ({"directions": lambda: axis(layers=(7,))}, r"layer 7, but .* blocks 0 to 2; select"),
    "wrong width": ({"directions": lambda: axis(16)}, r"16 features.*this model has 32; use directions of this model"),
    "wrong width at a site of unknown size": (
        OWN | {"directions": lambda: axis(5, None, "hook_embed")},
        r"hook_embed has 12 features, the directions have 5; use those of this model",
    ),
    "unknown site": ({"directions": lambda: axis(site="resid_pst")}, r"did you mean 'resid_post'"),
    # positions
    "position that the prompts do not have": (
        {"table": lambda: without("entity"), "positions": "entity_last"},
        r"needs a column 'entity'",
    ),
    "position that is too far back": ({"positions": "-40"}, r"too short for position"),
    "site without positions": (
        OWN | {"directions": lambda: axis(12, None, "hook_total")},
        r"hook_total.*positions cannot be taken from it. Choose a site",
    ),
    "position that was not recorded": (
        INTERCHANGE | {"source": lambda: source(("last",)), "positions": "-2"},
        r"position '-2' was not recorded: Valid: last",
    ),
    # doses
    "dose that overflows": (
        {"stages": "half", "doses": (1.0, 1e7), "positions": "last"},
        r"dose 1e\+07 of 'axis'.*smaller dose",
    ),
    "dose that overflows at all positions": ({"stages": "half", "doses": (1e7,)}, r"dose 1e\+07.*smaller dose"),
    "dose that is not finite": ({"doses": (1.0, float("inf"))}, r"doses=inf is not a finite number"),
    # models
    "training mode": ({"stages": "training"}, r"training mode.*model\.eval\(\)"),
    # answers
    "no answers": ({"table": lambda: without("answer")}, r"needs a column 'answer', which .* does not have"),
    "an empty answer": ({"table": lambda: without(None, answers={2: ""})}, r"row 2: no answer for .*fill or drop"),
    "no other answer": ({"outcome": "answer_difference"}, r"a column 'other_answer'.*Pass against="),
    "no answer to look for in the text": (
        {"table": lambda: without("answer"), "outcome": "text"},
        r"fill the column 'answer', or pass GeneratedText\(judge=",
    ),
    "a text that is too long": (
        {"outcome": lambda: sl.GeneratedText(new_tokens=60)},
        r"the model takes 64; generate fewer tokens",
    ),
    # settings
    "unknown way of reuse": ({"reuse": "block"}, r"reuse='block': did you mean 'blocks'"),
    "unknown rule for overlaps": ({"overlap": "exclud"}, r"did you mean 'exclude'"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes, message = CASES[case]
    arguments = {"table": lambda: table(4, answers=True), "directions": axis, "path": "effects.zarr"} | changes
    model = shared(arguments.pop("stages", "llama"))
    hooks = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    options: dict[str, Any] = {"random": 2, "doses": (-3.0, 3.0), "progress": False, "positions": "last"} | arguments

    def call() -> None:
        sl.intervene(model, **{name: value() if callable(value) else value for name, value in options.items()})

    with pytest.raises(InputError, match=f"(?s){message}"):
        call()
    assert list(tmp_path.iterdir()) == []
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == hooks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_tokens": 0}, "new_tokens=0 is not a number of tokens"),
        ({"temperature": -1.0}, "temperature=-1.0 is not a number from 0"),
        ({"judge": "yes"}, "judge='yes' is not a function"),
    ],
)
def test_settings_of_generated_text(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sl.GeneratedText(**settings)
