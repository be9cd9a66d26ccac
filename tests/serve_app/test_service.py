"""The running service, seen from outside: HTTP and Python handle against ClipModel."""

import base64
import itertools
import random
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.model import ClipModel
from deployments.model.weights.source import DEMO
from serve_app.gallery import FOLDER, LANGUAGES, gallery_images, phrases

TEXTS = ["red apple", "", "かわいい犬がいる", "a <pad> b", "قطة صغيرة جميلة جدا", "long " * 300]
Rows = NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return ClipModel.load()


def encoded(name: str) -> str:
    return base64.b64encode((FOLDER / name).read_bytes()).decode()


def floats(row: str) -> Rows:
    return np.frombuffer(base64.b64decode(row), dtype="<f4")


def test_rows_over_http_and_handle_are_those_of_the_model(service, model):
    """HTTP float, HTTP base64 and the handle give ClipModel's rows."""
    names = [picture.file for picture in gallery_images()[:6]]
    data = [(FOLDER / name).read_bytes() for name in names]
    expected = np.concatenate([model.encode_text(TEXTS), model.encode_image(data)])
    items = [{"text": text} for text in TEXTS] + [{"image": encoded(name)} for name in names]
    by_float = np.array(service.embed(items), dtype=np.float32)
    by_base64 = np.array([floats(row) for row in service.embed(items, embedding_type="base64")])
    answer = service.handle.embed.remote([*TEXTS, *({"image": image} for image in data)]).result()
    for rows in (by_float, by_base64, answer.embeddings):
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert answer.usage.images == 6
    assert np.abs(expected[:6] - expected[6:]).max() > 0.1  # rows that could be mistaken differ


def test_a_shuffled_mixed_request_of_200_items_keeps_its_order(service, model):
    """Each row of a large mixed request belongs to the item at its place."""
    names = itertools.cycle([picture.file for picture in gallery_images()])
    items = [{"text": f"number {n} of many"} for n in range(120)]
    items += [{"image": encoded(next(names))} for _ in range(80)]
    random.Random(7).shuffle(items)
    rows = np.array(service.embed(items), dtype=np.float32)
    for place in range(0, 200, 17):
        item = items[place]
        if "text" in item:
            alone = model.encode_text([item["text"]])
        else:
            alone = model.encode_image([base64.b64decode(item["image"])])
        np.testing.assert_allclose(rows[place], alone[0], atol=1e-5)


def test_rows_do_not_depend_on_their_neighbours(service):
    """An item alone and amid two different crowds has the same row."""
    item = {"image": encoded("bear.png")}
    alone = service.embed([item])[0]
    crowd = service.embed([{"text": "x " * n} for n in range(40)] + [item])[-1]
    pictures_too = service.embed([item, *({"image": encoded("cactus.png")} for _ in range(12))])[0]
    np.testing.assert_allclose(crowd, alone, atol=1e-5)
    np.testing.assert_allclose(pictures_too, alone, atol=1e-5)


