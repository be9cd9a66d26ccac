"""What a Router takes at once: refused before anything is fetched, bounded in bytes, by lane."""

import http.server
import threading
from collections.abc import AsyncIterator

import pytest

from deployments.errors import ImageSourceError, OverloadedError, RequestTooLargeError
from serve_app.gallery import FOLDER
from tests.deployments.fake_towers import Served

HOST = "127.0.0.1"
BEAR = (FOLDER / "bear.png").read_bytes()
COPIES = 4  # of an image that is sent to a tower: benchmarks/README.md
SMALL = {"max_queued_bytes": 1_000_000, "max_body_bytes": 100_000}
BEAR += b"\0" * (len(BEAR) % 2)


class Site:
    """Serves one picture at every path; counts what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                self.send_response(200)
                if "chunked" not in self.path:
                    self.send_header("Content-Length", str(len(BEAR)))
                self.end_headers()
                site.gate.wait(10)
                self.wfile.write(BEAR)

            def log_message(self, *_: object) -> None:
                """Keep the test output clean."""

        self.server = http.server.ThreadingHTTPServer((HOST, 0), Handler)
        self.port = self.server.server_port
        self.made: list[Served] = []

    def urls(self, count: int, form: str = "plain") -> list[dict[str, str]]:
        return [{"image": f"http://{HOST}:{self.port}/{form}/{i}"} for i in range(count)]

    def served(self, **limits) -> Served:
        """Return a Router that may fetch from here."""
        self.made.append(Served(allow_networks=(f"{HOST}/32",), ports=(self.port,), **limits))
        return self.made[-1]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield site
    site.gate.set()
    for served in site.made:
        await served.router._preparer._images.close()
    site.server.shutdown()
    site.server.server_close()
    thread.join()


async def test_more_images_than_the_server_ever_takes_are_refused_without_a_download(site):
    """The same address twice is one image."""
    served = site.served(max_queued_images=3)
    with pytest.raises(RequestTooLargeError, match="4 images"):
        await served.router.embed(site.urls(4))
    assert site.asked == []
    answer = await served.router.embed(site.urls(3) * 2)
    assert len(answer.embeddings) == 6
    assert len(site.asked) == 3
    assert await served.outstanding() == (0, 0)


async def test_images_over_the_budget_are_refused_without_a_download(site):
    """A refusal costs the parse alone; once there is room the same request is answered."""
    served = site.served(max_queued_images=2)
    served.vision.gate.clear()
    waiting = await served.start(site.urls(1))
    asked = len(site.asked)
    with pytest.raises(OverloadedError, match="1 images are outstanding"):
        await served.router.embed(["a text", *site.urls(2)])
    assert len(site.asked) == asked
    served.vision.gate.set()
    await waiting
    assert len((await served.router.embed(site.urls(2))).embeddings) == 2
    assert await served.outstanding() == (0, 0)


async def test_images_take_their_bytes_from_fetch_to_answer(site):
    """What is guessed before the download is put right by what came; both end with the answer."""
    for form in ("plain", "chunked"):
        served = site.served(**SMALL)
        served.vision.gate.clear()
        waiting = await served.start(site.urls(5, form))
        assert served.router.bytes.outstanding == 5 * COPIES * len(BEAR)
        served.vision.gate.set()
        await waiting
        assert served.router.bytes.outstanding == 0


async def test_images_over_the_bytes_are_refused_without_a_download(site):
    """By the size that images had of late, where nothing else is known of them."""
    served = site.served(**SMALL)
    served.vision.gate.clear()
    with served.router.bytes.hold("interactive") as others:
        others.resize(served.router.bytes.limit("interactive") - 100)
        with pytest.raises(OverloadedError, match="bytes of memory are outstanding"):
            await served.router.embed(site.urls(1))
    assert site.asked == []
    assert await served.outstanding() == (0, 0)


@pytest.mark.parametrize("form", ["plain", "chunked"])
async def test_images_larger_than_was_expected_end_the_request_where_there_is_no_room(site, form):
    """They are never held over the budget; what was fetched is free again."""
    served = site.served(**SMALL)
    served.router._preparer._usual_bytes = 8.0
    with served.router.bytes.hold("interactive") as others:
        others.resize(served.router.bytes.limit("interactive") - COPIES * len(BEAR) - 100)
        with pytest.raises(OverloadedError, match="bytes of memory are outstanding"):
            await served.router.embed(site.urls(3, form), partial=True)
        assert served.router.bytes.outstanding == others.units
    assert await served.outstanding() == (0, 0)
    assert len((await served.router.embed(site.urls(3, form))).embeddings) == 3


async def test_images_that_cannot_be_had_hold_nothing(site):
    """The others are embedded meanwhile, and the budget of images has these alone."""
    served = site.served(**SMALL)
    served.vision.gate.clear()
    bad = [{"image": f"http://127.0.0.3:{site.port}/"}, {"image": "data:image/png;base64,AAAA"}]
    waiting = await served.start([*site.urls(2), *bad], partial=True)
    assert served.router.bytes.outstanding == 2 * COPIES * len(BEAR)
    assert await served.outstanding() == (0, 1)  # both are one picture
    served.vision.gate.set()
    assert set((await waiting).failures) == {2, 3}
    assert (await served.router.record_autoscaling_stats())["images_arrived_total"] == 1


async def test_bulk_work_leaves_room_for_a_query():
    """Bulk texts and images fill their share; a query and a picture are let in beside them."""
    served = Served(max_queued_tokens=4000, max_queued_images=4, bulk_share=0.5)
    served.text.gate.clear()
    served.vision.gate.clear()
    pictures = [{"image": BEAR + b"\0\0" * n} for n in range(3)]
    bulk = await served.start(["word " * 900, *pictures[:2]], lane="bulk")
    for items in (["word " * 200], pictures[2:]):
        with pytest.raises(OverloadedError, match="are outstanding and the limit is"):
            await served.router.embed(items, lane="bulk")
    query = await served.start(["red apple", pictures[2]])
    served.text.gate.set()
    served.vision.gate.set()
    assert len((await bulk).embeddings) == 3
    assert len((await query).embeddings) == 2
    assert await served.outstanding() == (0, 0)


async def test_images_that_cannot_be_fetched_are_no_work_that_arrived(site):
    """Otherwise broken links start replicas; those of the same request that are there count."""
    served = site.served()
    broken = [{"image": f"http://{HOST}:1/{i}"} for i in range(5)]

    async def arrived() -> float:
        return (await served.router.record_autoscaling_stats())["images_arrived_total"]

    with pytest.raises(ImageSourceError):
        await served.router.embed(broken)
    assert await arrived() == 0
    answer = await served.router.embed([*broken, *site.urls(3)], partial=True)
    assert len(answer.failures) == 5
    assert await arrived() == 1  # the three are one picture
    assert await served.outstanding() == (0, 0)
