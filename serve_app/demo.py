"""The demonstration: one mixed request over HTTP, ranked, printed and drawn."""

import base64
import json
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from deployments.config import AppConfig, RouterConfig, TextTowerConfig, VisionTowerConfig
from serve_app import contact_sheet
from serve_app.gallery import LANGUAGES, GalleryImage, Query, gallery_images, phrases
from serve_app.listening import choose_ingress, free_port, prepare_environment
from serve_app.server import running

NUM_IMAGES = 60
NUM_SHOWN = 5

# Three replicas share a small machine.
CONFIG = AppConfig(
    text=TextTowerConfig(num_cpus=0.5),
    vision=VisionTowerConfig(num_cpus=1, decode_threads=2),
    router=RouterConfig(num_cpus=0.5),
)

Ranking = list[list[tuple[GalleryImage, float]]]


@dataclass(frozen=True)
class Recall:
    """Share of queries with an expected image first, and among the first five."""

    at_1: float
    at_5: float


def run(output: Path, console: Console) -> None:
    """Start the service, ask once, print the matches, write the contact sheet, stop everything."""
    ingress, _ = choose_ingress(public=False, config=CONFIG, port=free_port())
    prepare_environment(ingress)
    shown, queries = choose()
    started_s = time.monotonic()
    with console.status("Starting Ray and three deployments") as status, ExitStack() as stack:
        url = stack.enter_context(running(CONFIG, ingress))
        console.print(f"Serving at {url} after {time.monotonic() - started_s:.1f} s")
        status.update(f"Asking for {len(shown)} images and {len(queries)} texts")
        asked_s = time.monotonic()
        rows = request(url, shown, queries)
        took_s = time.monotonic() - asked_s
        console.print(f"One request, {len(rows)} vectors of {rows.shape[1]} in {took_s:.1f} s\n")
        status.update("Stopping")
    ranking = rank(rows, shown, len(queries))
    report(console, queries, ranking)
    path = output / "contact-sheet.png"
    output.mkdir(parents=True, exist_ok=True)
    languages = len({query.language for query in queries})
    title = f"{len(shown)} images, ranked by texts in {languages} languages"
    contact_sheet.draw(queries, [row[:NUM_SHOWN] for row in ranking], title, path)
    console.print(f"\nContact sheet: {path}")


def choose() -> tuple[list[GalleryImage], list[Query]]:
    """Return images of the gallery, and a name and a phrase in each language about them."""
    shown = gallery_images()[::2][:NUM_IMAGES]
    files = {image.file for image in shown}
    queries = []
    for number, language in enumerate(LANGUAGES):
        image = shown[(7 * number + 3) % len(shown)]
        queries.append(Query(image.names[language], language, (image.file,)))
    asked = set()
    for phrase in phrases():
        if phrase.language not in asked and files.intersection(phrase.expected):
            asked.add(phrase.language)
            queries.append(phrase)
    order = list(LANGUAGES)
    return shown, sorted(queries, key=lambda query: order.index(query.language))


def request(
    url: str, shown: Sequence[GalleryImage], queries: Sequence[Query]
) -> NDArray[np.float32]:
    """Send one mixed request, as any HTTP client would; float32 rows, images first."""
    images = [base64.b64encode(image.path.read_bytes()).decode() for image in shown]
    body = {
        "model": "jina-clip-v2",
        "task": "retrieval.query",
        "input": [{"image": image} for image in images] + [{"text": q.text} for q in queries],
    }
    call = urllib.request.Request(
        f"{url}/v1/embeddings",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(call, timeout=60) as response:
        answer = json.load(response)
    return np.array([item["embedding"] for item in answer["data"]], dtype=np.float32)


def rank(rows: NDArray[np.float32], shown: Sequence[GalleryImage], num_queries: int) -> Ranking:
    """Order the images for each query by cosine, best first."""
    scores = rows[len(shown) :] @ rows[: len(shown)].T
    assert len(scores) == num_queries
    return [[(shown[i], float(row[i])) for i in np.argsort(-row)] for row in scores]


def recall(queries: Sequence[Query], ranking: Ranking) -> Recall:
    """Count the queries that find an expected image."""

    def share(depth: int) -> float:
        found = [
            any(image.file in query.expected for image, _ in row[:depth])
            for query, row in zip(queries, ranking, strict=True)
        ]
        return sum(found) / len(found)

    return Recall(share(1), share(5))


def report(console: Console, queries: Sequence[Query], ranking: Ranking) -> None:
    """Print each query's best matches, and the recall."""
    table = Table(title="Best matches by cosine; an expected image in green")
    for heading in ("language", "query", "first", "second", "third"):
        table.add_column(heading)
    for query, row in zip(queries, ranking, strict=True):
        best = [
            f"[green]{image.english}[/] {score:.2f}"
            if image.file in query.expected
            else f"{image.english} {score:.2f}"
            for image, score in row[:3]
        ]
        table.add_row(LANGUAGES[query.language], query.text, *best)
    console.print(table)
    total = recall(queries, ranking)
    console.print(
        f"Recall over {len(queries)} queries in {len({q.language for q in queries})} languages: "
        f"{total.at_1:.0%} first, {total.at_5:.0%} among the first five"
    )
