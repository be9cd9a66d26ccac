"""The answer to `POST /v1/classify`: JSON in the shape of the hosted API, .npy or Arrow."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import orjson

from deployments.messages import Classification
from deployments.routing.classification import Labels
from serve_app.api import arrow
from serve_app.api.answers import Choice, ClassificationList, Classified, Prediction
from serve_app.api.rendering import JSON, NPY, faults, messages, npy, usage
from serve_app.api.served import Served

SCORE_BYTES = 80  # of a score with its label in JSON, about


def render(found: Classification, served: Served, media_type: str) -> bytes:
    """Return the body of an answer; .npy holds the scores alone, float32 [items, labels].

    Raises:
        RequestError: the body type has no place for items that failed.
    """
    return BODIES[media_type](found, served)


def size_bytes(found: Classification) -> int:
    """Return about how large an answer is in JSON."""
    return SCORE_BYTES * found.scores.size


def answer_of(found: Classification, served: Served) -> ClassificationList:
    """Return the JSON of an answer: items in the order of the request, labels likewise.

    `prediction` is the best of all labels, or of those of the first group; every group has its own
    in `groups`.
    """
    parts = Labels(found.labels, found.groups).parts()
    answer: ClassificationList = {
        "model": served.names[0],
        "object": "list",
        "usage": usage(found.usage, served.image_price_tokens),
        "data": [_item(found, index, parts) for index in range(len(found.scores))],
    }
    if found.failures:
        answer["errors"] = faults(found.failures)
    return answer


def _json(found: Classification, served: Served) -> bytes:
    return orjson.dumps(answer_of(found, served))


def _npy(found: Classification, _served: Served) -> bytes:
    return npy(found.scores, found.failures)


def _arrow(found: Classification, served: Served) -> bytes:
    """Return `index`, `score` and `similarity` by label, `error`; the labels are in the schema."""
    columns = {"score": found.scores, "similarity": found.similarities}
    facts = {
        "model": served.names[0],
        "labels": found.labels,
        "groups": found.groups,
        "usage": usage(found.usage, served.image_price_tokens),
    }
    return arrow.stream(columns, messages(found.failures), orjson.dumps(facts))


BODIES: Mapping[str, Callable[[Classification, Served], bytes]] = {
    JSON: _json,
    NPY: _npy,
    arrow.MEDIA_TYPE: _arrow,
}


def _item(found: Classification, index: int, parts: Sequence[slice]) -> Classified:
    if index in found.failures:
        nothing: Classified = {
            "object": "classification",
            "index": index,
            "prediction": None,
            "score": None,
            "predictions": None,
        }
        return nothing
    scores, similarities = found.scores[index].tolist(), found.similarities[index].tolist()
    predictions: list[Prediction] = []
    for place, label in enumerate(found.labels):
        one: Prediction = {
            "label": label,
            "score": scores[place],
            "similarity": similarities[place],
        }
        if found.groups:
            one["group"] = found.groups[place]
        predictions.append(one)
    choices = [_choice(predictions[part]) for part in parts]
    item: Classified = {
        "object": "classification",
        "index": index,
        "prediction": choices[0]["prediction"],
        "score": choices[0]["score"],
        "predictions": predictions,
    }
    if found.groups:
        item["groups"] = {
            found.groups[part.start]: choice for part, choice in zip(parts, choices, strict=True)
        }
    return item


def _choice(predictions: list[Prediction]) -> Choice:
    best = predictions[int(np.argmax([one["score"] for one in predictions]))]
    return {"prediction": best["label"], "score": best["score"]}
