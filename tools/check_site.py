"""Check that no page of the built documentation loads anything from another server.

    python tools/check_site.py [build/site]

Checks what HTML, CSS and SVG files load: scripts, styles, fonts, images, frames. Links that a reader may follow are
allowed. Otherwise, prints each file and address, and exits with status 1.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

# Attributes whose address the browser loads. The links of <a> and <form> are not among them.
LOADS = {"src", "srcset", "poster", "data", "background"}
LINKS = {"stylesheet", "icon", "shortcut", "preload", "prefetch", "modulepreload", "preconnect", "dns-prefetch"}
REMOTE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
IN_CSS = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)


class Page(HTMLParser):
    """Collects the addresses that a page loads from other servers."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text_of = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.text_of = tag
        for name, value in values.items():
            loads = name in LOADS or (name in ("href", "xlink:href") and tag in ("image", "use", "feimage"))
            loads = loads or (tag == "link" and name == "href" and bool(LINKS & set(values.get("rel", "").split())))
            addresses = value.split(",") if name == "srcset" else [value]
            if loads:
                self.found += [address.strip() for address in addresses if REMOTE.match(address)]
            if name == "style":
                self.found += IN_CSS.findall(value)
        if "mermaid" in values.get("class", "").split():
            self.found.append("a Mermaid diagram, whose script the theme fetches from a server")

    def handle_data(self, data: str) -> None:
        if self.text_of == "style":
            self.found += IN_CSS.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self.text_of = ""


def loaded_from_elsewhere(path: Path) -> list[str]:
    """List the addresses on other servers that the browser loads for a file of the site."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return IN_CSS.findall(text)
    page = Page()
    page.feed(text)
    return page.found


def main() -> int:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "build/site")
    files = sorted(path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg"))
    if not files:
        print(f"{site} holds no site: run `mkdocs build --strict` first", file=sys.stderr)
        return 1
    found = [(path, address) for path in files for address in loaded_from_elsewhere(path)]
    for path, address in found:
        print(f"{path}: {address}", file=sys.stderr)
    print(f"{len(files)} files, {len(found)} loaded from another server")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
