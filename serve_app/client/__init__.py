"""The Python client: `Client` and `AsyncClient`, and `Scores` that their `classify` gives."""

from serve_app.client.calls import Scores
from serve_app.client.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "Scores"]
