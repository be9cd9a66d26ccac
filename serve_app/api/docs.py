"""The page at /docs: the OpenAPI document as plain HTML, no script, nothing from the network."""

import json
from collections.abc import Iterator
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
code, pre { font: 14px/1.5 ui-monospace, monospace; }
pre { background: #80808018; padding: .8rem; overflow-x: auto; border-radius: 4px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid #80808040; }
:root { color-scheme: light dark; }
"""


def page(document: dict[str, Any]) -> str:
    """Return the HTML page of an OpenAPI document."""
    info = document["info"]
    body = "".join(_paths(document))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}'
        f'</title><meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f'<p>{escape(info["description"])} For programs: <a href="openapi.json">openapi.json</a>.'
        f"</p>{body}</html>"
    )


def _paths(document: dict[str, Any]) -> Iterator[str]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation['summary'])}.</p>"
            yield from _operation(operation, document)


def _operation(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        fields = document["components"]["schemas"][_name(content["schema"])]["properties"]
        yield "<h3>Fields</h3>" + _table(
            (name, _values(field), field["description"]) for name, field in fields.items()
        )
        yield "<h3>Headers</h3>" + _table(
            (one["name"], _values(one["schema"]), one["description"])
            for one in operation["parameters"]
        )
        for example in content["examples"].values():
            yield f"<h3>{escape(example['summary'])}</h3>{_code(example['value'])}"
    yield "<h3>Answers</h3>" + _table(
        (status, ", ".join(answer.get("content", {})), answer["description"])
        for status, answer in operation["responses"].items()
    )
    for name in sorted({_name(content["schema"]) for content in _schemas(operation)} - {""}):
        yield f"<details><summary>Schema of <code>{name}</code></summary>"
        yield _code(document["components"]["schemas"][name]) + "</details>"


def _schemas(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for answer in operation["responses"].values():
        yield from answer.get("content", {}).values()


def _name(schema: dict[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _values(schema: dict[str, Any]) -> str:
    """Describe the values of a schema in a few words."""
    choices = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    words = []
    for one in choices[:3]:
        if "enum" in one:
            words.append(" | ".join(json.dumps(value) for value in one["enum"]))
        else:
            words.append(json.dumps(one["const"]) if "const" in one else str(one.get("type", "")))
    return " or ".join(dict.fromkeys(words)) + (" ..." if len(choices) > 3 else "")


def _table(rows: Iterator[tuple[str, str, str]]) -> str:
    lines = (
        f"<tr><td><code>{escape(name)}</code><td>{escape(kind)}<td>{escape(text)}"
        for name, kind, text in rows
    )
    return f"<table>{''.join(lines)}</table>"


def _code(value: object) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
