"""A port whose connections a process closed is taken again at once."""

import errno
import os
import socket

import pytest

from serve_app.api.sockets import ReusingSocket, ReusingSockets

IN_USE = os.strerror(errno.EADDRINUSE)


@pytest.fixture
def closed_by_the_server() -> int:
    """A port with a connection that its listener closed first, as a killed process does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            accepted, _ = listener.accept()
            accepted.close()
            assert caller.recv(1) == b""
    return port


def test_a_port_that_only_closed_connections_have_is_bound(closed_by_the_server):
    """A plain socket, as Ray Serve has it, is refused."""
    with socket.socket() as plain, pytest.raises(OSError, match=IN_USE):
        plain.bind(("127.0.0.1", closed_by_the_server))
    with ReusingSockets().socket(socket.AF_INET, socket.SOCK_STREAM) as ours:
        ours.bind(("127.0.0.1", closed_by_the_server))
        ours.listen()


def test_a_port_that_somebody_listens_on_is_refused():
    """Also to such a socket."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ReusingSocket() as ours,
        pytest.raises(OSError, match=IN_USE),
    ):
        ours.bind(listener.getsockname())


def test_everything_else_is_the_modules_own():
    """Ray Serve's module asks for constants too."""
    assert ReusingSockets().AF_INET6 is socket.AF_INET6
