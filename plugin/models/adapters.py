"""One interface to TransformerBridge, HookedTransformer and HookedRootModule models.

An adapter knows the hook points, the context length, the processing of the
weights, where a forward pass may stop, and how to compute logits from rows of
the final hidden state.
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

from stratalens.plugin.compat import has_processed_weights, is_headless
from stratalens.plugin.models.model_errors import embedding_errors, not_hooked_message
from stratalens.plugin.models.processing import measured_processing, spliced_modules, splicing_flags
from stratalens.store.errors import InputError

#: Requested output of a forward pass: nothing, or logits at every position.
Output = Literal["none", "logits"]


#: The user's own forward function: (model, ids, mask) -> logits (batch, position, vocab) or anything else.
ForwardFunction = Callable[[Any, Tensor, Tensor], Any]


try:  # exists on the 3.9 line only; 4.x raises ImportError on access
    HookedTransformer: type[nn.Module] | None = transformer_lens.HookedTransformer
except (ImportError, AttributeError):
    HookedTransformer = None


_BLOCK = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")


_SETTERS = {  # end of a hook name -> the flag without which the hook never fires
    "attn.hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_attn_in": "use_attn_in",
}


class Adapter:
    """A HookedRootModule for the capture engine, and the base of the other adapters.

    Args:
        model: the model.
        forward: the user's own forward function.

    Attributes:
        model: the model itself, never copied and never changed.
        kind: `TransformerBridge`, `HookedTransformer` or the class name of a HookedRootModule.
        points: hook name -> hook point.
        n_layers: number of blocks, None if the hook names have no block index.
        final_norm: module whose output is the hidden state that the head reads, or None.
        can_stop: whether a forward pass may skip the last blocks.
        can_cache: whether a forward pass may take the keys and values of earlier tokens.
        dry_run_result: (logits, final hidden state or None) of the last dry run, if its output
            is logits of the next token, else None.
        no_logits: why the output of the last dry run is not logits of the next token, or "".
    """

    kind = "HookedRootModule"
    final_norm: nn.Module | None = None
    can_stop = False
    can_cache = False
    dry_run_result: tuple[Tensor, Tensor | None] | None = None
    no_logits = ""
    _dry_run_ids: Tensor

    def __init__(self, model: nn.Module, forward: ForwardFunction | None = None) -> None:
        self.model = model
        self.forward = forward
        self.cfg: Any = getattr(model, "cfg", None)
        self.points: dict[str, HookPoint] = dict(model.hook_dict)  # type: ignore[arg-type]
        if not self.points:
            raise InputError(
                f"{type(model).__name__} has no hook points. Call self.setup() at the end of its __init__, "
                "after all HookPoints exist."
            )
        layers = {int(match.group(1)) for name in self.points if (match := _BLOCK.search(name))}
        self.n_layers: int | None = max(layers) + 1 if layers else None

    @property
    def name(self) -> str:
        """The model's name in TransformerLens, for provenance only."""
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
        """The dtype of the first floating-point parameter."""
        return next((p.dtype for p in self.weights_module.parameters() if p.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """The device of the first parameter, to which token ids must be moved; offloaded parameters are skipped."""
        return next((p.device for p in self.weights_module.parameters() if not p.is_meta), torch.device("cpu"))

    @property
    def max_length(self) -> int | None:
        """Longest sequence of the model in tokens, None if its config does not say."""
        return self.size("n_ctx")

    def size(self, name: str) -> int | None:
        """Return a size of the config (`d_model`, `d_mlp`, `n_heads`, `d_head`, ...), or None."""
        value = getattr(self.cfg, name, None)
        return int(value) if isinstance(value, int) and value > 0 else None

    @cached_property
    def processing(self) -> dict[str, Any]:
        """Processing by TransformerLens that changes activations.

        All stages of a store and resumed runs must agree on it.
        """
        return {"kind": self.kind, **splicing_flags(self.spliced)}

    @cached_property
    def spliced(self) -> dict[str, nn.Module]:
        """Modules in the place of a hook point that compute, such as sparse autoencoders, by hook."""
        return spliced_modules(self.model)

    def setter_for(self, hook: str) -> str | None:
        """Return the `set_use_*` method that must be called before this hook fires, or None."""
        for ending, flag in _SETTERS.items():
            setter = getattr(self.model, f"set_{flag}", None)
            if hook.endswith(ending) and callable(setter) and not getattr(self.cfg, flag, True):
                return f"set_{flag}"
        return None

    def run(
        self, ids: Tensor, mask: Tensor, output: Output = "none", stop_at_layer: int | None = None, cache: Any = None
    ) -> Any:
        """Run one forward pass.

        Args:
            ids: int64 tensor of shape (batch, position), padded on the right.
            mask: int64 tensor of shape (batch, position), 1 on tokens and 0 on padding.
            output: "none" skips all work for logits that this kind of model can skip.
            stop_at_layer: first block to skip; needs `can_stop`.
            cache: keys and values of earlier tokens in the form that this kind of model takes; needs `can_cache`.
        """
        with embedding_errors(ids):
            if self.forward is not None:
                return self.forward(self.model, ids, mask)
            return self.model(ids)

    def dry_run(self, ids: Tensor, output: Output) -> None:
        """Run a short forward pass without padding; with logits, set `dry_run_result` and `no_logits`.

        Args:
            ids: int64 tensor of shape (batch, position); the rows differ in their last token alone.
            output: as in `run`.
        """
        norm_outputs: list[Any] = []
        handle = None
        if self.final_norm is not None:
            handle = self.final_norm.register_forward_hook(lambda module, args, result: norm_outputs.append(result))
        try:
            logits = self.run(ids, torch.ones_like(ids), output)
        finally:
            if handle is not None:
                handle.remove()
        if output == "logits":
            hidden = norm_outputs[0] if norm_outputs else None
            if isinstance(hidden, tuple):
                hidden = hidden[0]
            if not isinstance(hidden, Tensor) or hidden.ndim != 3:
                hidden = None
            self.no_logits = self._refuse_logits(logits, ids)
            self.dry_run_result = None if self.no_logits else (logits, hidden)
            self._dry_run_ids = ids

    def _refuse_logits(self, output: Any, ids: Tensor) -> str:
        """Return why an output is not logits of the next token; empty if it is."""
        if not isinstance(output, Tensor) or output.ndim != 3 or not output.is_floating_point():
            return f"the forward pass of this {self.kind} returns no tensor of shape (batch, position, vocab)"
        if output.shape[:2] != ids.shape:
            return f"the forward pass of this {self.kind} returns {list(output.shape)} for {list(ids.shape)} tokens"
        if output.shape[-1] not in self.vocabulary_sizes:
            sizes = " or ".join(map(str, sorted(self.vocabulary_sizes)))
            return f"the forward pass returns {output.shape[-1]} numbers a token, but the vocabulary has {sizes} tokens"
        return ""

    def confirm_logits(self) -> None:
        """Set `no_logits` if the output of the last dry run depends on later tokens.

        Logits of the next token do not. Encoders, which fill masked tokens, look in both directions. The rows of a dry
        run differ in their last token alone, so that one pass shows it.
        """
        if self.dry_run_result is None or self._dry_run_ids.shape[1] < 2:
            return
        before = self.dry_run_result[0][:, :-1].float()
        gap = (before - before[:1]).abs().max()
        if gap > 1e-3 * before.abs().max().clamp_min(1e-6):
            self.no_logits = "this model looks at later tokens, so its output does not predict the next token"
            self.dry_run_result = None

    @property
    def embedding_rows(self) -> int | None:
        """Number of token ids that the model can embed, None if unknown."""
        return self.size("d_vocab")

    @property
    def vocabulary_sizes(self) -> set[int]:
        """Sizes that the last axis of logits may have: that of the config, or the rows of the token embedding."""
        size = self.size("d_vocab")
        if size is not None:
            return {size}
        return {module.num_embeddings for module in self.model.modules() if isinstance(module, nn.Embedding)}

    def head(self, hidden: Tensor) -> Tensor | None:
        """Compute logits from rows of the final hidden state.

        Args:
            hidden: tensor of shape (n, d_model), rows of the output of `final_norm`.

        Returns:
            Tensor of shape (n, vocab), or None if this kind of model does not allow it.
        """
        return None

    def output_layer(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the parameters of an output layer that is one plain linear map.

        Returns:
            Weight, tensor of shape (vocab, d_model), and bias, tensor of shape (vocab,) or None; None if the output
            layer is something else, or if someone listens to it. `scale_logits` of the map are the logits.
        """
        return None

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Apply what follows the output layer, which changes each logit on its own."""
        return logits


class BridgeAdapter(Adapter):
    """TransformerBridge: a Hugging Face model with the hooks of TransformerLens."""

    kind = "TransformerBridge"

    def __init__(self, model: nn.Module, forward: ForwardFunction | None = None) -> None:
        super().__init__(model, forward)
        bridge: Any = model
        self.hf = bridge.original_model
        blocks = getattr(model, "blocks", None)
        if blocks is not None:  # an encoder-decoder has two stacks; the longer one counts
            self.n_layers = len(blocks)
        self.can_stop = forward is None and blocks is not None
        self.final_norm = _final_norm(model)
        self.text_config: Any = self.hf.config.get_text_config() if hasattr(self.hf, "config") else None
        self._accepts = set(inspect.signature(self.hf.forward).parameters)
        self.can_cache = (
            self.can_stop
            and {"use_cache", "past_key_values"} <= self._accepts
            and not (self.shares_keys_and_values or self.is_encoder_decoder)
        )

    @property
    def vocabulary_sizes(self) -> set[int]:
        """Size of the vocabulary in the config of the Hugging Face model, and the rows of its output embeddings."""
        sizes = {getattr(self.text_config, "vocab_size", None), self.size("d_vocab")}
        head = getattr(getattr(self.model, "unembed", None), "original_component", None)
        return {*(size for size in sizes if size), *([head.out_features] if isinstance(head, nn.Linear) else [])}

    @property
    def embedding_rows(self) -> int | None:
        """Rows of the token embedding; they may be more than the vocabulary of the config."""
        embedding = getattr(self.hf, "get_input_embeddings", lambda: None)()
        rows = getattr(getattr(embedding, "weight", None), "shape", None)
        return int(rows[0]) if rows else getattr(self.text_config, "vocab_size", None)

    def _refuse_logits(self, output: Any, ids: Tensor) -> str:
        if is_headless(self.hf):
            return "the checkpoint has no output layer, so the one of this model is random"
        return super()._refuse_logits(output, ids)

    def _decoder_input(self) -> dict[str, str]:
        """Say what the decoder of an encoder-decoder reads; TransformerLens derives it from the prompt.

        With a start token the decoder at position i reads token i - 1, otherwise token i.
        """
        if not self.is_encoder_decoder or self.forward is not None:
            return {}
        start = getattr(self.hf.config, "decoder_start_token_id", None)
        return {"decoder_input": "prompt" if start is None else "prompt, shifted right"}

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model has an encoder that reads the prompt and a decoder."""
        return bool(getattr(getattr(self.hf, "config", None), "is_encoder_decoder", False))

    @property
    def takes_cache(self) -> bool:
        """Whether the Hugging Face model has an argument `use_cache`."""
        return "use_cache" in self._accepts

    @property
    def shares_keys_and_values(self) -> bool:
        """Whether blocks read the keys and values of an earlier block (`num_kv_shared_layers` in the config).

        In some versions of transformers they read them from the cache, and compute something else without it.
        """
        settings = vars(self.text_config) if self.text_config is not None else {}
        return any("kv_shar" in name and isinstance(value, int) and value > 0 for name, value in settings.items())

    @property
    def weights_module(self) -> nn.Module:
        """The Hugging Face model inside the bridge."""
        module: nn.Module = self.hf
        return module

    @property
    def max_length(self) -> int | None:
        """The config's max_position_embeddings."""
        limit = getattr(self.text_config, "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else super().max_length

    @cached_property
    def processing(self) -> dict[str, Any]:
        """Whether compatibility mode is on, and how it has processed the weights."""
        compatible = bool(getattr(self.model, "compatibility_mode", False))
        processed = has_processed_weights(self.model)
        measured = measured_processing(self.model)
        if not (compatible or processed):
            # Nothing was folded. A new model has norms of ones as well, and training them must not look like a change.
            measured = dict.fromkeys(measured, False)
        return {
            "kind": self.kind,
            "compatibility_mode": compatible,
            "weights_processed": processed,
            **measured,
            **self._decoder_input(),
            **splicing_flags(self.spliced),
        }

    def run(
        self,
        ids: Tensor,
        mask: Tensor,
        output: Output = "none",
        stop_at_layer: int | None = None,
        cache: Any = None,
    ) -> Any:
        """Run a forward pass; without logits the head gets no rows.

        There is no key-value cache but that of the caller. A model that shares keys and values between blocks keeps
        its own. The mask covers the tokens of the caller's cache too.
        """
        if self.forward is not None:
            return self.forward(self.model, ids, mask)
        kwargs: dict[str, Any] = {}
        if stop_at_layer is not None:
            kwargs["stop_at_layer"] = stop_at_layer
        if cache is not None:
            kwargs |= {"past_key_values": cache, "use_cache": True}
        elif self.takes_cache and not self.shares_keys_and_values:
            kwargs["use_cache"] = False
        if output == "none" and "logits_to_keep" in self._accepts:
            # An empty index: no position reaches the head. The number 0 would mean all positions.
            kwargs["logits_to_keep"] = torch.empty(0, dtype=torch.long, device=ids.device)
        with embedding_errors(ids):
            return self.model(ids, attention_mask=mask, **kwargs)

    def head(self, hidden: Tensor) -> Tensor | None:
        """Apply the wrapped output layer, then the logit scaling and softcapping of the config."""
        unembed = getattr(getattr(self.model, "unembed", None), "original_component", None)
        if not isinstance(unembed, nn.Module) or self.final_norm is None:
            return None
        return self.scale_logits(unembed(hidden))

    def output_layer(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the parameters of the wrapped output layer."""
        unembed = getattr(getattr(self.model, "unembed", None), "original_component", None)
        return _linear_parameters(unembed) if self.final_norm is not None else None

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Apply the logit scaling and softcapping of the config."""
        if isinstance(scale := getattr(self.text_config, "logit_scale", None), int | float):  # Cohere
            logits = logits * scale
        if isinstance(scaling := getattr(self.text_config, "logits_scaling", None), int | float):  # Granite
            logits = logits / scaling
        cap = getattr(self.text_config, "final_logit_softcapping", None)  # Gemma 2 and 3
        return cap * torch.tanh(logits / cap) if cap else logits


class HookedTransformerAdapter(Adapter):
    """HookedTransformer of the 3.9 line."""

    kind = "HookedTransformer"

    def __init__(self, model: nn.Module, forward: ForwardFunction | None = None) -> None:
        super().__init__(model, forward)
        self.n_layers = int(self.cfg.n_layers)
        self.can_stop = self.can_cache = forward is None
        self.final_norm = _final_norm(model)

    @cached_property
    def processing(self) -> dict[str, Any]:
        """How the weights were processed at load time."""
        return {"kind": self.kind, **measured_processing(self.model), **splicing_flags(self.spliced)}

    def run(
        self, ids: Tensor, mask: Tensor, output: Output = "none", stop_at_layer: int | None = None, cache: Any = None
    ) -> Any:
        """Run a forward pass; without logits it ends after the final norm. The cache has a mask of its own tokens."""
        if self.forward is not None:
            return self.forward(self.model, ids, mask)
        kwargs: dict[str, Any] = {"return_type": "logits" if output == "logits" else None}
        if cache is not None:
            kwargs["past_kv_cache"] = cache
        return self.model(ids, attention_mask=mask, stop_at_layer=stop_at_layer, **kwargs)

    def head(self, hidden: Tensor) -> Tensor | None:
        """Apply W_U and b_U, then the softcap; hook points of the unembedding do not fire."""
        if self.final_norm is None:
            return None
        unembed: Any = self.model.unembed
        return self.scale_logits(nn.functional.linear(hidden, unembed.W_U.T.contiguous(), unembed.b_U))

    def output_layer(self) -> tuple[Tensor, Tensor | None] | None:
        """Return W_U, transposed, and b_U."""
        unembed: Any = self.model.unembed
        return (unembed.W_U.T, unembed.b_U) if self.final_norm is not None else None

    def scale_logits(self, logits: Tensor) -> Tensor:
        """Apply the softcap."""
        cap = getattr(self.cfg, "output_logits_soft_cap", None)
        return cap * torch.tanh(logits / cap) if cap and cap > 0 else logits


def _linear_parameters(module: Any) -> tuple[Tensor, Tensor | None] | None:
    """Return weight and bias of a plain linear layer without hooks; None for everything else."""
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:  # quantised weights are of other types
        return None
    listened = module._forward_hooks or module._forward_pre_hooks or nn.utils.parametrize.is_parametrized(module)
    return None if listened or module.weight.is_meta else (module.weight, module.bias)


def _final_norm(model: nn.Module) -> nn.Module | None:
    norm = getattr(model, "ln_final", None)
    return norm if isinstance(norm, nn.Module) else None


def adapt(model: Any, forward: ForwardFunction | None = None) -> Adapter:
    """Return the adapter for a model.

    Args:
        model: TransformerBridge, HookedTransformer or HookedRootModule.
        forward: your own forward function `(model, ids, mask) -> logits or anything else`,
            with ids and mask int64 of shape (batch, position) on the model's device. Needed
            if the model's own call does not take ids alone.

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
            raise InputError(f"{type(model).__name__} has no hook_dict. Call self.setup() at the end of its __init__.")
        adapter = Adapter(model, forward)
        adapter.kind = type(model).__name__
        return adapter
    raise InputError(not_hooked_message(model))
