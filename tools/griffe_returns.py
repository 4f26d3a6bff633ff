"""A Griffe extension for the API reference: it makes Griffe treat the section "Returns:" as plain text.

Griffe would split "(B, N), dtype of `query`: each row sums to 1" at the colon into a type and its description. Markdown
would read the asterisks of two "B*K" as emphasis.
"""

import re
from typing import Any

from griffe import Extension, Object

_RETURNS = re.compile(r"(?<=^Returns:\n)(?:(?: +.*)?(?:\n|\Z))+", re.MULTILINE)


class PlainReturns(Extension):
    """Replaces the colons by semicolons and the asterisks by dots."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _RETURNS.sub(_as_text, obj.docstring.value)


def _as_text(match: re.Match[str]) -> str:
    return re.sub(r"(?<=[A-Z])\*(?=[A-Z])", "·", match[0].replace(": ", "; "))
