"""Models that lie somewhere: a checkpoint folder, a hub revision, an adapter.

Weights are read from safetensors only. What makes one of them a stage is in stages.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from stratalens.store.errors import InputError, StratalensError, UnreachableError

# Names of the errors of httpx, requests and Python, and of huggingface_hub where the cache could not help either.
NO_ANSWER = frozenset({"TransportError", "ConnectionError", "Timeout", "TimeoutError", "LocalEntryNotFoundError"})


class Loadable(Protocol):
    """A stage that is loaded when its turn comes."""

    def load(self, tokenizer: Any, device: str | torch.device | None) -> nn.Module:
        """The hooked model, on the device."""

    def describe(self) -> dict[str, Any]:
        """Where it came from, for the record; never compared."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with `config.json` and safetensors weights, as save_pretrained and Trainer leave it.

    Attributes:
        folder: the checkpoint.
        dtype: dtype to load in, "auto" for that of the weights.
    """

    folder: str | Path
    dtype: str = "auto"

    @property
    def folder_path(self) -> Path:
        """The folder as a path."""
        return Path(self.folder)

    def load(self, tokenizer: Any, device: str | torch.device | None) -> nn.Module:
        """Load the folder into a TransformerBridge.

        Raises:
            InputError: not a folder, no config, or no safetensors weights in it.
        """
        folder = self.folder_path
        check_checkpoint(folder)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            return LoraAdapter(folder, dtype=self.dtype).load(tokenizer, device)
        return boot(_from_pretrained(str(folder), self.dtype), str(folder), tokenizer, device)

    def describe(self) -> dict[str, Any]:
        """The folder."""
        return {"checkpoint": str(self.folder)}


@dataclass(frozen=True)
class Revision:
    """A revision of a model on the Hugging Face hub, such as `Revision("EleutherAI/pythia-70m", "step1000")`.

    Attributes:
        model: name on the hub; a local folder has no revisions.
        revision: branch, tag or commit.
        dtype: dtype to load in, "auto" for that of the weights.
    """

    model: str
    revision: str
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if Path(self.model).exists():
            raise InputError(
                f"{self.model!r} is a local path, where revision={self.revision!r} would be ignored without a word. "
                "Pass the folder of each checkpoint itself."
            )

    def load(self, tokenizer: Any, device: str | torch.device | None) -> nn.Module:
        """Load that revision (from the hub's cache where it is there).

        Raises:
            InputError: there is no such model or revision, or HF_HUB_OFFLINE is set and it is not in the cache.
            UnreachableError: the hub did not answer, and the revision is not in the cache.
        """
        with _translated(f"revision {self.revision!r} of {self.model!r}"):
            model = _from_pretrained(self.model, self.dtype, revision=self.revision)
            return boot(model, self.model, tokenizer, device, revision=self.revision)

    def describe(self) -> dict[str, Any]:
        """Name and revision."""
        return {"model": self.model, "revision": self.revision}


@dataclass(frozen=True)
class LoraAdapter:
    """A PEFT adapter folder, merged into its base model.

    Attributes:
        folder: the adapter, with `adapter_config.json`.
        base: base model name or folder; None takes the one that the adapter names, a relative path
            ("../untrained") from the adapter's own folder.
        dtype: dtype to load the base in, "auto" for that of its weights.
    """

    folder: str | Path
    base: str | Path | None = None
    dtype: str = "auto"

    def load(self, tokenizer: Any, device: str | torch.device | None) -> nn.Module:
        """Load the base, merge the adapter into its weights, hook the result.

        Raises:
            InputError: no adapter there, no safetensors in it, no base, or peft is not installed.
            UnreachableError: the base is on the hub, which did not answer.
        """
        try:
            from peft import PeftConfig, PeftModel
        except ImportError as error:
            raise InputError("adapters need peft: pip install 'stratalens[lora]'") from error
        folder = Path(self.folder)
        for needed in ("adapter_config.json", "adapter_model.safetensors"):
            if not (folder / needed).is_file():
                raise InputError(
                    f"{str(folder)!r} is not a PEFT adapter: it has no {needed}. "
                    "Save one with peft_model.save_pretrained(folder, safe_serialization=True)."
                )
        base = str(self.base or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path or "")
        if not base:
            raise InputError(f"adapter {str(folder)!r} names no base model. Pass LoraAdapter(folder, base=...).")
        if self.base is None and base.startswith(("./", "../")):  # as a study writes it: beside the adapter
            base = str((folder / base).resolve())
        if Path(base).is_dir():
            check_checkpoint(Path(base))
        with _translated(f"base model {base!r} of adapter {str(folder)!r}"):
            plain = _from_pretrained(base, self.dtype)
            with warnings.catch_warnings():  # peft asks transformers in a way that is going out of use
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
                merged = PeftModel.from_pretrained(plain, str(folder)).merge_and_unload()
            return boot(merged, base, tokenizer, device)

    def describe(self) -> dict[str, Any]:
        """Adapter folder and base."""
        return {"adapter": str(self.folder), "base": str(self.base) if self.base else None}


def as_loadable(source: Any) -> Loadable | None:
    """The stage class behind a source that is not a model or a function."""
    if isinstance(source, str | Path):
        return Checkpoint(source)
    return source if isinstance(source, Checkpoint | Revision | LoraAdapter) else None


def check_checkpoint(folder: Path) -> None:
    """Raise InputError unless a folder holds a config and safetensors weights."""
    if not folder.exists():
        raise InputError(f"checkpoint folder {str(folder)!r} does not exist (seen from {str(Path.cwd())!r}).")
    if not folder.is_dir():
        raise InputError(f"checkpoint {str(folder)!r} is a file. Pass the folder that save_pretrained() wrote.")
    names = {p.name for p in folder.iterdir()}
    if "adapter_config.json" in names and "config.json" not in names:
        return
    if "config.json" not in names:
        raise InputError(f"checkpoint folder {str(folder)!r} has no config.json. Save it with save_pretrained().")
    if not any(n.endswith(".safetensors") for n in names):
        pickled = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
        found = f" but {', '.join(pickled[:3])}, and pickled weights are never loaded" if pickled else ""
        raise InputError(
            f"checkpoint folder {str(folder)!r} has no safetensors weights{found}. "
            "Save them with model.save_pretrained(folder, safe_serialization=True)."
        )


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Errors of downloading `what`, in our words."""
    try:
        yield
    except StratalensError:
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        if _no_answer(error):
            raise UnreachableError(
                f"{what} is not in the cache (HF_HOME), and the hub did not answer: {told} "
                "Stages that are recorded are kept; the same call goes on from there."
            ) from error
        if not isinstance(error, OSError):
            raise
        raise InputError(
            f"{what} could not be loaded: {told} Revisions are the branches and tags on the model's page of the hub; "
            "without a network, those in the cache (HF_HOME) alone."
        ) from error


def _no_answer(error: BaseException | None) -> bool:
    """Whether a failed download is the network's fault, not that of what was asked for."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    # By name: huggingface_hub has changed its HTTP library, which has errors of its own.
    while error is not None and NO_ANSWER.isdisjoint(kind.__name__ for kind in type(error).__mro__):
        error = error.__cause__ or error.__context__
    return error is not None


def _from_pretrained(name: str, dtype: str, **kwargs: Any) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, **kwargs)
    return model.eval()


def boot(
    hf_model: Any, name: str, tokenizer: Any, device: str | torch.device | None, revision: str | None = None
) -> nn.Module:
    """A TransformerBridge around a Hugging Face model, in the model's own dtype.

    Args:
        hf_model: the model; the bridge puts its hooks into this very object.
        name: model name or folder, where the tokenizer is found if none is given.
        tokenizer: the tokenizer, or None.
        device: where it shall run; None takes a GPU where there is one.
        revision: of the tokenizer.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    if tokenizer is None:
        folder = Path(name)
        if folder.is_dir() and not any(folder.glob("tokenizer*")):
            raise InputError(f"folder {name!r} holds no tokenizer. Save one there, or pass tokenizer=.")
        tokenizer = AutoTokenizer.from_pretrained(name, **({"revision": revision} if revision else {}))
    hf_model = hf_model.to(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    bridge: nn.Module = TransformerBridge.boot_transformers(
        name, hf_model=hf_model, tokenizer=tokenizer, dtype=hf_model.dtype
    )
    return bridge
