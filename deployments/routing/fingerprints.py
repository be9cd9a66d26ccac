"""What the rows of a tower depend on besides the items, and what a caller wants of it."""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from deployments.errors import (
    FingerprintError,
    RequestError,
    ServiceError,
    TowerUnavailableError,
)
from deployments.model.weights.fingerprint import combine
from deployments.routing.tower_client import TowerClient

ANSWER_S = 5.0  # within which a tower says which it is
TOWERS = ("text", "vision")


class Fingerprints:
    """The fingerprints of the towers that a Router asks.

    Args:
        preprocessing: digest of what texts and images are prepared with, in Router and towers.
        clients: of the towers, by name.
    """

    def __init__(self, preprocessing: str, clients: Mapping[str, TowerClient]) -> None:
        self._preprocessing = preprocessing
        self._clients = clients
        self._scales: dict[str, float] = {}

    async def served(
        self, towers: Iterable[str] = TOWERS, anew: bool = False, wake: bool = False
    ) -> dict[str, str]:
        """Return the fingerprint of each tower; one that does not answer is left out.

        Args:
            towers: those wanted.
            anew: ask them now, in place of what was heard last.
            wake: those that sleep too, which starts a replica of theirs.
        """
        found = {}
        for name in sorted(self._clients.keys() & set(towers)):
            with suppress(ServiceError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    told = await self._clients[name].fingerprint(anew, wake)
                    found[name] = self.combined(told)
        return found

    async def logit_scale(self, made_by: str) -> float:
        """Return the trained scale of the text tower that made an answer's rows.

        Args:
            made_by: the fingerprint of the text tower in the answer.

        Raises:
            TowerUnavailableError: none with it answers: it is being replaced.
        """
        if made_by not in self._scales:
            told, scale = await self._clients["text"].logit_scale()
            self._scales = {self.combined(told): scale}
        if made_by not in self._scales:
            raise TowerUnavailableError("the text tower is being replaced; retry shortly")
        return self._scales[made_by]

    async def check(self, wanted: Mapping[str, str]) -> None:
        """Refuse a request for rows of another fingerprint before any work is done.

        Raises:
            FingerprintError: another one is served.
            TowerUnavailableError: a tower does not say which it has.
        """
        served = await self.served(wanted, wake=True)
        if served != wanted:  # a tower may have been replaced since it was heard last
            served = await self.served(wanted, anew=True, wake=True)
        for name in wanted.keys() - served.keys():
            raise TowerUnavailableError(f"the {name} tower does not answer; retry shortly")
        refuse_others(served.items(), wanted)

    def combined(self, told: str) -> str:
        """Return the fingerprint of a tower, preprocessing included, from what the tower told."""
        return combine(self._preprocessing, told)


def wanted_by(text: str | None, used: Collection[str]) -> dict[str, str]:
    """Return the fingerprint that a caller wants of each tower that the request uses.

    Args:
        text: `text:... vision:...`, or one of both; None where the caller takes any.
        used: names of towers.

    Raises:
        RequestError: not of that form.
    """
    if text is None:
        return {}
    wanted = dict(part.partition(":")[::2] for part in text.split())
    if not wanted or not wanted.keys() <= set(TOWERS):
        raise RequestError(
            f"the fingerprint asked for is {text!r:.60}; it has the form 'text:... vision:...', or "
            "one of both"
        )
    return {name: digest for name, digest in wanted.items() if name in used}


def refuse_others(served: Iterable[tuple[str, str]], wanted: Mapping[str, str]) -> None:
    """Raise a FingerprintError where a tower has another fingerprint than is wanted of it."""
    for name, digest in served:
        if digest != wanted.get(name, digest):
            raise FingerprintError(
                f"the {name} fingerprint here is {digest}, not the one asked for: other weights, "
                "precision, kernel or preprocessing"
            )
