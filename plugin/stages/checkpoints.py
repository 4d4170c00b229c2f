"""Checkpoint, Revision and LoraAdapter: stored models, loaded when their stage is recorded.

Weights are read from safetensors only.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn

from stratalens.plugin.compat import for_transformer_lens, mark_headless, mark_tokenizer
from stratalens.plugin.stages.hub_errors import HTTP_ERROR, hub_unreachable
from stratalens.plugin.stages.label_warnings import caller_level
from stratalens.store.errors import CheckWarning, InputError, StratalensError, UnreachableError, join_names
from stratalens.store.files import user_path


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors weights, as save_pretrained and Trainer write it.

    Attributes:
        folder: the checkpoint.
        dtype: dtype to load in, "auto" for that of the weights.
        model_kwargs: further arguments of transformers' `from_pretrained`, such as device_map, offload_folder,
            max_memory, quantization_config or attn_implementation.
    """

    folder: str | Path
    dtype: str = "auto"
    model_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def load(self, tokenizer: Any, device: str | torch.device | None) -> nn.Module:
        """Load the folder into a TransformerBridge.

        Raises:
            InputError: the path is not a folder, or has no config or no safetensors weights.
        """
        folder = user_path(self.folder)
        check_checkpoint(folder)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            return LoraAdapter(folder, dtype=self.dtype).load(tokenizer, device)
        with translate_load_errors(folder):
            model = _from_pretrained(str(folder), self.dtype, _model_kwargs(self.model_kwargs, device))
            return boot(model, str(folder), tokenizer, device)


@dataclass(frozen=True)
class Revision:
    """A revision of a model on the Hugging Face hub, such as `Revision("EleutherAI/pythia-70m", "step1000")`.

    Attributes:
        model: name on the hub; a local folder has no revisions.
        revision: branch, tag or commit.
        dtype: dtype to load in, "auto" for that of the weights.
        model_kwargs: as in `Checkpoint`.
    """

    model: str
    revision: str
    dtype: str = "auto"
    model_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if Path(self.model).exists():
            raise InputError(
                f"{self.model!r} is a local path, where revision={self.revision!r} would silently have no effect. "
                "Pass the folder of each checkpoint itself."
            )

    def load(self, tokenizer: Any, device: str | torch.device | None) -> nn.Module:
        """Load the revision, from the hub's cache where it is there.

        Raises:
            InputError: there is no such model or revision, or HF_HUB_OFFLINE is set and it is not in the cache.
            UnreachableError: the hub did not answer, and the revision is not in the cache.
        """
        with translate_errors(f"revision {self.revision!r} of {self.model!r}"):
            own = _model_kwargs(self.model_kwargs, device)
            model = _from_pretrained(self.model, self.dtype, own, revision=self.revision)
            return boot(model, self.model, tokenizer, device, revision=self.revision)


@dataclass(frozen=True)
class LoraAdapter:
    """A PEFT adapter folder, merged into its base model.

    Attributes:
        folder: the adapter, with `adapter_config.json`.
        base: base model name or folder; None takes the base that the adapter names. A relative path ("../untrained")
            starts from the adapter's own folder.
        dtype: dtype to load the base in, "auto" for that of its weights.
    """

    folder: str | Path
    base: str | Path | None = None
    dtype: str = "auto"

    def load(self, tokenizer: Any, device: str | torch.device | None) -> nn.Module:
        """Load the base, merge the adapter into its weights, and hook the result.

        Raises:
            InputError: the folder is not an adapter, has no safetensors or names no base; or peft is not installed.
            UnreachableError: the base is on the hub, which did not answer.
        """
        try:
            from peft import PeftConfig, PeftModel
        except ImportError as error:
            raise InputError("LoRA adapters need peft. Install it with: pip install 'stratalens[lora]'") from error
        folder = user_path(self.folder)
        for needed in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / needed).is_file():
                raise InputError(
                    f"{str(folder)!r} is not a PEFT adapter: it has no {needed}. "
                    "Save one with peft_model.save_pretrained(folder, safe_serialization=True)."
                )
        base = self.base_model(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path)
        if Path(base).is_dir():
            check_checkpoint(Path(base))
        with translate_errors(f"base model {base!r} of adapter {str(folder)!r}"):
            with translate_load_errors(Path(base)) if Path(base).is_dir() else nullcontext():
                plain = _from_pretrained(base, self.dtype)
            with (
                translate_load_errors(folder),
                warnings.catch_warnings(),
            ):  # peft reads a deprecated attribute of transformers
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
                merged = PeftModel.from_pretrained(plain, str(folder)).merge_and_unload()
            return boot(merged, base, tokenizer, device)

    def base_model(self, named: str | None) -> str:
        """Return the name or folder of the base model.

        Args:
            named: the base that the adapter names.

        Raises:
            InputError: there is none.
        """
        base, folder = str(self.base or named or ""), user_path(self.folder)
        if not base:
            raise InputError(f"adapter {str(folder)!r} names no base model. Pass LoraAdapter(folder, base=...).")
        if self.base is None and base.startswith(("./", "../")):  # a study writes the path from the adapter's folder
            return str((folder / base).resolve())
        return base