def test_the_model_cards_request_is_taken_as_it_stands(service):
    """The curl example of the model card works: texts, image URL and base64, mixed."""
    body = {
        "model": "jina-clip-v2",
        "dimensions": 64,
        "task": "retrieval.query",
        "normalized": True,
        "embedding_type": "float",
        "input": [
            {"text": "غروب جميل على الشاطئ"},
            {"text": "A beautiful sunset over the beach"},
            {"image": service.image_url("sun.png")},
            {"image": encoded("sunflower.png")},
        ],
    }
    answer = service.post(body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [row["index"] for row in data] == [0, 1, 2, 3]
    assert [len(row["embedding"]) for row in data] == [64] * 4
    assert np.linalg.norm(data[2]["embedding"]) == pytest.approx(1, abs=1e-5)


def test_images_come_by_url_data_uri_and_base64_alike(service):
    """The same picture by each route has the same row."""
    data_uri = f"data:image/png;base64,{encoded('bear.png')}"
    by_url, by_uri, by_base64, plain_uri = service.embed(
        [
            {"image": service.image_url("bear.png")},
            {"image": data_uri},
            {"image": encoded("bear.png")},
            data_uri,
        ]
    )
    assert by_url == by_uri == by_base64 == plain_uri


def test_an_openai_request_is_answered_in_its_form(service, model):
    """A string, base64 by `encoding_format`, and unknown fields are taken as OpenAI's SDK sends."""
    body = {"model": "jina-clip-v2", "input": "hello", "encoding_format": "base64", "user": "u"}
    answer = service.post(body).json()
    assert answer["object"] == "list"
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    row = floats(answer["data"][0]["embedding"])
    np.testing.assert_allclose(row, model.encode_text(["hello"])[0], atol=1e-5)


def test_the_query_task_adds_the_prefix_to_texts_only(service, model):
    """Texts change with the task, pictures do not."""
    items = [{"text": "red apple"}, {"image": encoded("bear.png")}]
    plain, query = service.embed(items), service.embed(items, task="retrieval.query")
    expected = model.encode_text(["red apple"], task="retrieval.query")[0]
    np.testing.assert_allclose(query[0], expected, atol=1e-5)
    assert np.abs(np.subtract(query[0], plain[0])).max() > 1e-3
    assert query[1] == plain[1]


def test_dimensions_are_cut_before_normalising(service, model):
    """A width of 48 gives the first 48 numbers scaled to length 1, or as they are."""
    full = model.encode_text(["red apple"], normalized=False)[0]
    cut = service.embed(["red apple"], dimensions=48)[0]
    raw = service.embed(["red apple"], dimensions=48, normalized=False)[0]
    np.testing.assert_allclose(cut, full[:48] / np.linalg.norm(full[:48]), atol=1e-5)
    np.testing.assert_allclose(raw, full[:48], atol=1e-5)


def test_names_reach_the_recall_that_the_checkpoint_states_in_each_language(service):
    """At 1 in its 16 languages; over the gallery 1,929 of 1,936, and 0.998 among five."""
    shown = gallery_images()
    images = np.array(service.embed([{"image": encoded(p.file)} for p in shown]), np.float32)
    stated = stated_recall()
    firsts = among_five = 0
    for code, language in LANGUAGES.items():
        names = np.array(service.embed([p.names[code] for p in shown]), np.float32)
        order = np.argsort(-(names @ images.T), axis=1)
        at_1, at_5 = ((order[:, :k] == np.arange(len(shown))[:, None]).any(1) for k in (1, 5))
        assert at_1.mean() >= stated[language], language
        firsts, among_five = firsts + at_1.sum(), among_five + at_5.sum()
    assert firsts >= 1929
    assert among_five / (16 * len(shown)) == pytest.approx(0.998, abs=0.0005)
    shuffled = np.roll(images, 1, axis=0)
    assert ((names @ shuffled.T).argmax(axis=1) == np.arange(len(shown))).mean() < 0.05


def test_phrases_reach_the_recall_that_the_checkpoint_states(service):
    """Of 60 free phrases 71.7 % find an expected picture first, 80 % among the first five."""
    files = [picture.file for picture in gallery_images()]
    asked = phrases()
    images = np.array(service.embed([{"image": encoded(file)} for file in files]), np.float32)
    rows = np.array(service.embed([phrase.text for phrase in asked]), np.float32)
    order = np.argsort(-(rows @ images.T), axis=1)
    for depth, stated in ((1, 0.717), (5, 0.800)):
        hits = [
            any(files[i] in phrase.expected for i in row[:depth])
            for phrase, row in zip(asked, order, strict=True)
        ]
        assert np.mean(hits) == pytest.approx(stated, abs=0.001)


def stated_recall() -> dict[str, float]:
    """Read the README's table: language, then recall at 1 / 5 / 10 from text to Noto pictures."""
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (\w+) \| ([\d.]+) / [\d.]+ / [\d.]+ \|", readme, re.MULTILINE)
    table = {language: float(at_1) for language, at_1 in lines}
    assert set(LANGUAGES.values()) <= set(table)
    return table


def test_models_names_what_is_served_and_its_widths(service):
    """`/v1/models` names the checkpoint and its dimensions; `/health` and `/ready` say yes."""
    entry = service.client.get("/v1/models").json()["data"][0]
    assert (entry["id"], entry["dimensions"]) == ("jina-clip-demo", 192)
    assert service.client.get("/health").status_code == 200
    assert service.client.get("/ready").json() == {"status": "ready"}
