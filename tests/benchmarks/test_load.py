"""The load generator against a small server that answers as it is told."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from benchmarks.harness.load import Generator, error_code, ready
from benchmarks.harness.mixes import PHOTO_SIZE, PROBE, calls, counts, distinct_photos, poisson
from benchmarks.harness.outcomes import Outcome
from deployments.model.pictures.decode import gpu_suits
from deployments.model.pictures.image import open_image

Answer = Callable[[list[dict[str, str]]], web.Response]


def row(*values: float) -> str:
    return base64.b64encode(np.array(values, np.float32).tobytes()).decode()


def rows(items: list[dict[str, str]]) -> web.Response:
    """Answer each item; the probe has a row of its own."""
    data: list[dict[str, Any]] = [
        {"index": index, "embedding": row(1, 0) if item == PROBE else row(0, 1)}
        for index, item in enumerate(items)
    ]
    return web.json_response({"data": data}, headers={"server-timing": "towers;dur=3"})


class Server:
    """Answers by a function once it may, and remembers how many requests it held at once."""

    def __init__(self) -> None:
        self.answer: Answer = rows
        self.waits: list[str] = []
        self.held = self.most_held = 0
        self.has_five, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()
        self.url = ""

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.waits.append(request.headers["x-timeout-s"])
        self.held += 1
        self.most_held = max(self.held, self.most_held)
        if self.held == 5:
            self.has_five.set()
        await self.may_answer.wait()
        self.held -= 1
        return self.answer(body["input"])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found, app = Server(), web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/embeddings", found.embeddings)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


def generator(server: Server, *mixes: str, requests: int, check: bool = False) -> Generator:
    return Generator(server.url, islice(calls(*mixes, probe=check), requests), check=check)


async def only(found: Generator) -> Outcome:
    await found.closed(60, 1)
    (outcome,) = found.outcomes
    return outcome


async def test_a_closed_loop_ends_with_its_requests(server: Server) -> None:
    """Each caller waits for its answer, so the server holds as many as there are callers."""
    found = generator(server, "query", requests=7)
    await found.closed(60, 3)
    assert [x.status for x in found.outcomes] == [200] * 7
    assert server.most_held <= 3
    assert set(server.waits) == {"60.0"}
    assert all(x.is_right and x.stages_ms == {"towers": 3} for x in found.outcomes)


async def test_a_closed_loop_ends_with_its_time(server: Server) -> None:
    found = generator(server, "query", requests=10**9)
    await found.closed(0.2, 2)
    assert 0 < len(found.outcomes) < 10**5


async def test_an_open_loop_sends_whatever_becomes_of_the_requests_before(server: Server) -> None:
    """All are sent while none has been answered, and latencies count from when they were due."""
    server.may_answer.clear()
    found = generator(server, "query", requests=20)
    running = asyncio.create_task(found.open(iter([0.0] * 5)))
    await server.has_five.wait()
    assert not found.outcomes
    server.may_answer.set()
    await running
    assert [x.status for x in found.outcomes] == [200] * 5
    assert all(x.due_s <= x.sent_s <= x.ended_s for x in found.outcomes)


async def test_a_refusal_has_its_code_and_its_wait(server: Server) -> None:
    server.answer = lambda _: web.json_response(
        {"code": "OVERLOADED"}, status=429, headers={"retry-after-ms": "1500"}
    )
    outcome = await only(generator(server, "query", requests=1))
    assert (outcome.status, outcome.code, outcome.retry_after_s) == (429, "OVERLOADED", 1.5)


async def test_without_an_answer_the_status_is_0() -> None:
    found = Generator("http://127.0.0.1:9", islice(calls("query"), 1))
    outcome = await only(found)
    assert (outcome.status, outcome.code) == (0, "ClientConnectorError")


def test_an_error_without_a_code_is_named_by_its_text() -> None:
    assert error_code(b'{"code": "X"}') == "X"
    assert error_code(b"<html>bad gateway</html>\n") == "<html>bad gateway</html>"
    assert error_code(b"") == "no body"


def backwards(items: list[dict[str, str]]) -> web.Response:
    data = json.loads(bytes(rows(items).body))["data"]  # type: ignore[arg-type]
    return web.json_response({"data": data[::-1]})


def other_rows() -> Answer:
    """Answer rightly once, then with another row for the probe."""
    times: Iterator[bool] = iter([True])
    return lambda items: rows(items) if next(times, False) else rows([{}] * len(items))


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        (rows, ["", ""]),
        (backwards, ["wrong number or order"] * 2),
        (lambda items: rows(items[1:]), ["wrong number or order"] * 2),
        (other_rows(), ["", "wrong row"]),
    ],
)
async def test_a_checked_answer_has_the_right_rows(
    server: Server, answer: Answer, codes: list[str]
) -> None:
    server.answer = answer
    found = generator(server, "4 texts", requests=2, check=True)
    await found.closed(60, 1)
    assert [x.code for x in found.outcomes] == codes


def test_a_mix_says_what_is_in_a_request() -> None:
    assert counts("32 texts") == (32, 0, 0, "image")
    assert counts("1 text of 300 words") == (1, 300, 0, "image")
    assert counts("16 texts + 4 images") == (16, 0, 4, "image")
    assert counts("1 image") == (0, 0, 1, "image")
    assert counts("8 photos") == (0, 0, 8, "photo")
    call = next(calls("2 texts of 300 words + 3 images"))
    items = json.loads(call.body)["input"]
    assert [len(x["text"].split()) for x in items if "text" in x] == [300, 300]
    assert (call.items, len({x["image"] for x in items if "image" in x})) == (5, 3)


def test_photos_are_jpegs_that_a_gpu_takes_and_no_two_are_alike() -> None:
    photos = [base64.b64decode(photo) for photo in islice(distinct_photos(), 10)]
    assert len(set(photos)) == 10
    for photo in photos:
        image = open_image(photo, 10**7)
        assert image.size == PHOTO_SIZE
        assert gpu_suits(photo, image, 512)
    np.testing.assert_array_equal(*(np.asarray(Image.open(BytesIO(photos[i]))) for i in (0, 8)))


@pytest.mark.parametrize(
    "mix", ["", "texts", "4 pictures", "4 texts of words", "4 images + 1 text"]
)
def test_an_unknown_mix_is_refused(mix: str) -> None:
    with pytest.raises(ValueError, match="is not a mix such as"):
        next(calls(mix))


def test_requests_are_the_same_in_every_run_and_of_all_mixes() -> None:
    first, again = (list(islice(calls("query", "2 texts", "1 image"), 30)) for _ in range(2))
    assert first == again
    assert {x.mix for x in first} == {"query", "2 texts", "1 image"}


def test_times_at_random_have_the_mean_rate() -> None:
    times_s = list(poisson(100, 20))
    assert times_s == sorted(times_s)
    assert len(times_s) == pytest.approx(2000, rel=0.1)
    assert times_s[-1] < 100


def test_the_first_request_is_made_before_the_clock_starts() -> None:
    made = []

    def requests() -> Iterator[Any]:
        for number in range(3):
            made.append(number)
            yield number

    prepared = ready(requests())
    assert made == [0]
    assert list(prepared) == [0, 1, 2]
    assert list(ready(iter(()))) == []
