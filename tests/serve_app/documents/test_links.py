"""The links of every Markdown file."""

import re
from pathlib import Path
from typing import Any

import pytest

INLINE = re.compile(r"\]\(([^)\s]+)\)")
DEFINED = re.compile(r"^\[([^\]]+)\]: (\S+)$", re.MULTILINE)
USED = re.compile(r"\]\[([^\]]+)\]")


def slug(heading: str) -> str:
    """Return a heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def faults(path: Path, prose: str) -> list[str]:
    """Return the links of a text that lead nowhere, and the definitions that nothing uses."""
    defined = dict(DEFINED.findall(prose))
    found = [f"undefined: {name}" for name in USED.findall(prose) if name not in defined]
    found += [f"unused: {name}" for name in defined if f"][{name}]" not in prose]
    anchors = {slug(line.lstrip("#")) for line in prose.splitlines() if line.startswith("#")}
    for link in (*INLINE.findall(prose), *defined.values()):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        if target and not (path.parent / target).exists():
            found.append(f"missing: {target}")
        if not target and anchor not in anchors:
            found.append(f"no such heading: {anchor}")
    return found


def test_every_link_leads_somewhere(document: Any) -> None:
    """Files, folders and headings that a document names are there."""
    assert faults(document.path, document.prose) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a](nothing.md)", "missing: nothing.md"),
        ("# One\n[a](#two)", "no such heading: two"),
        ("[a][b]", "undefined: b"),
        ("[b]: https://example.com", "unused: b"),
        ("# The one\n[a](#the-one) [c][d] [e](https://example.com)\n\n[d]: here.md", ""),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, text: str, fault: str) -> None:
    """Each kind of broken link is named, and a text without one passes."""
    (tmp_path / "here.md").write_text(text)
    assert faults(tmp_path / "here.md", text) == [fault] * bool(fault)
