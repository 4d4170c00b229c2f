"""SAELens: CacheActivationsRunner, with one hook and one pass over the data for each layer, as Arrow files.

The runner takes token ids of one common length and no attention mask. Every prompt is therefore padded on the right to
the longest one. The runner cannot select positions of prompts of unequal length, so it stores all tokens. Its
HookedTransformer refuses SmolLM2 by name, so the benchmark compares it twice: with a HookedTransformer built from a
config with the same weights, which stops after the requested layer, and with SAELens's own wrapper of the transformers
model (HookedProxyLM), loaded from a folder. The benchmark runs passes for a few evenly spread layers and scales all
times up to all layers.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.method import CannotError, Method, hugging_face, sync_tree
from benchmarks.peers.workload import Workload

#: Of 30; early and late ones, because a pass stops after its layer.
LAYERS = (4, 14, 24)
ALL_TOKENS_ONLY = "stores the same positions of every prompt (seqpos_slice), but the last tokens differ in position"


def hooked_transformer(workload: Workload) -> Any:
    """Return a HookedTransformer with the weights of the folder, nothing folded or centred."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    model = hugging_face(workload)
    hf = model.config
    sizes = HookedTransformerConfig(
        n_layers=hf.num_hidden_layers, d_model=hf.hidden_size, n_ctx=512, d_head=hf.head_dim, d_vocab=hf.vocab_size,
        n_heads=hf.num_attention_heads, n_key_value_heads=hf.num_key_value_heads, d_mlp=hf.intermediate_size,
        act_fn=hf.hidden_act, normalization_type="RMS", eps=hf.rms_norm_eps, gated_mlp=True, final_rms=True,
        positional_embedding_type="rotary", rotary_adjacent_pairs=False, rotary_dim=hf.head_dim,
        rotary_base=int(hf.rope_parameters["rope_theta"]), original_architecture="LlamaForCausalLM", device="cpu",
    )  # fmt: skip
    build_model = HookedTransformer(sizes)
    build_model.load_and_process_state_dict(
        convert_llama_weights(model, sizes), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )  # fmt: skip
    return build_model.eval()


class Runner(Method):
    """The runner with one pass for each layer in `layers`."""

    packages = ("sae-lens", "transformer-lens", "datasets")
    selects = "a prompt of one layer"
    hook: ClassVar[str]
    layers: ClassVar[tuple[int, ...]] = LAYERS
    scaled: ClassVar[bool] = True

    def build_model(self, workload: Workload) -> Any:
        """Return the model for the runner."""
        raise NotImplementedError

    def load(self, workload: Workload) -> Any:
        from datasets import disable_progress_bars
        from sae_lens import cache_activations_runner

        logging.getLogger("sae_lens").setLevel(logging.ERROR)
        disable_progress_bars()
        self.model = self.build_model(workload)
        # The runner loads a model by name and does not know the name of this one.
        cache_activations_runner.load_model = lambda **_: self.model
        self.factor = self.copies = workload.layers / len(self.layers) if self.scaled else 1.0
        return self.model.embed if hasattr(self.model, "embed") else self.model.model.model.embed_tokens

    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        from datasets import Dataset
        from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

        if setting != "all":
            raise CannotError(ALL_TOKENS_ONLY)
        count, length = workload.ids.shape
        ids = workload.ids[workload.order(setting)]
        for layer in self.layers:
            data = Dataset.from_dict({"input_ids": ids.tolist()})
            batch = next(b for b in range(workload.batch_size, 0, -1) if count % b == 0)
            config = CacheActivationsRunnerConfig(
                dataset_path="none", model_name="none", model_batch_size=batch, hook_name=self.hook.format(layer),
                d_in=workload.width, training_tokens=count * length, context_size=length, dtype="float16", device="cpu",
                new_cached_activations_path=str(folder / str(layer)), shuffle=False, prepend_bos=False,
                streaming=False, buffer_size_gb=batch * length * workload.width * 2 / 1e9 * 1.0001,
            )  # fmt: skip
            CacheActivationsRunner(config, override_dataset=data).run()
            sync_tree(folder / str(layer))

    def read(self, workload: Workload, setting: str, folder: Path, layer: int) -> np.ndarray:
        from datasets import load_from_disk

        if layer not in self.layers:
            raise CannotError(f"layer {layer} was not run")
        column = load_from_disk(str(folder / str(layer))).with_format("numpy")[self.hook.format(layer)][:]
        rows = dict(zip(workload.order(setting), np.asarray(column), strict=True))
        return np.concatenate([rows[r][: workload.lengths[r]] for r in range(len(workload.lengths))])


class HookedRunner(Runner):
    """HookedTransformer of TransformerLens 3.9, all layers."""

    name = "SAELens, HookedTransformer, all layers"
    hook = "blocks.{}.hook_resid_post"

    def build_model(self, workload: Workload) -> Any:
        return hooked_transformer(workload)


class HookedOneLayer(HookedRunner):
    """The same for one layer in the middle."""

    name = "SAELens, HookedTransformer, one layer"
    layers = (14,)
    scaled = False


class ProxyRunner(Runner):
    """SAELens's own wrapper of transformers' model, all layers."""

    name = "SAELens, HookedProxyLM, all layers"
    hook = "model.layers.{}"

    def build_model(self, workload: Workload) -> Any:
        from sae_lens.load_model import load_model

        hooks = [self.hook.format(n) for n in self.layers]
        return load_model("AutoModelForCausalLM", str(workload.model), "cpu", hook_names=hooks)


METHODS = (HookedOneLayer, HookedRunner, ProxyRunner)
