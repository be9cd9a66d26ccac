"""How a request wants its items embedded; every option is checked before anything is counted."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import get_args

from deployments.messages import Lane
from deployments.model.architecture import QUERY_TASK
from deployments.model.errors import OptionError
from deployments.model.output import check_dimensions
from deployments.model.tokenizer import Truncate

LANES: tuple[Lane, ...] = get_args(Lane)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `Router.embed` and `Router.classify`, as they were given; see there."""

    task: str | None = None
    dimensions: int | None = None
    normalized: bool = True
    truncate: Truncate = False
    lane: Lane = "interactive"
    timeout_s: float | None = None
    partial: bool = False
    logit_scale: bool = False

    def check(self, width: int) -> None:
        """Refuse values that have no meaning; a caller by handle may send anything.

        Args:
            width: of the model's rows.

        Raises:
            OptionError: names the option, its value and what it may be.
        """
        self._one_of("task", (None, QUERY_TASK))
        check_dimensions(self.dimensions, width)
        self._one_of("normalized", (True, False))
        self._one_of("truncate", (True, False, "start"))
        self._one_of("lane", LANES)
        self._one_of("partial", (True, False))
        self._one_of("logit_scale", (True, False))
        limit = self.timeout_s
        is_number = limit is None or (isinstance(limit, Real) and not isinstance(limit, bool))
        if not is_number or not (limit is None or limit > 0):
            raise OptionError(f"timeout_s is {limit!r:.40}; it must be more than 0 seconds")

    def limit_s(self, most_s: float) -> float:
        """Return how long the request may take, where the server allows `most_s`."""
        return min(math.inf if self.timeout_s is None else float(self.timeout_s), most_s)

    def _one_of(self, name: str, values: tuple[object, ...]) -> None:
        value = getattr(self, name)
        # 1 == True, but is not what anybody meant; an array compares with nothing.
        if not any(type(value) is type(known) and value == known for known in values):
            choices = " or ".join(map(repr, values))
            raise OptionError(f"{name} is {value!r:.40}; choose {choices}")
