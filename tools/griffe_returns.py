"""A Griffe extension for the reference of the API: what "Returns:" says is text.

Griffe would take "(B, N), dtype of `query`: each row sums to 1" for a type and its description, split at the colon, and
Markdown the asterisks of two "B*K" for emphasis.
"""

import re
from typing import Any

from griffe import Extension, Object

_RETURNS = re.compile(r"(?<=^Returns:\n)(?:(?: +.*)?(?:\n|\Z))+", re.MULTILINE)


class PlainReturns(Extension):
    """Writes semicolons and dots in their place."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _RETURNS.sub(_as_text, obj.docstring.value)


def _as_text(match: re.Match[str]) -> str:
    return re.sub(r"(?<=[A-Z])\*(?=[A-Z])", "·", match[0].replace(": ", "; "))
