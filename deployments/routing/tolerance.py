"""Which failures of single items a request bears."""

from collections.abc import Mapping
from dataclasses import dataclass

from deployments.model.errors import EmbeddingError


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What may fail of a request.

    Attributes:
        partial: its items; without it the first failure is raised.
        num_items: behind these there are labels, which may not fail in any case.
    """

    partial: bool
    num_items: int

    def check(self, failures: Mapping[int, EmbeddingError]) -> None:
        """Raise the first failure that may not be, with the index of its item or label.

        Args:
            failures: by index in the request, the labels behind the items.
        """
        for index in sorted(failures):
            label = index - self.num_items
            if label >= 0 or not self.partial:
                error = failures[index]
                name = f"item {index}" if label < 0 else f"label {label}"
                raise type(error)(f"{name}: {error}") from error
