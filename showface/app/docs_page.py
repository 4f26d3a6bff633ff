"""A page that shows an OpenAPI description. It needs no script and loads nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
body { color: #1c1e21; background: #fff; }
h2 { margin-top: 2.5rem; font-family: ui-monospace, monospace; font-size: 1.15rem; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { border-bottom: 1px solid #d0d4da; padding: .3rem .6rem; text-align: left; vertical-align: top; }
code { font-family: ui-monospace, monospace; }
a { color: #2442b8; }
@media (prefers-color-scheme: dark) {
  body { color: #e6e8eb; background: #17191c; }
  th, td { border-color: #3a3f46; }
  a { color: #9db2ff; }
}
"""


def docs_page(schema: dict[str, Any]) -> str:
    """The page, as HTML.

    Args:
        schema: an OpenAPI description, as `FastAPI.openapi` returns it.
    """
    models = schema.get("components", {}).get("schemas", {})
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{escape(schema['info']['title'])}</title>",
        '<link rel="stylesheet" href="docs.css"></head><body>',
        f"<h1>{escape(schema['info']['title'])}</h1>",
        f"<p>{escape(schema['info'].get('description', ''))}</p>",
        '<p><a href="openapi.json">openapi.json</a></p>',
    ]
    for path, methods in schema["paths"].items():
        for method, call in methods.items():
            parts += _call(f"{method.upper()} {path}", call, models)
    return "\n".join([*parts, "</body></html>"])


def _call(title: str, call: dict[str, Any], models: dict[str, Any]) -> list[str]:
    parts = [f"<h2>{escape(title)}</h2>", f"<p>{escape(call.get('description') or call.get('summary', ''))}</p>"]
    fields = [
        (each["name"], each.get("schema", {}), each.get("description", "")) for each in call.get("parameters", [])
    ]
    for content in call.get("requestBody", {}).get("content", {}).values():
        fields += _fields(content["schema"], models)
    if fields:
        rows = [(name, _type(kind), text) for name, kind, text in fields]
        parts += _table(("field", "type", "meaning"), rows)
    answers: list[tuple[str, str, str]] = []
    for status, answer in call["responses"].items():
        answers.append((status, ", ".join(answer.get("content", {})), answer.get("description", "")))
        answers += [(f"header {name}", _type(of["schema"]), of["description"]) for name, of in _headers(answer)]
        if status == "200":
            for content in answer.get("content", {}).values():
                answers += [
                    (name, _type(kind), text) for name, kind, text in _fields(content.get("schema", {}), models)
                ]
    return parts + _table(("response", "type", "meaning"), answers)


def _headers(answer: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(answer.get("headers", {}).items())


def _fields(schema: dict[str, Any], models: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any], str]]:
    """The fields of an object, and of the objects in its lists, each with its schema and its description."""
    schema = models.get(schema["$ref"].rpartition("/")[2], {}) if "$ref" in schema else schema
    found = []
    for name, kind in schema.get("properties", {}).items():
        found.append((prefix + name, kind, kind.get("description", "")))
        if "$ref" in kind.get("items", {}):
            found += _fields(kind["items"], models, f"{prefix}{name}[].")
    return found


def _type(schema: dict[str, Any]) -> str:
    """The type of a value in words, with its default."""
    if "enum" in schema:
        text = " or ".join(map(str, schema["enum"]))
    elif schema.get("format") == "binary":
        text = "file"
    else:
        text = str(schema.get("type", ""))
    if "maximum" in schema:
        text += f" {schema['minimum']:g}..{schema['maximum']:g}"
    return text if "default" not in schema else f"{text}, default {str(schema['default']).lower()}"


def _table(header: tuple[str, ...], rows: list[tuple[str, str, str]]) -> list[str]:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = [f"<table><tr>{cells}</tr>"]
    for name, kind, text in rows:
        lines.append(f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{escape(text)}</td></tr>")
    return [*lines, "</table>"]