StoredModel = Checkpoint | Revision | LoraAdapter


def load_tokenizer(source: StoredModel) -> Any:
    """Load the tokenizer of a stored model without the model; a LoRA adapter has that of its base model.

    Raises:
        InputError: the folder has no tokenizer, or it cannot be loaded.
        UnreachableError: the tokenizer is on the hub, which did not answer.
    """
    from transformers import AutoTokenizer

    if isinstance(source, Checkpoint):
        folder = user_path(source.folder)
        check_checkpoint(folder)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            source = LoraAdapter(folder)
    if isinstance(source, LoraAdapter):
        file = user_path(source.folder) / "adapter_config.json"
        named = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path") if file.is_file() else None
        name = source.base_model(named)
    else:
        name = source.model if isinstance(source, Revision) else str(user_path(source.folder))
    if Path(name).is_dir() and not any(Path(name).glob("tokenizer*")):
        raise InputError(f"folder {name!r} has no tokenizer. Save one there, or pass tokenizer=.")
    options = {"revision": source.revision} if isinstance(source, Revision) else {}
    with translate_errors(f"the tokenizer of {name!r}"):
        return AutoTokenizer.from_pretrained(name, **options)


def check_checkpoint(folder: Path) -> None:
    """Check that a folder has a config and safetensors weights, or an adapter.

    Raises:
        InputError: it has not.
    """
    if not folder.exists():
        raise InputError(
            f"checkpoint folder {str(folder)!r} does not exist. The working directory is {str(Path.cwd())!r}."
        )
    if not folder.is_dir():
        raise InputError(f"checkpoint {str(folder)!r} is a file. Pass the folder that save_pretrained() wrote.")
    names = {p.name for p in folder.iterdir()}
    if "adapter_config.json" in names and "config.json" not in names:
        return
    if "config.json" not in names:
        raise InputError(f"checkpoint folder {str(folder)!r} has no config.json. Save it with save_pretrained().")
    if not any(n.endswith(".safetensors") for n in names):
        pickled = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
        others = f" but {', '.join(pickled[:3])}, and pickled weights are never loaded" if pickled else ""
        raise InputError(
            f"checkpoint folder {str(folder)!r} has no safetensors weights{others}. "
            "Save them with model.save_pretrained(folder, safe_serialization=True)."
        )


