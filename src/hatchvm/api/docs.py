"""The description of the API, for people: one HTML page made from the OpenAPI document.

It needs nothing from anywhere else, no script and no CDN, so it can be read on a host without a way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

Node = Mapping[str, Any]

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { font-family: ui-monospace, monospace; font-size: .92em; }
section { border: 1px solid #8886; border-radius: 8px; padding: .5rem 1rem; margin: 1rem 0; }
h3 { margin: .4rem 0; } h3 b { text-transform: uppercase; color: #0a7d4f; margin-right: .5em; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #8884; }
nav a { margin-right: 1em; }
"""
_LIMITS: Final = {
    "minimum": "at least",
    "maximum": "at most",
    "minLength": "at least, characters:",
    "maxLength": "at most, characters:",
    "maxProperties": "at most, entries:",
}


def render(document: Node) -> str:
    """The page."""
    info = document["info"]
    schemas = document["components"]["schemas"]
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    links = "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in [*groups, "Models"])
    calls = "".join(f'<h2 id="{escape(tag)}">{escape(tag)}</h2>{"".join(group)}' for tag, group in groups.items())
    models = "".join(_model(name, schema) for name, schema in schemas.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} API <small>{escape(info['version'])}</small></h1>"
        f"<p>{_prose(info['description'])}</p>"
        f'<p>For programs: <a href="openapi.json">openapi.json</a></p><nav>{links}</nav>{calls}'
        f'<h2 id="Models">Models</h2>{models}</body></html>'
    )


def _operation(method: str, path: str, operation: Node) -> str:
    parts = [
        f"<section><h3><b>{method}</b><code>{escape(path)}</code></h3>",
        f"<p>{_prose(operation['description'])}</p>",
    ]
    if "security" not in operation:
        parts.append("<p>Needs no key.</p>")
    if parameters := operation.get("parameters"):
        rows = ((p["name"], p["in"], _type(p["schema"])) for p in parameters)
        parts.append(_table(("parameter", "in", "type"), rows))
    if body := operation.get("requestBody"):
        need = "Body" if body.get("required") else "Body (optional)"
        parts.append(f"<p>{need}: {_content(body)}</p>")
    answers = (
        (status, _content(answer), _prose(answer["description"])) for status, answer in operation["responses"].items()
    )
    parts.append(_table(("answer", "", ""), answers))
    return "".join(parts) + "</section>"


def _model(name: str, schema: Node) -> str:
    required = set(schema.get("required", ()))
    rows = (
        (f"<code>{escape(field)}</code>{' *' if field in required else ''}", _type(node), _limits(node))
        for field, node in schema.get("properties", {}).items()
    )
    about = _prose(schema.get("description", ""))
    fields = _table(("field", "type", ""), rows)
    return f'<section id="{escape(name)}"><h3>{escape(name)}</h3><p>{about}</p>{fields}</section>'


def _content(node: Node) -> str:
    return ", ".join(
        f"{_type(kind.get('schema', {}))} <small>{escape(media)}</small>"
        for media, kind in node.get("content", {}).items()
    )


def _type(schema: Node) -> str:
    if ref := schema.get("$ref"):
        name = escape(ref.rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if choices := schema.get("anyOf"):
        return " or ".join(_type(choice) for choice in choices)
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return escape(str(schema.get("type", "any")))


def _limits(schema: Node) -> str:
    said = [f"{words} {schema[key]}" for key, words in _LIMITS.items() if key in schema]
    if "enum" in schema:
        said.append(f"one of {', '.join(schema['enum'])}")
    if "default" in schema:
        said.append(f"default {schema['default']}".lower())
    return escape("; ".join(said))


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{cells}</table>"


def _prose(text: str) -> str:
    """Escaped text, its `code` spans marked."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))
