"""What a study starts from: the base model, its tokenizer, and the corpus in its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings
from stratalens.plugin.study.corpus.conflicts import Contradicted, conflict_prompts, contradict
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.entities import People, read_people
from stratalens.plugin.study.corpus.questions import candidates, question_texts
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.models.smollm import load_smollm2, load_smollm2_tokenizer, smollm2_config
from stratalens.plugin.study.models.vocabulary import check_answers, check_vocabulary, cut_vocabulary
from stratalens.plugin.terminal import suppress_progress_bars
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class Base:
    """The base model and its tokenizer, loaded only when a step needs them.

    Args:
        settings: of the study.
        folder: the corpus'; keeps the tokenizer.
        blank: a model of the same shape with random weights instead, for a forecast.
    """

    def __init__(self, settings: StudySettings, folder: Path, *, blank: bool = False) -> None:
        self.settings = settings
        self.blank = blank
        self.tokenizer_folder = folder / "tokenizer"
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.contradicted: tuple[Contradicted, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What checkpoints are compared by."""
        return {
            "model": self.settings.model,
            "layers": self.settings.layers,
            "vocabulary": self.settings.vocabulary,
        }

    def corpus(self) -> Corpus:
        """The corpus; its aliases depend on the base model's tokenizer."""
        s = self.settings
        own: People | None = None
        limits: dict[str, Any] = {}
        if s.entities is not None:
            own = read_people(s.entities.file, s.entities.questions, s.entities.answer)
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
            people=own,
            **limits,
        )
        corpus, self.contradicted = contradict(corpus, s.conflict, self.tokenizer(), s.aliases, s.seed)
        if s.record.answers != "none":
            check_answers(self.tokenizer(), s.model, candidates(corpus))
        return corpus

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base tokenizer; kept beside the corpus, so that a second run need not read the weights for it."""
        if self._tokenizer is None and (self.tokenizer_folder / "tokenizer.json").is_file():
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder)
        if self._tokenizer is None and self.blank:
            self._tokenizer = load_tokenizer(self.settings.model)
        if self._tokenizer is None:
            self._model, self._tokenizer = load_base(self.settings.model, self.settings.layers)
            self._tokenizer.save_pretrained(self.tokenizer_folder)
        return self._tokenizer

    def start(self, corpus: Corpus) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model that training starts from."""
        if self.blank:
            self._model = blank_base(self.settings.model, self.settings.layers)
        if self._model is None:
            self._model, _ = load_base(self.settings.model, self.settings.layers)
        model, self._model = self._model, None
        if self.settings.vocabulary == "full":
            check_vocabulary(model, self.tokenizer(), corpus.all_texts())
            return model, self.tokenizer()
        asked = question_texts(corpus) if self.settings.self_report else []
        if self.contradicted:
            frame = conflict_prompts(self.contradicted)
            asked += [*frame["prompt"], *frame["answer"]]
        return cut_vocabulary(model, self.tokenizer(), [*corpus.all_texts(), *asked])

    def describe(self, checkpoints: dict[str, Path]) -> dict[str, Any]:
        """The model in words, for the report."""
        from transformers import AutoConfig

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
    """The base tokenizer alone.

    Raises:
        InputError: no such model.
    """
    if name == "smollm2":
        return load_smollm2_tokenizer()
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise _no_model(name, error) from error
    return tokenizer


def blank_base(name: str, layers: int | None = None) -> PreTrainedModel:
    """A model of the base's shape with random weights: as large and as slow, made without reading any.

    Raises:
        InputError: as `load_base`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = smollm2_config(layers) if name == "smollm2" else _config(name, layers)
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, dtype=torch.float32
        )
    model.train(False)
    return model


def load_base(name: str, layers: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model in float32 and its tokenizer.

    Args:
        name: "smollm2", or whatever transformers' from_pretrained takes.
        layers: keep the first blocks only.

    Raises:
        InputError: no such model, or more layers than it has.
    """
    if name == "smollm2":
        return load_smollm2(layers)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = _config(name, layers)
    try:
        with suppress_progress_bars():
            model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        raise _no_model(name, error) from error
    model.train(False)
    return model, tokenizer


def _config(name: str, layers: int | None) -> PretrainedConfig:
    """The model's configuration with so many blocks."""
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise _no_model(name, error) from error
    total = int(config.num_hidden_layers)
    if layers is not None:
        if not 1 <= layers <= total:
            raise InputError(f"layers={layers}: {name} has {total} blocks; give 1 to {total}")
        config.num_hidden_layers = layers
    return config


def _no_model(name: str, error: OSError) -> InputError:
    return InputError(
        f"No model could be loaded from {name!r}: {error}. Give 'smollm2', a folder with config.json and "
        "safetensors weights, or the name of a model on the hub."
    )
