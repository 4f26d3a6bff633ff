"""The snippets of docs/drop-in.md run, and their assertions hold."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "drop-in.md"
SECTIONS = {text.partition("\n")[0]: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
            for text in PAGE.read_text().split("\n## ")[1:]}  # fmt: skip
FIRST = "scaled_dot_product_attention"  # it has the imports


# vector-quantize-pytorch is not in the extra `test`: only this page needs it.
@pytest.mark.parametrize("section", [name for name, snippets in SECTIONS.items() if snippets])
def test_snippets(section):
    if section == "vector-quantize-pytorch":
        pytest.importorskip("vector_quantize_pytorch")
    names = {}
    for snippet in SECTIONS[FIRST] + (SECTIONS[section] if section != FIRST else []):
        exec(snippet, names)