@contextmanager
def translate_load_errors(folder: Path) -> Iterator[None]:
    """Raise errors of loading a checkpoint folder as an InputError that names the file or the reason."""
    try:
        yield
    except StratalensError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, StrictDataclassError) as error:
        for file in sorted(folder.glob("*.json")):
            if reason := _invalid_json(file):
                raise InputError(
                    f"checkpoint {str(folder)!r}: {file.name} cannot be read: {reason}. Copy the folder again, or save "
                    "it again with save_pretrained()."
                ) from error
        for file in sorted(folder.glob("*.safetensors")):
            if reason := _invalid_safetensors(file):
                raise InputError(
                    f"checkpoint {str(folder)!r}: {file.name} is damaged or incomplete: {reason}. Copy the file again, "
                    "or save it again with save_pretrained()."
                ) from error
        if "for this kind of AutoModel" in str(error):
            raise InputError(
                f"checkpoint {str(folder)!r} is of type {_model_type(folder)!r}, which transformers does not load as a "
                "language model (AutoModelForCausalLM). Load it with its own class, hook it with "
                "TransformerBridge.boot_transformers(folder, hf_model=model, tokenizer=tokenizer), and pass the result."
            ) from error
        if "model type" in str(error) or "model_type" in str(error):
            raise InputError(
                f"checkpoint {str(folder)!r}: config.json has model_type {_model_type(folder)!r}, which transformers "
                f"{version('transformers')} does not know. Correct it, or install a newer transformers."
            ) from error
        reason = " ".join(str(error).split())
        raise InputError(
            f"checkpoint {str(folder)!r} could not be loaded: {type(error).__name__}: {reason[:300]}"
            f"{'...' if len(reason) > 300 else ''}. Check that AutoModelForCausalLM.from_pretrained loads the folder."
        ) from error


def _invalid_json(file: Path) -> str:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        return f"{error}"
    return "" if isinstance(document, dict) or file.name != "config.json" else "it is not a JSON object"


def _invalid_safetensors(file: Path) -> str:
    try:
        with safe_open(file, framework="pt"):
            return ""
    except (OSError, SafetensorError) as error:
        return str(error)


