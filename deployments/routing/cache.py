"""Rows of items seen before, least recently used first out, within a budget of bytes."""

from collections import OrderedDict

from deployments.model.output import Row

ENTRY_BYTES = 320  # of an entry beside its numbers: key, array header, links; measured 286


class RowCache:
    """Keeps full-width, un-normalised rows, from which any `dimensions` and encoding derives.

    Args:
        max_bytes: what the entries may take; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def get(self, key: bytes) -> Row | None:
        """Return the row of a key and count it as used, None where there is none."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: Row) -> None:
        """Keep a copy of a row; the least recently used ones leave as the budget asks."""
        size = row.nbytes + ENTRY_BYTES
        if size > self.max_bytes:
            return
        if key not in self._rows:
            self.held_bytes += size
        self._rows[key] = row.copy()  # a view would keep the whole answer alive
        self._rows.move_to_end(key)
        while self.held_bytes > self.max_bytes:
            _, oldest = self._rows.popitem(last=False)
            self.held_bytes -= oldest.nbytes + ENTRY_BYTES
