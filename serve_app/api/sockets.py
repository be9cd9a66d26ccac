"""A Router takes the port of one that has just died.

The connections that a process closed keep its port for a minute (TIME_WAIT). Ray Serve (2.60) binds
the port of its direct ingress without SO_REUSEADDR, takes the failure for another program on the
port, and never offers it again: the one Router of a service would not come back.
"""

import socket
from typing import Any


class ReusingSocket(socket.socket):
    """A socket that may take an address which only closed connections still have."""

    def bind(self, address: Any) -> None:  # noqa: ANN401 - as the standard library has it
        """Bind; an address that somebody listens on is refused as ever."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        super().bind(address)


class ReusingSockets:
    """The module `socket`, with such sockets."""

    socket = ReusingSocket

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the module has
        return getattr(socket, name)


def install() -> None:
    """Have Ray Serve bind such sockets for HTTP in this process."""
    from ray.serve._private import http_util

    http_util.socket = ReusingSockets()  # type: ignore[assignment,attr-defined]
