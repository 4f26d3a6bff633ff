"""MkDocs hooks: pages from files outside docs/, links that work on the site, and maths without JavaScript."""

import re
from html import unescape
from pathlib import Path
from posixpath import normpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# site: repository
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md"}

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages whose files lie in the root of the repository."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](").replace('"docs/', '"')
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace a link to a file that is not on the site, such as a source file, by its text."""
    on_site = {name: page_name for page_name, name in PAGES.items()}

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if page.file.src_uri in PAGES:
            inside = not (ROOT / target).exists()  # links into docs/ have lost that prefix
            return match[0] if inside else f"[{text}]({on_site[target]}{anchor})" if target in on_site else text
        place = normpath(f"docs/{page.file.src_uri}/../{target}")
        if place in on_site:
            up = "../" * page.file.src_uri.count("/")
            return f"[{text}]({up}{on_site[place]}{anchor})"
        return match[0] if place.startswith("docs/") else text

    return _LINK.sub(replace, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Turn LaTeX into MathML, which browsers draw themselves."""
    html = _DISPLAY.sub(lambda match: f'<div class="maths">{_mathml(match[1], "block")}</div>', html)
    return _INLINE.sub(lambda match: _mathml(match[1], "inline"), html)


def _mathml(latex: str, display: str) -> str:
    text = convert(unescape(latex).strip(), display=display)
    # The converter leaves unknown commands unchanged.
    if re.search(r"&(?!#?\w+;)|\\", text):
        raise ValueError(f"latex2mathml does not know all of {latex!r}")
    return text
