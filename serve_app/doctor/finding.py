"""The result of one check."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "fails"]


@dataclass(frozen=True)
class Finding:
    """What was found about one topic.

    Attributes:
        topic: what was looked at.
        status: `"fails"` where the service would not start or would answer wrongly.
        found: what is there.
        advice: what to do; empty where all is well.
    """

    topic: str
    status: Status
    found: str
    advice: str = ""


def ok(topic: str, found: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(topic, "ok", found)


def warning(topic: str, found: str, advice: str) -> Finding:
    """Return something that costs speed or may fail later."""
    return Finding(topic, "warning", found, advice)


def fails(topic: str, found: str, advice: str) -> Finding:
    """Return something that keeps the service from starting or answering rightly."""
    return Finding(topic, "fails", found, advice)
