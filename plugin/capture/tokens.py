"""The token ids of a capture: one rule for every way in which a model and its tokenizer come in.

The ids of a prompt are `tokenizer(prompt).input_ids` of the tokenizer that was passed or that the checkpoint has,
unless `prepend_bos` says otherwise. A store that exists keeps the rule that it was recorded under.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.tokenizers import own_tokenizer
from stratalens.plugin.prompts.columns import name_rows
from stratalens.plugin.prompts.special_tokens import SpecialTokens, token_texts
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import TokenizedPrompts
from stratalens.plugin.stages.label_warnings import caller_level
from stratalens.store.errors import InputError, TokenWarning
from stratalens.store.state.manifest import Store

if TYPE_CHECKING:
    from stratalens.plugin.capture.options import CaptureOptions

RULE = "tokenization"  # key in `recorded_with` of a store


def tokenize_table(
    table: PromptTable, adapter: Adapter, options: CaptureOptions, existing: Store | None
) -> tuple[TokenizedPrompts, Any]:
    """Make the token ids of a table for a model.

    Args:
        table: the prompts.
        adapter: the model of the first stage.
        options: the options `tokenizer` and `prepend_bos` are used.
        existing: the store to resume or extend, or None. Where its ids come from another rule, the rule of the store
            counts, with one warning.

    Returns:
        The ids, and the tokenizer that made them.

    Raises:
        InputError: there is no tokenizer, or a prompt does not fit the model.
    """
    first: tuple[TokenizedPrompts, Any] | None = None
    failure: InputError | None = None
    tried: list[tuple[Any, bool | None, bool]] = []
    for load, prepend_bos, special in _rules(table, adapter, options, existing):
        try:
            tokenizer = load()
            if any(tokenizer is other and rule == [prepend_bos, special] for other, *rule in tried):
                continue
            tried.append((tokenizer, prepend_bos, special))
            tokens = table.tokenize(
                tokenizer,
                max_length=adapter.max_length,
                prepend_bos=prepend_bos,
                add_special_tokens=special,
                offsets=bool(table.spans),
            )
        except InputError as error:
            failure = failure or error
            continue
        if existing is None or _is_of_store(tokens, existing):
            if existing is not None and (first is None or first[0].digest != tokens.digest):
                _warn_about_rule(existing, tokens, first)
            return tokens, tokenizer
        first = first or (tokens, tokenizer)
    if first is None:
        raise failure or InputError("the model has no tokenizer")
    return first  # the store refuses it, and names the difference


def _rules(
    table: PromptTable, adapter: Adapter, options: CaptureOptions, existing: Store | None
) -> Iterator[tuple[Any, bool | None, bool]]:
    """Yield functions that return a tokenizer, with `prepend_bos` and `add_special_tokens`.

    The rule of this call comes first, then those that the store may have been recorded with.
    """

    def own() -> Any:
        return options.tokenizer if options.tokenizer is not None else own_tokenizer(adapter)

    yield own, options.prepend_bos, table.add_special_tokens
    if existing is None:
        return
    recorded = existing.recorded_with.get(RULE)
    if isinstance(recorded, Mapping):
        bos = recorded.get("prepend_bos") if options.prepend_bos is None else options.prepend_bos
        yield own, bos, bool(recorded.get("add_special_tokens", True))
    else:  # recorded before there was a rule: with the tokenizer of TransformerLens, which adds BOS
        yield lambda: adapter.tokenizer, options.prepend_bos, True


def _is_of_store(tokens: TokenizedPrompts, store: Store) -> bool:
    stored = store.provenance
    return (stored.get("tokenizer_fingerprint"), stored.get("token_ids_digest")) == (
        tokens.tokenizer_fingerprint,
        tokens.digest,
    )


def _warn_about_rule(store: Store, tokens: TokenizedPrompts, other: tuple[TokenizedPrompts, Any] | None) -> None:
    """Warn that a store keeps token ids that this call alone would not make; silent where both are the same."""
    if other is None:
        return
    warnings.warn(
        f"{store.path} keeps the token ids that it was recorded with: row 0 starts with {tokens.ids[0][:4].tolist()}. "
        f"A new store would have {other[0].ids[0][:4].tolist()} there, because the ids of a prompt are "
        f"{other[0].rule}. Record to another store to use them.",
        TokenWarning,
        stacklevel=caller_level(),
    )


def explain_other_tokens(store: Store, tokens: TokenizedPrompts) -> str | None:
    """Say in which way the first row of a capture differs from that of a store; None where it does not."""
    recorded = store.recorded_with.get(RULE)
    if not isinstance(recorded, Mapping) or store.provenance.get("token_ids_digest") == tokens.digest:
        return None
    first = tokens.ids[0][:64].tolist()
    same = first == recorded.get("first_row")
    return f"The store was recorded with {recorded.get('rule')}, this capture uses {tokens.rule}. " + (
        "Row 0 is the same." if same else f"Row 0 is {recorded.get('first_row')} in the store, {first} here."
    )


def warn_about_repeated_tokens(table: PromptTable, tokens: TokenizedPrompts, tokenizer: Any) -> None:
    """Warn, once for each table, of prompts whose text has the special tokens that are added around it."""
    rows = tokens.repeated_special
    if not len(rows) or table.warned_about_special_tokens:
        return
    table.warned_about_special_tokens = True
    warnings.warn(
        f"{table.source}: {name_rows(rows)}: the prompt has the text of the special tokens "
        f"{_added(tokens.special, tokenizer)} at its edge, and the same tokens are added again. Remove them from the "
        "prompt, or pass prepend_bos=False where the prompt has its own BOS.",
        TokenWarning,
        stacklevel=caller_level(),
    )


def _added(special: SpecialTokens, tokenizer: Any) -> str:
    return " and ".join(
        repr("".join(token_texts(tokenizer, list(ids)))) for ids in (special.before, special.after) if ids
    )
