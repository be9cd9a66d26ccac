"""The answer to `POST /v1/classify`, in the shape of the hosted API."""

from collections.abc import Sequence

import numpy as np

from deployments.messages import Classification
from deployments.routing.classification import Labels
from serve_app.api.answers import Choice, ClassificationList, Classified, Prediction
from serve_app.api.rendering import faults, usage
from serve_app.api.served import Served


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
