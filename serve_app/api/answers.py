"""The JSON of every answer, as types: what is rendered, and what the OpenAPI document says."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class Row(TypedDict):
    """One item's embedding, null where the item failed (`errors: "partial"` only)."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str | dict[str, list[float] | str] | None
    int8_scale: NotRequired[float]


class UsageCount(TypedDict):
    """What the request cost; `total_tokens` is text tokens and the price of the images."""

    total_tokens: int
    prompt_tokens: int
    image_tokens: int
    images: int


class ItemFault(TypedDict):
    """What was wrong with one item (`errors: "partial"` only)."""

    index: int
    code: str
    message: str


class EmbeddingList(TypedDict):
    """The answer to `POST /v1/embeddings`."""

    model: str
    object: Literal["list"]
    usage: UsageCount
    errors: NotRequired[list[ItemFault]]
    data: list[Row]


class Prediction(TypedDict):
    """A label for one item: its score, and the cosine that the score comes from."""

    label: str
    group: NotRequired[str]
    score: float
    similarity: float


class Choice(TypedDict):
    """The label of a group with the highest score."""

    prediction: str
    score: float


class Classified(TypedDict):
    """One item's labels; nothing but `index` and `object` is null unless the item failed."""

    object: Literal["classification"]
    index: int
    prediction: str | None
    score: float | None
    predictions: list[Prediction] | None
    groups: NotRequired[dict[str, Choice]]


class ClassificationList(TypedDict):
    """The answer to `POST /v1/classify`."""

    model: str
    object: Literal["list"]
    usage: UsageCount
    errors: NotRequired[list[ItemFault]]
    data: list[Classified]


class FieldFault(TypedDict):
    """Which field was refused and why."""

    field: str
    message: str
    type: str
    input: bool | int | float | str | None


class OpenAIFault(TypedDict):
    """The error as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str


class Fault(TypedDict):
    """The body of every error; `detail` for Jina's clients, `error` for OpenAI's."""

    detail: str
    code: str
    request_id: str
    errors: NotRequired[list[FieldFault]]
    error: OpenAIFault


class Limits(TypedDict):
    """What a request may hold; more is refused with a 4xx."""

    max_items_per_request: int
    max_classified_items: int
    max_labels: int
    max_tokens_per_text: int
    max_body_bytes: int
    max_image_bytes: int
    max_image_pixels: int
    max_timeout_s: float
    max_batch_file_bytes: int


class ModelEntry(TypedDict):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    source: str
    aliases: list[str]
    modalities: list[str]
    tasks: list[str]
    max_model_len: int
    dimensions: int
    matryoshka_dimensions: list[int]
    embedding_types: list[str]
    content_encodings: list[str]
    image_price_tokens: int
    limits: Limits
    fingerprints: dict[str, str]


class ModelList(TypedDict):
    """The answer to `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelEntry]


class State(TypedDict):
    """The answer of `/health` and `/ready`."""

    status: Literal["alive", "ready", "not ready"]
