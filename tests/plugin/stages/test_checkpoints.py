"""Checkpoint folders and adapters as stages; folders without config, weights or tokenizer are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from stratalens.plugin.capture.run import capture
from stratalens.plugin.stages.checkpoints import Checkpoint, LoraAdapter, Revision, translate_errors
from stratalens.plugin.stages.hub_errors import HTTP_ERROR
from stratalens.store.errors import InputError, UnreachableError
from support.models import hf_model, save_checkpoint, table, tokenizer


def test_checkpoint_folders(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "full")
    assert Checkpoint(folder).load(None, "cpu").cfg.n_layers == 3
    file = tmp_path / "file"
    file.write_text("x")
    empty = tmp_path / "empty"
    empty.mkdir()
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    silent = save_checkpoint(tmp_path / "silent")
    for file_of_tokenizer in silent.glob("tokenizer*"):
        file_of_tokenizer.unlink()
    for source, message in (
        (file, "is a file"),
        (empty, "no config.json"),
        (pickled, "pickled weights are never loaded"),
        (silent, "has no tokenizer"),
        (LoraAdapter(empty), "adapter_config.json"),
    ):
        with pytest.raises(InputError, match=message):
            capture({"s": source}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="local path"):
        Revision(str(folder), "step1000")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads a deprecated attribute
def test_adapters(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = save_checkpoint(tmp_path / "base")
    tuned = get_peft_model(hf_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload()
    stages = {"base": folder, "tuned": LoraAdapter(tmp_path / "adapter", base=folder)}
    ds = capture(stages, table(4), tmp_path / "run.zarr", statistics=False)
    ids, mask = (torch.from_numpy(a) for a in table(4).tokenize(tokenizer()).batch([2], 40))
    with torch.no_grad():
        states = merged(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    last = int(mask.sum()) - 1
    np.testing.assert_allclose(ds.resid_post.values[1, 0, 2, 0], states[1][0, last].numpy(), rtol=1e-3, atol=1e-4)
    assert not np.allclose(ds.resid_post.values[0, 0], ds.resid_post.values[1, 0])


def test_the_http_library_of_the_hub_has_a_root_error() -> None:
    """HTTP_ERROR is read from the bases of the hub's own error, which a new huggingface_hub may change."""
    assert issubclass(HfHubHTTPError, HTTP_ERROR)
    assert HTTP_ERROR not in (OSError, Exception, BaseException, HfHubHTTPError)


@pytest.mark.parametrize(
    ("cause", "offline", "expected"),
    [
        (LocalEntryNotFoundError("not in the cache"), False, UnreachableError),
        (HTTP_ERROR("the connection was closed"), False, UnreachableError),
        (ConnectionResetError("reset"), False, UnreachableError),
        (TimeoutError("no answer"), False, UnreachableError),
        (LocalEntryNotFoundError("not in the cache"), True, InputError),
        (OfflineModeIsEnabled("offline"), False, InputError),
        (HfHubHTTPError.__new__(HfHubHTTPError), False, InputError),
        (PermissionError("not readable"), False, InputError),
    ],
)
def test_errors_of_the_network_are_distinguished_from_wrong_names(
    cause: Exception, offline: bool, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(expected, match="revision 'x'"), translate_errors("revision 'x'"):
        raise OSError("transformers could not load it") from cause
    if isinstance(cause, OSError | HTTP_ERROR):
        with pytest.raises(expected), translate_errors("revision 'x'"):
            raise cause
