"""The jina-clip-v2 model in plain torch: no Ray, no HTTP, no pydantic.

`ClipModel` is imported on first use, so that the tokenizer, image and output modules serve
processes that never need torch (the Router).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deployments.model.clip import ClipModel

__all__ = ["ClipModel"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - module attribute hook (PEP 562)
    if name == "ClipModel":
        from deployments.model.clip import ClipModel

        return ClipModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
