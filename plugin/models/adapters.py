"""One small adapter per kind of model: how each one runs, and what can be left out of its forward pass.

Three kinds are known: TransformerBridge (both TransformerLens lines),
HookedTransformer (3.9) and any HookedRootModule of the user's own. An adapter
knows the hook points, the context length, the processing flags, where a forward
pass may stop, and how rows of the final hidden state become logits. It does not
know which sites somebody wants (sites.py) nor what is done with them (recorder.py).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
import transformer_lens
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.model_bridge import TransformerBridge

from stratalens.store.errors import InputError

#: What a forward pass is asked to return: nothing, or logits at every position.
Output = Literal["none", "logits"]


#: The user's own forward function: (model, ids, mask) -> logits (batch, position, vocab) or anything else.
ForwardFunction = Callable[[Any, Tensor, Tensor], Any]


try:  # exists on the 3.9 line only; 4.x raises ImportError on access
    HookedTransformer: type[nn.Module] | None = transformer_lens.HookedTransformer
except (ImportError, AttributeError):
    HookedTransformer = None


_BLOCK = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


_SETTERS = {  # hook name endings that fire only after a setter, with the setter
    ("attn.hook_result",): "use_attn_result",
    ("hook_q_input", "hook_k_input", "hook_v_input"): "use_split_qkv_input",
    ("hook_mlp_in",): "use_hook_mlp_in",
    ("hook_attn_in",): "use_attn_in",
}


class Adapter:
    """What the capture engine needs to know about one model.

    Attributes:
        model: the model itself, never copied and never changed.
        kind: `TransformerBridge`, `HookedTransformer` or the class name of a HookedRootModule.
        n_layers: number of blocks, None where the hook names have no block index.
        final_norm: the module whose output is the hidden state that the head reads, or None.
        probed: (logits, final hidden state or None) of the last probing pass that made logits, else None.
    """

    kind = "HookedRootModule"
    final_norm: nn.Module | None = None
    can_stop = False
    dry_run_result: tuple[Tensor, Tensor | None] | None = None

    def __init__(self, model: nn.Module, forward: ForwardFunction | None = None) -> None:
        self.model = model
        self.forward = forward
        self.cfg: Any = getattr(model, "cfg", None)
        self.points: dict[str, HookPoint] = dict(model.hook_dict)  # type: ignore[arg-type]
        if not self.points:
            raise InputError(
                f"{type(model).__name__} has no hook points. A HookedRootModule must call self.setup() at the "
                "end of __init__, after its HookPoints were made."
            )
        layers = {int(m.group(1)) for name in self.points if (m := _BLOCK.search(name))}
        self.n_layers: int | None = max(layers) + 1 if layers else None

    # ---- what it is -------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The model's name as TransformerLens knows it, for provenance only."""
        return str(getattr(self.cfg, "model_name", None) or type(self.model).__name__)

    @property
    def tokenizer(self) -> Any:
        """The model's own tokenizer, or None."""
        return getattr(self.model, "tokenizer", None)

    @property
    def weights_module(self) -> nn.Module:
        """The module whose state dict identifies the weights."""
        return self.model

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter."""
        return next((p.dtype for p in self.weights_module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Where token ids have to be put: the device of the first parameter."""
        return next((p.device for p in self.weights_module.parameters()), torch.device("cpu"))

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the model takes, in tokens, where it says so."""
        n_ctx = getattr(self.cfg, "n_ctx", None)
        return int(n_ctx) if n_ctx and int(n_ctx) > 0 else None

    def size(self, name: str) -> int | None:
        """A size of the config (`d_model`, `d_mlp`, `n_heads`, `d_head`, `n_key_value_heads`), where it has one."""
        value = getattr(self.cfg, name, None)
        return int(value) if isinstance(value, int) and value > 0 else None

    def flags(self) -> dict[str, Any]:
        """TransformerLens processing that changes activations; compared between stages and on resume."""
        return {"kind": self.kind}

    def setter_for(self, hook: str) -> str | None:
        """Name of the `set_use_*` method without which this hook never fires, where one is needed and off."""
        for endings, flag in _SETTERS.items():
            setter = getattr(self.model, f"set_{flag}", None)
            if hook.endswith(endings) and callable(setter) and not getattr(self.cfg, flag, True):
                return f"set_{flag}"
        return None

    # ---- running ----------------------------------------------------------------------

    def run(self, ids: Tensor, mask: Tensor, output: Output = "none", stop_at_layer: int | None = None) -> Any:
        """One forward pass over right-padded ids (batch, position) with its mask.

        `output="none"` leaves out whatever this kind of model allows to leave out;
        `stop_at_layer=k` skips the blocks from k on where `can_stop`.
        """
        if self.forward is not None:
            return self.forward(self.model, ids, mask)
        return self.model(ids)

    def probe_run(self, ids: Tensor, output: Output) -> None:
        """One tiny forward pass without padding; what a pass with logits returned is kept in `probed`."""
        seen: list[Any] = []
        handle = None
        if self.final_norm is not None:
            handle = self.final_norm.register_forward_hook(lambda module, given, made: seen.append(made))
        try:
            result = self.run(ids, torch.ones_like(ids), output)
        finally:
            if handle is not None:
                handle.remove()
        if output == "logits":
            made = seen[0][0] if seen and isinstance(seen[0], tuple) else seen[0] if seen else None
            hidden = made if isinstance(made, Tensor) and made.ndim == 3 else None
            usable = isinstance(result, Tensor) and result.ndim == 3 and result.is_floating_point()
            self.dry_run_result = (result, hidden) if usable and result.shape[:2] == ids.shape else None

    @cached_property
    def processing(self) -> dict[str, Any]:
        """`flags()`, worked out once."""
        return self.flags()

    def head(self, hidden: Tensor) -> Tensor | None:
        """Logits (n, vocab) of rows (n, d_model) of `final_norm`'s output; None where that cannot be done."""
        return None


