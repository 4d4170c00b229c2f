"""Record one tiny model in several ways, and compare every site with what the model computes.

python -m benchmarks.architectures.verify LlamaForCausalLM      # prints the document
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stratalens as sl
from benchmarks.architectures import prompts
from benchmarks.architectures.tiny_models import VOCABULARY, family, make_model
from stratalens.plugin.check.check import check
from stratalens.plugin.check.report import relative_difference
from stratalens.plugin.models.adapters import BridgeAdapter, adapt
from stratalens.plugin.models.site_resolution import resolve
from stratalens.plugin.models.sites import available_names, hook_of

#: Groups of sites that exist in the same layers; None for all layers.
Groups = dict[tuple[int, ...] | None, list[str]]
ROUNDING = 1e-4  # largest relative difference that counts as rounding, as in `stratalens.check`


def verify(architecture: str) -> dict[str, Any]:
    """Return what was compared for one architecture, as a JSON document.

    Returns:
        architecture, family, status ("recorded", or who fails) and reason; for recorded models sites (name -> verdict
        and difference from `run_with_cache`), refused (name -> reason), and the differences that `_compare` lists.
    """
    document: dict[str, Any] = {"architecture": architecture, "family": "", "status": "transformers fails"}
    with _quiet():
        try:
            model = make_model(architecture)
            document["family"] = family(model)
            reference = copy.deepcopy(model)
            _run_plain(reference, torch.tensor([[2, 3, 4]]), torch.ones(1, 3, dtype=torch.long))
            document["status"] = "TransformerLens fails"
            bridge = _boot(model)
            adapter = adapt(bridge)
            with torch.no_grad():
                adapter.run(torch.tensor([[2, 3, 4]]), torch.ones(1, 3, dtype=torch.long), "logits")
                bridge.run_with_cache(torch.tensor([[2, 3, 4]]))
            document["status"] = "stratalens fails"
            document |= _compare(adapter, reference)
            document["status"] = "recorded"
        except Exception as error:  # a row of the page says what failed; the others still run
            document["reason"] = f"{type(error).__name__}: {_first_sentence(error)}"
    return document


def _boot(model: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        "tiny", hf_model=model, tokenizer=prompts.tokenizer(True), dtype=torch.float32, device="cpu"
    )


def _compare(adapter: BridgeAdapter, reference: Any) -> dict[str, Any]:
    """Record the model with padding on either side, with and without BOS, and alone; compare all of it."""
    groups, refused = _groups(adapter)
    differences: dict[str, list[float]] = {}
    for bos, side in product((False, True), ("right", "left")):
        record = _record_right if side == "right" else _record_left
        for layers, sites in groups.items():
            for site, difference in record(adapter, sites, layers, prompts.tokenizer(bos)):
                differences.setdefault(site, []).append(difference)
    report = check(adapter.model, prompts.table(), tokenizer=prompts.tokenizer(True))
    modules = report.table[report.table.check == "Hugging Face module"]
    checked = modules[modules.verdict.isin(["equal", "rounding"])]
    return {
        "sites": {site: {"verdict": _verdict(max(d)), "difference": _short(max(d))} for site, d in differences.items()},
        "refused": refused,
        "hugging_face": _short(_against_hugging_face(adapter, reference)),
        "batch_size": _short(_batch_size(adapter, groups)),
        "check": "ok" if report.ok else sorted({f"{f.check}: {f.note or f.site}" for f in report.failures}),
        "sites_by_modules": sorted(set(checked.site)),
        "left_padding": sorted(set(report.table[report.table.check == "left padding"].verdict)),
        **_output_statistics(adapter, reference, groups),
    }


def _groups(adapter: BridgeAdapter) -> tuple[Groups, dict[str, str]]:
    """Group the short names of a model by the layers that have them; refused names come with the reason."""
    groups: Groups = {}
    refused: dict[str, str] = {}
    ids = torch.arange(2, 12)
    for name in available_names(adapter):
        hook = str(hook_of(adapter, name))
        blocks = range(adapter.n_layers or 0) if "{layer}" in hook else ()
        present = tuple(n for n in blocks if hook.replace("{layer}", str(n)) in adapter.points)
        layers = present if present and len(present) < len(blocks) else None
        try:
            resolve(adapter, [name], layers, ids)
        except sl.errors.InputError as error:
            refused[name] = _first_sentence(error)
        else:
            groups.setdefault(layers, []).append(name)
    refused.pop("result", None)  # fires after set_use_attn_result(True) only, which the page says once
    return groups, refused


def _options(sites: list[str], layers: tuple[int, ...] | None, tokenizer: Any) -> dict[str, Any]:
    return {"sites": sites, "layers": layers, "tokenizer": tokenizer, "dtype": "float32"}


def _record_right(
    adapter: BridgeAdapter, sites: list[str], layers: tuple[int, ...] | None, tokenizer: Any
) -> Iterator[tuple[str, float]]:
    """Record all positions with capture(), and compare them with run_with_cache on the same batch."""
    table = prompts.table()
    with tempfile.TemporaryDirectory() as folder:
        options = _options(sites, layers, tokenizer)
        ds = sl.capture(
            {"model": adapter.model}, table, f"{folder}/run.zarr", positions="all", batch_size=len(table.prompts),
            check=False, statistics=False, **options,
        ).load()  # fmt: skip
    tokenized = table.tokenize(tokenizer)
    lengths = [len(row) for row in tokenized.ids]
    order = np.argsort(lengths, kind="stable")  # the order of a batch of `capture`
    ids, mask = (torch.from_numpy(part) for part in tokenized.batch(order, max(lengths)))
    truth = _run_with_cache(adapter, ids, mask)
    for site in sites:
        for number, value in _by_layer(ds[site]):
            hook = _hook(adapter, site, number)
            for place, row in enumerate(order):
                recorded = torch.from_numpy(value[row, -lengths[row] :])  # the last token comes last in every row
                expected = truth[hook].expand(len(order), *truth[hook].shape[1:])[place, : lengths[row]]
                yield site, relative_difference(recorded, expected.reshape(recorded.shape).float())


def _record_left(
    adapter: BridgeAdapter, sites: list[str], layers: tuple[int, ...] | None, tokenizer: Any
) -> Iterator[tuple[str, float]]:
    """Record the last token in a loop with padding on the left, and compare it with run_with_cache."""
    table = prompts.table()
    rows = table.tokenize(tokenizer).ids
    width, count = max(map(len, rows)), len(rows)
    ids, mask = torch.zeros(count, width, dtype=torch.long), torch.zeros(count, width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = torch.from_numpy(row), 1
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        options = _options(sites, layers, tokenizer)
        path = f"{folder}/run.zarr"
        with (
            sl.create_store(
                path, table, adapter.model, positions=["last"], statistics=False, check=False, **options
            ) as store,
            sl.Recorder(adapter.model, store, stage="model") as recorder,
        ):
            recorder.batch(np.arange(count), positions={"last": np.full(count, width - 1)})
            adapter.run(ids, mask, "logits")
        ds = sl.open_store(path).load()
    truth = _run_with_cache(adapter, ids, mask)
    for site in sites:
        for number, value in _by_layer(ds[site]):
            expected = truth[_hook(adapter, site, number)][:, -1].expand(count, *value.shape[2:])
            yield site, relative_difference(torch.from_numpy(value[:, 0]), expected.float())


def _by_layer(array: Any) -> Iterator[tuple[int | None, np.ndarray]]:
    """Yield (layer or None, array of shape (entity, token, ...)) of the only stage."""
    values = array.transpose("stage", *(["layer"] if "layer" in array.dims else []), "entity", "token", ...).values[0]
    if "layer" not in array.dims:
        yield None, values
    else:
        yield from zip(array.layer.values.tolist(), values, strict=True)


def _hook(adapter: BridgeAdapter, site: str, layer: int | None) -> str:
    return adapter.points[str(hook_of(adapter, site)).replace("{layer}", str(layer))].name or site


def _run_with_cache(adapter: BridgeAdapter, ids: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
    options = {"use_cache": False} if adapter.takes_cache else {}
    with torch.no_grad():
        _, cache = adapter.model.run_with_cache(ids, attention_mask=mask, **options)
    return cache


def _run_plain(model: Any, ids: Tensor, mask: Tensor) -> Any:
    """Run a Hugging Face model that TransformerLens has never touched."""
    options: dict[str, Any] = {}
    if model.config.is_encoder_decoder:
        start = torch.full_like(ids[:, :1], model.config.decoder_start_token_id or 0)
        options["decoder_input_ids"] = torch.cat([start, ids[:, :-1]], dim=1)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, output_hidden_states=True, **options)


def _batch(tokenizer: Any) -> tuple[Tensor, Tensor, Any]:
    tokenized = prompts.table().tokenize(tokenizer)
    lengths = [len(row) for row in tokenized.ids]
    ids, mask = (torch.from_numpy(part) for part in tokenized.batch(np.arange(len(lengths)), max(lengths)))
    return ids, mask, lengths


def _against_hugging_face(adapter: BridgeAdapter, reference: Any) -> float:
    """Compare logits and the input of every block with a copy of the model that has no hooks."""
    ids, mask, _ = _batch(prompts.tokenizer(True))
    plain, cache = _run_plain(reference, ids, mask), _run_with_cache(adapter, ids, mask)
    kept = mask.bool()
    with torch.no_grad():
        logits = adapter.run(ids, mask, "logits")
    differences = [relative_difference(logits[kept], plain.logits[kept])] if isinstance(logits, Tensor) else []
    # Some classes of transformers return the state after every block, and the other classes the state before it.
    after = any(name in str(adapter.hf.config.model_type) for name in ("mamba", "rwkv"))
    site = "resid_post" if after else "resid_pre"
    states = {
        site: getattr(plain, "hidden_states", None),
        "encoder_resid_pre": getattr(plain, "encoder_hidden_states", None),
        "decoder_resid_pre": getattr(plain, "decoder_hidden_states", None),
    }
    for site, hidden in states.items():
        if hidden is None or hook_of(adapter, site) is None:
            continue
        if adapter.hf.config.is_encoder_decoder is False and len(hidden) != (adapter.n_layers or 0) + 1:
            continue  # not one state before every block
        for layer in range(len(hidden) - 1):
            value = cache[_hook(adapter, site, layer)]
            if value.shape == hidden[layer].shape:
                differences.append(relative_difference(value[kept], hidden[layer][kept]))
    return max(differences)


def _batch_size(adapter: BridgeAdapter, groups: Groups) -> float:
    """Record rows of one length one by one and together; return the largest difference of a site."""
    import pandas as pd

    # Every permutation of the same bytes has the same number of tokens, so padding is the same in both.
    table = sl.PromptTable.from_dataframe(pd.DataFrame({"prompt": ["xyz", "yzx", "zxy", "zyx"]}))
    differences = [0.0]
    for layers, sites in groups.items():
        with tempfile.TemporaryDirectory() as folder:
            alone, together = (
                sl.capture(
                    {"model": adapter.model}, table, f"{folder}/{size}.zarr", batch_size=size, check=False,
                    statistics=False, **_options(sites, layers, prompts.tokenizer(True)),
                ).load()
                for size in (1, 4)
            )  # fmt: skip
        for site in sites:
            value, other = (torch.from_numpy(ds[site].values) for ds in (alone, together))
            differences.append(relative_difference(other, value))
    return max(differences)


def _output_statistics(adapter: BridgeAdapter, reference: Any, groups: Groups) -> dict[str, Any]:
    """Record the loss, and compare it with that of the plain model in float64."""
    tokenizer = prompts.tokenizer(True)
    layers, sites = next(iter(groups.items()))
    with tempfile.TemporaryDirectory() as folder:
        ds = sl.capture(
            {"model": adapter.model}, prompts.table(), f"{folder}/run.zarr", batch_size=4, check=False,
            positions=["last"], **_options(sites[:1], layers, tokenizer),
        ).load()  # fmt: skip
    if "loss" not in ds:
        return {"output_statistics": "none"}
    ids, mask, lengths = _batch(tokenizer)
    logits = _run_plain(reference, ids, mask).logits.double()
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    expected = [float(losses[row, length - 2]) for row, length in enumerate(lengths)]  # of the last token
    recorded = torch.from_numpy(ds.loss.values[0].reshape(-1))
    return {"output_statistics": "next token", "loss": _short(relative_difference(recorded, torch.tensor(expected)))}


def _verdict(difference: float) -> str:
    return "equal" if difference == 0 else "rounding" if difference <= ROUNDING else "different"


def _short(difference: float) -> float | str:
    return float(f"{difference:.1e}") if difference < float("inf") else "inf"


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else f"{text[:157]}..."


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress, warnings and prints of the libraries."""
    import transformers

    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    assert VOCABULARY > 300
    for name in sys.argv[1:]:
        print(json.dumps(verify(name), indent=1))
