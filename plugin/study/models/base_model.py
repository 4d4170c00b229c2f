"""The base model of a study, its tokenizer, and the corpus in its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from stratalens.plugin.progress import suppress_progress_bars
from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings
from stratalens.plugin.study.corpus.conflicts import ContradictedEntity, add_contradictions, conflict_prompts
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.entities import EntityPool, read_entities
from stratalens.plugin.study.corpus.questions import candidate_answers, self_report_texts
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.models.smollm import load_smollm2, load_smollm2_tokenizer, smollm2_config
from stratalens.plugin.study.models.vocabulary import check_answers, check_vocabulary, cut_vocabulary
from stratalens.store.errors import InputError


class BaseModelSource:
    """The base model and its tokenizer, loaded only when a step needs them.

    Args:
        settings: the settings of the study.
        folder: the folder of the corpus; the tokenizer is saved there.
        random_weights: make a model of the same shape with random weights instead, for a forecast.
    """

    def __init__(self, settings: StudySettings, folder: Path, *, random_weights: bool = False) -> None:
        self.settings = settings
        self.random_weights = random_weights
        self.tokenizer_folder = folder / "tokenizer"
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.contradicted: tuple[ContradictedEntity, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """The settings by which checkpoints recognise their base model."""
        return self.settings.model_dump(include={"model", "layers", "vocabulary"})

    def draw_corpus(self) -> Corpus:
        """Draw the corpus; its aliases depend on the tokenizer.

        Raises:
            InputError: the entities, or their answers in this tokenizer, are unusable.
        """
        s = self.settings
        pool: EntityPool | None = None
        limits: dict[str, Any] = {}
        if s.entities is not None:
            pool = read_entities(s.entities.file, s.entities.questions, s.entities.answer)
            limits = s.entities.model_dump(include={"mean_limit", "share_limit", "force"})
        corpus = make_corpus(
            self.tokenizer(),
            stages=s.stage_names,
            entities_per_stage=s.entities_per_stage,
            seed=s.seed,
            aliases=s.aliases,
            alias_tokens=s.alias_tokens,
            paraphrases=s.paraphrases,
            train_questions=s.train_questions,
            templates=s.record.templates,
            pool=pool,
            **limits,
        )
        corpus, self.contradicted = add_contradictions(corpus, s.conflict, self.tokenizer(), s.aliases, s.seed)
        if s.record.answers != "none":
            check_answers(self.tokenizer(), s.model, candidate_answers(corpus))
        return corpus

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the base tokenizer; a second run reads the saved one without the weights."""
        if self._tokenizer is None and (self.tokenizer_folder / "tokenizer.json").is_file():
            self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder)
        if self._tokenizer is None and self.random_weights:
            self._tokenizer = load_tokenizer(self.settings.model)
        if self._tokenizer is None:
            self._model, self._tokenizer = load_base(self.settings.model, self.settings.layers)
            self._tokenizer.save_pretrained(self.tokenizer_folder)
        return self._tokenizer

    def load_untrained(self, corpus: Corpus) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the untrained model and its tokenizer, with the vocabulary of the settings.

        Raises:
            InputError: the model cannot be loaded, or its vocabulary does not fit the corpus.
        """
        if self.random_weights:
            self._model = make_random_base(self.settings.model, self.settings.layers)
        if self._model is None:
            self._model, _ = load_base(self.settings.model, self.settings.layers)
        model, self._model = self._model, None
        if self.settings.vocabulary == "full":
            check_vocabulary(model, self.tokenizer(), corpus.all_texts())
            return model, self.tokenizer()
        texts = corpus.all_texts()
        if self.settings.self_report:
            texts += self_report_texts(corpus)
        if self.contradicted:
            frame = conflict_prompts(self.contradicted)
            texts += [*frame["prompt"], *frame["answer"]]
        return cut_vocabulary(model, self.tokenizer(), texts)

    def describe(self, checkpoints: dict[str, Path]) -> dict[str, Any]:
        """Describe the model for the report."""
        with suppress_progress_bars():
            config = AutoConfig.from_pretrained(checkpoints[UNTRAINED])
        name = "SmolLM2-135M-Instruct" if self.settings.model == "smollm2" else self.settings.model
        cuts = []
        if self.settings.layers is not None:
            cuts.append(f"its first {config.num_hidden_layers} blocks")
        if self.settings.vocabulary == "used":
            cuts.append(f"{config.vocab_size} tokens in use")
        return {"model": name + (f" ({', '.join(cuts)})" if cuts else "")}


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model alone.

    Raises:
        InputError: there is no such model.
    """
    if name == "smollm2":
        return load_smollm2_tokenizer()
    with _name_missing_model(name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    return tokenizer


def make_random_base(name: str, layers: int | None = None) -> PreTrainedModel:
    """Make a model of the shape of a base model with random weights; read none.

    Args:
        name: name of the base model, as for `load_base`.
        layers: keep the first blocks only.

    Raises:
        InputError: there is no such model, or it has fewer blocks.
    """
    config = smollm2_config(layers) if name == "smollm2" else _load_config(name, layers)
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.train(False)
    return model


def load_base(name: str, layers: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model in float32 and its tokenizer.

    Args:
        name: "smollm2", or any name or folder that from_pretrained of transformers takes.
        layers: keep the first blocks only.

    Raises:
        InputError: there is no such model, or it has fewer blocks.
    """
    if name == "smollm2":
        return load_smollm2(layers)
    config = _load_config(name, layers)
    with _name_missing_model(name), suppress_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    model.train(False)
    return model, tokenizer


def _load_config(name: str, layers: int | None) -> PretrainedConfig:
    """Load the configuration of a model with its first `layers` blocks."""
    with _name_missing_model(name):
        config: PretrainedConfig = AutoConfig.from_pretrained(name)
    total = int(config.num_hidden_layers)
    if layers is not None:
        if not 1 <= layers <= total:
            raise InputError(f"layers={layers}: {name} has {total} blocks; give 1 to {total}")
        config.num_hidden_layers = layers
    return config


@contextmanager
def _name_missing_model(name: str) -> Iterator[None]:
    """Turn an OSError of loading into an InputError that names the model."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"No model could be loaded from {name!r}: {error}. Give 'smollm2', a folder with config.json and "
            "safetensors weights, or the name of a model on the hub."
        ) from error