def _model_type(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")


@contextmanager
def translate_errors(subject: str) -> Iterator[None]:
    """Raise errors of loading `subject` from the hub as InputError or UnreachableError."""
    try:
        yield
    except (OSError, HTTP_ERROR) as error:
        reason = " ".join(str(error).split())
        if hub_unreachable(error):
            raise UnreachableError(
                f"{subject} is not in the cache (HF_HOME), and the hub did not answer: {reason} "
                "Recorded stages are safe. Repeat the same call to resume."
            ) from error
        raise InputError(
            f"{subject} could not be loaded: {reason} Pass a branch or tag that the model's page on the hub lists; "
            "without a network, only revisions in the cache (HF_HOME) can be loaded."
        ) from error


def _model_kwargs(model_kwargs: Mapping[str, Any], device: str | torch.device | None) -> Mapping[str, Any]:
    """Check the arguments of `from_pretrained` that a stage has.

    Raises:
        InputError: a place for the model is named twice, or an argument is one that a stage has of its own.
    """
    of_stage = {"dtype", "torch_dtype", "revision", "use_safetensors", "output_loading_info"}
    if own := sorted(of_stage & set(model_kwargs)):
        raise InputError(f"model_kwargs has {join_names(own)}, which a stage sets itself; leave it out.")
    if device is not None and "device_map" in model_kwargs:
        raise InputError(
            f"device={str(device)!r} and model_kwargs={{'device_map': ...}} both place the model. Leave out device."
        )
    return model_kwargs


def _from_pretrained(name: str, dtype: str, model_kwargs: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
    """Load a language model; refuse weights that transformers would fill in at random.

    Args:
        name: folder, or name on the hub.
        dtype: dtype, or "auto".
        model_kwargs: arguments of the model alone, see `Checkpoint`.
        **kwargs: arguments of the config too.

    Raises:
        InputError: the checkpoint has no value, or one of another shape, for a tensor of the model. The output layer
            alone may be absent, as in a base model; the model is then marked as headless.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    config = AutoConfig.from_pretrained(name, **kwargs)
    kind: Any = AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM
    with _quiet(logging):  # its report of missing tensors is repeated in the error below
        options: dict[str, Any] = {
            "use_safetensors": True,
            "ignore_mismatched_sizes": True,
            **kwargs,
            **(model_kwargs or {}),
        }
        loaded: Any = kind.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
    model, loading = loaded
    _warn_about_blocks(name, model, loading["unexpected_keys"])
    mismatched = sorted(str(entry[0]) for entry in loading["mismatched_keys"])
    if mismatched:
        raise InputError(
            f"checkpoint {name!r} has tensors of another shape than its config says: {join_names(mismatched)}. Save "
            "the model and its config together with save_pretrained()."
        )
    missing = sorted(loading["missing_keys"])
    head = set(_head_names(model))
    if outside := [tensor for tensor in missing if tensor not in head]:
        raise InputError(
            f"checkpoint {name!r} has no weights for {len(outside)} tensors of {type(model).__name__}: "
            f"{join_names(outside)}. They would be random numbers. Load the checkpoint with the class that saved it, "
            "and save it again with save_pretrained()."
        )
    if missing:
        mark_headless(model)
    return model.eval()


_INDEX = re.compile(r"\.\d+\.")


def _warn_about_blocks(name: str, model: Any, unexpected: Iterable[str]) -> None:
    """Warn that a checkpoint has blocks that its config leaves out."""
    known = {_INDEX.sub(".0.", tensor) for tensor in model.state_dict() if _INDEX.search(tensor)}
    if beyond := sorted(
        tensor for tensor in unexpected if _INDEX.search(tensor) and _INDEX.sub(".0.", tensor) in known
    ):
        warnings.warn(
            f"checkpoint {name!r} has {len(beyond)} tensors of blocks that its config.json leaves out: "
            f"{join_names(beyond, 3)}. They are not part of the recorded model. Save the model and its config together "
            "with save_pretrained().",
            CheckWarning,
            stacklevel=caller_level(),
        )


def _head_names(model: Any) -> list[str]:
    """Return the names of the tensors that turn the last hidden state into logits.

    They are those outside the base model: the output embeddings, and in encoders a transform before them. A model
    without a base model of its own, such as T5, has its output embeddings alone.
    """
    if not hasattr(model, model.base_model_prefix):
        head = model.get_output_embeddings()
        names = [name for name, module in model.named_modules() if module is head]
        return [f"{name}.{tensor}" for name in names for tensor in head.state_dict()]
    base = f"{model.base_model_prefix}."
    return [name for name in model.state_dict() if not name.startswith(base)]


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def boot(
    hf_model: Any, name: str, tokenizer: Any, device: str | torch.device | None, revision: str | None = None
) -> nn.Module:
    """Build a TransformerBridge around a Hugging Face model, in the model's own dtype.

    Args:
        hf_model: the model; the bridge puts its hooks into this very object. One that Accelerate has placed on devices
            (`device_map`) stays there.
        name: model name or folder, from which the tokenizer is loaded if `tokenizer` is None.
        tokenizer: the tokenizer, or None. It need not be saved anywhere, and it is not changed.
        device: device of the model; None takes a GPU where there is one.
        revision: of the tokenizer.

    Raises:
        InputError: `tokenizer` is None and the folder has none, or it is not a Hugging Face tokenizer.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    if tokenizer is None:
        folder = Path(name)
        if folder.is_dir() and not any(folder.glob("tokenizer*")):
            raise InputError(f"folder {name!r} has no tokenizer. Save one there, or pass tokenizer=.")
        own = AutoTokenizer.from_pretrained(name, **({"revision": revision} if revision else {}))
        # TransformerLens loads a tokenizer with a BOS token again. It changes other ones in place where EOS is missing.
        tokenizer = own if own.eos_token is not None else copy.deepcopy(own)
    elif not hasattr(tokenizer, "init_kwargs"):
        raise InputError(
            f"tokenizer={tokenizer!r:.80} is not a Hugging Face tokenizer. Pass AutoTokenizer.from_pretrained(...)."
        )
    else:
        own, tokenizer = tokenizer, for_transformer_lens(tokenizer)
    if getattr(hf_model, "hf_device_map", None) is None:
        hf_model = hf_model.to(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    try:
        bridge: nn.Module = TransformerBridge.boot_transformers(
            name, hf_model=hf_model, tokenizer=tokenizer, dtype=hf_model.dtype
        )
    except ValueError as error:
        known = re.findall(r"'(\w+)'", str(error))
        if "architecture" not in str(error) or len(known) < 10:
            raise
        kind = type(hf_model).__name__
        similar = difflib.get_close_matches(kind, known, n=5, cutoff=0)
        raise InputError(
            f"TransformerLens {version('transformer-lens')} cannot hook {kind} ({name!r}). It knows {len(known)} "
            f"architectures; those with the most similar names are {join_names(similar)}. Install a TransformerLens "
            "that knows it, or put HookPoints into a HookedRootModule of your own."
        ) from error
    mark_tokenizer(bridge, own)
    return bridge
