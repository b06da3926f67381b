"""docs/concepts/heads.md has every head, with its exact number of parameters."""

import re

from noah_jax.heads.registry import HEADS
from noah_jax.heads.spec import HeadSpec
from tests.helpers import ROOT


def test_every_head_stands_on_the_page_with_its_parameters():
    text = (ROOT / "docs" / "concepts" / "heads.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", text, re.MULTILINE)
    counts = {
        kind: row.count_params(HeadSpec(kind, 1000, 4, 1 / 8, options=row.options), 2048)
        for kind, row in HEADS.items()
    }
    assert {kind: int(count.replace(",", "")) for kind, count in rows} == counts
    chosen = re.findall(r"^\| `(\w+)` \| .*\.(?: \|.*)\|$", text, re.MULTILINE)
    assert sorted(chosen) == sorted(HEADS)
