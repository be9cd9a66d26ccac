"""One tower as a Router uses it: what is asked of it is looked up, admitted, cut and sent."""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments.config import RouterConfig
from deployments.messages import Terms, TowerRows
from deployments.metrics import RouterMetrics
from deployments.model.tokenizer import TokenIds
from deployments.routing.admission import Budget, Hold
from deployments.routing.dispatch import Merge, Piece, fan_out, image_pieces, text_pieces
from deployments.routing.sharing import Found, Key, Sharing, digests, follow
from deployments.routing.tower_client import TowerClient

T = TypeVar("T", TokenIds, bytes)
Work = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Asked(Generic[T]):
    """What a request has for one tower.

    Attributes:
        contents: its items, each content once.
        places: of each content in the request.
        patience: the cost of another request whose work this one may wait for.
    """

    contents: Mapping[Key, T]
    places: Mapping[Key, list[int]]
    patience: int
    merge: Merge
    terms: Terms


@dataclass(frozen=True)
class Admitted(Generic[T]):
    """What became of the items: known, under way for another request, or cut to be sent."""

    asked: Asked[T]
    found: Found[T]
    pieces: list[Piece]
    hold: Hold


class Modality(Generic[T]):
    """Gets the rows of texts, or of pictures.

    Args:
        client: calls the tower.
        budget: of work outstanding.
        sharing: what was computed before or is being computed.
        cost_of: tokens or images of an item.
        cut: turns items into pieces of bounded cost.
        max_in_flight: pieces of a request under way at once.
    """

    def __init__(
        self,
        client: TowerClient,
        budget: Budget,
        sharing: Sharing,
        cost_of: Callable[[T], int],
        cut: Callable[[Mapping[Key, T], Terms], Iterable[Piece]],
        max_in_flight: int,
    ) -> None:
        self.client = client
        self._budget = budget
        self._sharing = sharing
        self._cost_of: Callable[[T], int] = cost_of
        self._cut: Callable[[Mapping[Key, T], Terms], Iterable[Piece]] = cut
        self._max_in_flight = max_in_flight

    async def ask(self, items: Mapping[int, T], merge: Merge, terms: Terms) -> Asked[T]:
        """Find which of a request's items, by their place in it, are the same."""
        keys = await digests(list(items.values()))
        places: dict[Key, list[int]] = {}
        for place, key in zip(items, keys, strict=True):
            places.setdefault(key, []).append(place)
        self._sharing.repeated(len(keys) - len(places))
        contents = dict(zip(keys, items.values(), strict=True))
        cost = sum(map(self._cost_of, contents.values()))
        return Asked(contents, places, cost, merge, terms)

    @contextmanager
    def admit(self, asked: Asked[T]) -> Iterator[Work]:
        """Hold what has to be computed in the budget, for the length of the block.

        Yields what gets the rows and merges them; call it once.

        Raises:
            RequestTooLargeError, OverloadedError: see `Budget.admit`.
        """
        found = self._sharing.look_up(
            asked.contents, asked.patience, asked.terms.lane, self.client.fresh_fingerprint
        )
        pieces = list(self._cut(found.missing, asked.terms))
        with (
            self._budget.admit(sum(piece.cost for piece in pieces)) as hold,
            self._sharing.leading(pieces),
        ):
            yield partial(self._embed, Admitted(asked, found, pieces, hold))

    async def _embed(self, admitted: Admitted[T]) -> None:
        """Merge the rows of every item as they come.

        Raises:
            EmbeddingError: the first failure; what is still under way is cancelled.
        """
        asked, found = admitted.asked, admitted.found
        if found.cached:
            rows = TowerRows(np.stack(list(found.cached.values())))
            asked.merge.put([asked.places[key] for key in found.cached], rows)

        def landed(piece: Piece, rows: TowerRows, fingerprint: str) -> None:
            self._sharing.landed(piece, rows, fingerprint)
            asked.merge.put([asked.places[key] for key in piece.keys], rows)

        if admitted.pieces:
            await fan_out(self.client, admitted.pieces, landed, admitted.hold, self._max_in_flight)
        left = dict.fromkeys(key for wanted in found.followed.values() for key, _ in wanted)
        for piece, wanted in found.followed.items():
            keys, rows = await follow(piece, wanted)
            if keys:
                asked.merge.put([asked.places[key] for key in keys], rows)
            for key in keys:
                del left[key]
        if left:  # another request left or failed: these are computed without waiting again
            rest = replace(asked, contents={key: asked.contents[key] for key in left}, patience=0)
            with self.admit(rest) as embed:
                await embed()


def text_modality(
    tower: DeploymentHandle[Any], budget: Budget, limits: RouterConfig, metrics: RouterMetrics
) -> Modality[TokenIds]:
    """Return what asks the text tower."""
    client = TowerClient("text", tower, metrics.retry)
    sharing = Sharing(limits.cache_bytes, partial(metrics.reuse, "text"))
    cut = partial(text_pieces, limits=limits)
    return Modality(client, budget, sharing, len, cut, limits.max_chunks_in_flight)


def image_modality(
    tower: DeploymentHandle[Any], budget: Budget, limits: RouterConfig, metrics: RouterMetrics
) -> Modality[bytes]:
    """Return what asks the vision tower."""
    client = TowerClient("vision", tower, metrics.retry)
    sharing = Sharing(limits.cache_bytes, partial(metrics.reuse, "vision"))
    cut = partial(image_pieces, limits=limits)
    return Modality(client, budget, sharing, lambda _: 1, cut, limits.max_chunks_in_flight)
