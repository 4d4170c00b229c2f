"""Data inside a page."""

from __future__ import annotations

import json

from stratalens.analyses.plots.html_page import json_block


def test_json_blocks_cannot_be_left() -> None:
    nasty = {"</script><!--": "\u2028 & <b>"}
    block = json_block(nasty)
    assert not set("<>&\u2028") & set(block)
    assert json.loads(block) == nasty
