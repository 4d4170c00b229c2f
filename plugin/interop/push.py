"""push(): share a store at an address, with a card that describes it and shows a figure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stratalens.plugin.interop.card import CARD, FIGURE, card_text
from stratalens.store.errors import InputError, quote
from stratalens.store.files import user_path

_OTHERS = ["entity", "token"]  # the dims over which the norms of the figure are averaged


def push(
    store: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    title: str | None = None,
    citation: str | None = None,
    license: str | None = None,
    figure: bool | str | os.PathLike[str] = True,
    private: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Share a store: copy it to an address with an index and a card; a repeated call resumes.

    Colleagues open the address with `sl.open_store(url)` and read by ranges, without a download of the store.

    Args:
        store: folder of the store.
        url: hf://datasets/USER/NAME[@BRANCH] for the Hugging Face Hub, a bucket such as s3://BUCKET/run.zarr, or a
            folder that a web server delivers.
        title: heading of the card; default: the name in the address.
        citation: how to cite the data, as Markdown.
        license: identifier of a license, such as "cc-by-4.0".
        figure: True draws the mean norm by stage and layer, if the store has recorded norms and matplotlib is
            installed. A path of a PNG file puts that in the card; False leaves it out.
        private: create a repository of the hub as a private one.
        progress: function called with (bytes done, bytes in total).

    Returns:
        A dict: url, files and bytes that were sent, total_files, total_bytes, figure, and commit for the hub.

    Raises:
        InputError: there is no store, or the address cannot be written.
        MismatchError: the address holds another store.
        StoreBusyError: another process writes to it.
        UnreachableError: the hub does not answer.
        DamagedError: a file of the store is damaged; nothing of the copy is visible.

    Example:
        >>> sl.push("run.zarr", "hf://datasets/me/run", license="cc-by-4.0")  # doctest: +SKIP
    """
    from stratalens.store.interop.push import check_address, push_store
    from stratalens.store.state.info import info

    address = os.fspath(url)
    check_address(address)
    facts = info(store)
    extra: dict[str, bytes] = {}
    code = ""
    if not isinstance(figure, bool):
        extra[FIGURE] = _picture(figure)
        code = f"# {Path(figure).name}, drawn by the authors"
    elif figure and (norms := _norms_of(facts)):
        code = _figure_code(address, norms)
        if (image := draw_norms(store, norms)) is None:
            code = ""
        else:
            extra[FIGURE] = image
    text = card_text(facts, address, title=title, citation=citation, license=license, figure_code=code)
    extra[CARD] = text.encode()
    sent = push_store(store, address, extra=extra, private=private, progress=progress)
    return {**sent, "figure": FIGURE in extra}


def _norms_of(facts: dict[str, Any]) -> str:
    """Return the first statistic of norms with stage and layer; "" if the store has none."""
    names = [f"{site}_l2" for site in facts["sites"]]
    needed = {"stage", "layer", *_OTHERS}
    return next((n for n in names if needed <= set(facts["variables"].get(n, {}).get("dims", ()))), "")


def _figure_code(url: str, norms: str) -> str:
    return f'sl.plots.stage_layer_map(sl.open_store("{url}").{norms}.mean({_OTHERS}), "mean norm")'


def draw_norms(store: str | os.PathLike[str], norms: str) -> bytes | None:
    """Draw the mean norm by stage and layer as PNG; None without matplotlib or without finite norms.

    Args:
        store: folder of the store.
        norms: name of the statistic.
    """
    import tempfile
    from importlib.util import find_spec

    from stratalens.analyses import plots
    from stratalens.store.reading.open import open_store

    if find_spec("matplotlib") is None:
        return None
    means = open_store(store)[norms].mean(_OTHERS).compute()
    if not bool(means.notnull().any()):
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FIGURE)
        plots.save(plots.stage_layer_map(means, "mean norm"), file)
        return file.read_bytes()


def _picture(path: str | os.PathLike[str]) -> bytes:
    file = user_path(os.fspath(path))
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"figure {quote(os.fspath(path))} cannot be read: {error.strerror or error}") from error
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"figure {quote(os.fspath(path))} is no PNG file: save it as PNG, or leave figure out")
    return data
