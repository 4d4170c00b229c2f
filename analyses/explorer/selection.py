"""Selected rows as text: the caption of their table, and the files that the page offers."""

from __future__ import annotations

import csv
from collections import Counter
from io import StringIO

from stratalens.analyses.explorer.data import ExplorerData, Rows, ViewState
from stratalens.analyses.plots.spec import plain_text

MAX_LISTED_ROWS = 100
MAX_COUNTED_GROUPS = 8  # groups whose counts the caption of a selection names
LABEL_FILE, LABEL_COLUMN = "selection-labels.csv", "selection"


def selection_caption(data: ExplorerData, view: ViewState, rows: Rows, in_address: bool) -> str:
    """Return the caption of the table of selected rows: how many, of which groups, and what the table shows.

    Args:
        data: the store.
        view: state of the widgets.
        rows: int64 array of shape (n,), selected rows.
        in_address: the address of the page has the selection.
    """
    more = "" if len(rows) <= MAX_LISTED_ROWS else f", the first {MAX_LISTED_ROWS} listed"
    text = f"{plural(len(rows), 'row')} selected{more}; statistics of {view.description()}"
    text += ", star: their mean in the figure" if len(rows) > 1 else ""
    text += f". {group_counts(data, view.by, rows)}"
    if not in_address:
        text += ". These are too many single rows for the address of the page, so a reload clears the selection"
    return text


def group_counts(data: ExplorerData, by: str, rows: Rows) -> str:
    """Return the number of rows by group, the largest groups first."""
    texts = Counter(data.label_texts(by, rows, 40)).most_common()
    words = [f"{name} {count:,}" for name, count in texts[:MAX_COUNTED_GROUPS]]
    more = len(texts) - len(words)
    return f"By {plain_text(by)}: {', '.join(words)}{f' and {more:,} more' if more > 0 else ''}"


def rows_csv(data: ExplorerData, view: ViewState, rows: Rows) -> StringIO:
    """Return rows with labels and statistics as CSV."""
    columns, table = data.row_details(view, rows.tolist())
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(table)
    text.seek(0)
    return text


def labels_csv(data: ExplorerData, rows: Rows) -> StringIO:
    """Return a selection as a label column of all rows, as CSV for `stratalens label`."""
    text = StringIO(newline="")
    data.selection_labels(rows, LABEL_COLUMN).to_csv(text, index=False)
    text.seek(0)
    return text


def label_command(data: ExplorerData) -> str:
    """Return the sentence on the command that adds the file of `labels_csv` to the store."""
    command = f"stratalens label {plain_text(data.path, 200)} {LABEL_FILE}"
    return f"{LABEL_FILE} has a column {LABEL_COLUMN} for all rows. Add it to the store: {command}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "row"), plural(1200, "row")
    ('1 row', '1,200 rows')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
