"""The Python client: `Client` and `AsyncClient`."""

from serve_app.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]