class BridgeAdapter(Adapter):
    """TransformerBridge: a Hugging Face model with TransformerLens hooks in it."""

    kind = "TransformerBridge"

    def __init__(self, model: nn.Module, forward: ForwardFunction | None = None) -> None:
        super().__init__(model, forward)
        bridge: Any = model
        self.hf = bridge.original_model
        blocks = getattr(model, "blocks", None)
        self.n_layers = len(blocks) if blocks is not None else None
        self.can_stop = forward is None and blocks is not None
        final = getattr(model, "ln_final", None)
        self.final_norm = final if isinstance(final, nn.Module) else None
        self._accepts = set(inspect.signature(self.hf.forward).parameters)
        self._text = self.hf.config.get_text_config() if hasattr(self.hf, "config") else None

    @property
    def weights_module(self) -> nn.Module:
        """The Hugging Face model inside the bridge."""
        module: nn.Module = self.hf
        return module

    @property
    def max_length(self) -> int | None:
        """The config's max_position_embeddings."""
        limit = getattr(self._text, "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else super().max_length

    def flags(self) -> dict[str, Any]:
        """Compatibility mode, and what weight processing it did."""
        compatible = bool(getattr(self.model, "compatibility_mode", False))
        processed = bool(getattr(self.model, "_weights_processed", False))
        measured = measured_processing(self.model)
        if not (compatible or processed):
            # Nothing was folded: norms of ones are a fresh model's own, and training them must not look like a change.
            measured = dict.fromkeys(measured, False)
        return {
            "kind": self.kind,
            "compatibility_mode": compatible,
            "weights_processed": processed,
            **measured,
        }

    def run(self, ids: Tensor, mask: Tensor, output: Output = "none", stop_at_layer: int | None = None) -> Any:
        """Forward pass; without logits the head gets no rows, and no key-value cache is built."""
        if self.forward is not None:
            return self.forward(self.model, ids, mask)
        kwargs: dict[str, Any] = {}
        if stop_at_layer is not None:
            kwargs["stop_at_layer"] = stop_at_layer
        if "use_cache" in self._accepts:
            kwargs["use_cache"] = False
        if output == "none" and "logits_to_keep" in self._accepts:
            # An empty index: zero positions reach the head. (0 would mean all of them.)
            kwargs["logits_to_keep"] = torch.empty(0, dtype=torch.long, device=ids.device)
        return self.model(ids, attention_mask=mask, **kwargs)

    def head(self, hidden: Tensor) -> Tensor | None:
        """The wrapped output layer, then the logit scaling and softcapping that the config asks for."""
        unembed = getattr(getattr(self.model, "unembed", None), "original_component", None)
        if not isinstance(unembed, nn.Module) or self.final_norm is None:
            return None
        logits: Tensor = unembed(hidden)
        if isinstance(scale := getattr(self._text, "logit_scale", None), int | float):  # Cohere
            logits = logits * scale
        if isinstance(scaling := getattr(self._text, "logits_scaling", None), int | float):  # Granite
            logits = logits / scaling
        cap = getattr(self._text, "final_logit_softcapping", None)  # Gemma 2 and 3
        return cap * torch.tanh(logits / cap) if cap else logits


class HookedTransformerAdapter(Adapter):
    """HookedTransformer of the 3.9 line."""

    kind = "HookedTransformer"

    def __init__(self, model: nn.Module, forward: ForwardFunction | None = None) -> None:
        super().__init__(model, forward)
        self.n_layers = int(self.cfg.n_layers)
        self.can_stop = forward is None
        final = getattr(model, "ln_final", None)
        self.final_norm = final if isinstance(final, nn.Module) else None

    def flags(self) -> dict[str, Any]:
        """What weight processing was done at load time."""
        return {"kind": self.kind, **measured_processing(self.model)}

    def run(self, ids: Tensor, mask: Tensor, output: Output = "none", stop_at_layer: int | None = None) -> Any:
        """Forward pass; without logits it ends behind the final norm."""
        if self.forward is not None:
            return self.forward(self.model, ids, mask)
        return_type = "logits" if output == "logits" else None
        return self.model(ids, attention_mask=mask, return_type=return_type, stop_at_layer=stop_at_layer)

    def head(self, hidden: Tensor) -> Tensor | None:
        """W_U and b_U, then the softcap; the unembedding's own hook points do not fire."""
        if self.final_norm is None:
            return None
        unembed: Any = self.model.unembed
        logits = nn.functional.linear(hidden, unembed.W_U.T.contiguous(), unembed.b_U)
        cap = getattr(self.cfg, "output_logits_soft_cap", None)
        return cap * torch.tanh(logits / cap) if cap and cap > 0 else logits


def adapt(model: Any, forward: ForwardFunction | None = None) -> Adapter:
    """The adapter for a model.

    Args:
        model: TransformerBridge, HookedTransformer or HookedRootModule.
        forward: the user's own forward function `(model, ids, mask) -> logits or anything`,
            with ids and mask (batch, position) int64 on the model's device. Needed where the
            model's own call takes anything but ids alone.

    Raises:
        InputError: the model has no TransformerLens hooks.
    """
    if isinstance(model, Adapter):
        return model
    if isinstance(model, TransformerBridge):
        return BridgeAdapter(model, forward)
    if HookedTransformer is not None and isinstance(model, HookedTransformer):
        return HookedTransformerAdapter(model, forward)
    if isinstance(model, HookedRootModule):
        if not hasattr(model, "hook_dict"):
            raise InputError(f"{type(model).__name__} has no hook_dict: call self.setup() at the end of its __init__.")
        adapter = Adapter(model, forward)
        adapter.kind = type(model).__name__
        return adapter
    wrap = "TransformerBridge.boot_transformers(name_or_folder, hf_model=model, tokenizer=tokenizer)"
    raise InputError(
        f"{type(model).__name__} has no TransformerLens hooks. Valid: a TransformerBridge, a HookedTransformer "
        f"(TransformerLens 3.9) or a HookedRootModule. Wrap a Hugging Face model with {wrap}."
    )


def measured_processing(model: Any) -> dict[str, bool]:
    """Whether norms are folded and weights centred, read off the weights themselves.

    TransformerLens keeps no record of the flags that a model was loaded with. Folding
    leaves no weight (HookedTransformer) or a weight of ones (bridge) in the first norm;
    centring leaves columns with a mean of zero.
    """
    found: dict[str, bool] = {}
    blocks = getattr(model, "blocks", None)
    first = blocks[0] if blocks is not None and len(blocks) else None
    norm = getattr(first, "ln1", None)
    if norm is not None:
        weight = getattr(norm, "w", None) if hasattr(norm, "w") else getattr(norm, "weight", None)
        found["norms_folded"] = weight is None or bool((weight == weight.new_ones(())).all())
    with torch.no_grad():
        for key, module in (("writing_centred", getattr(first, "mlp", None)), ("unembed_centred", model)):
            try:
                matrix = module.W_out if key == "writing_centred" else module.W_U  # type: ignore[union-attr]
            except (AttributeError, NotImplementedError):
                continue  # mixtures of experts, models without a head
            if isinstance(matrix, Tensor) and matrix.ndim == 2:
                few = matrix[:64].float()  # each row centred or not: a few of them tell
                mean, spread = few.mean(-1).abs().max(), few.std()
                found[key] = bool(mean <= 1e-4 * spread)
    return found
