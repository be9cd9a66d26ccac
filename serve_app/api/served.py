"""What this server serves, under which names and within which limits."""

from dataclasses import dataclass

from deployments.config import AppConfig
from deployments.model.architecture import QUERY_TASK, Architecture
from serve_app.api.answers import ModelList
from serve_app.api.codings import taken
from serve_app.api.rendering import ENCODINGS


@dataclass(frozen=True)
class Served:
    """What a request is read against."""

    config: AppConfig
    architecture: Architecture

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the model that a request may ask for."""
        model = self.config.model
        return (model.served_name, model.source, *model.aliases)

    @property
    def image_price_tokens(self) -> int:
        """Tokens that `usage` counts for an image."""
        price = self.config.router.image_price_tokens
        return self.architecture.vision.num_tokens if price is None else price


def models_of(served: Served, fingerprints: dict[str, str]) -> ModelList:
    """Return the answer to `GET /v1/models`."""
    config, architecture = served.config, served.architecture
    router, images = config.router, config.images
    kept = config.batches.folder is not None
    towers = {"text": config.text, "image": config.vision}
    return {
        "object": "list",
        "data": [
            {
                "id": config.model.served_name,
                "object": "model",
                "created": 0,
                "owned_by": "jina-clip-serve",
                "source": config.model.source,
                "aliases": list(config.model.aliases),
                "modalities": [name for name, tower in towers.items() if tower.enabled],
                "tasks": [QUERY_TASK],
                "max_model_len": architecture.text.max_tokens,
                "dimensions": architecture.width,
                "matryoshka_dimensions": list(architecture.matryoshka_dimensions),
                "embedding_types": list(ENCODINGS),
                "content_encodings": list(taken()),
                "image_price_tokens": served.image_price_tokens,
                "limits": {
                    "max_items_per_request": router.max_items_per_request,
                    "max_classified_items": router.max_classified_items,
                    "max_labels": router.max_classified_items,
                    "max_tokens_per_text": architecture.text.max_tokens,
                    "max_body_bytes": router.max_body_bytes,
                    "max_image_bytes": images.max_image_bytes,
                    "max_image_pixels": images.max_pixels,
                    "max_timeout_s": router.timeout_s,
                    "max_batch_file_bytes": config.batches.max_file_bytes if kept else 0,
                },
                "fingerprints": fingerprints,
            }
        ],
    }
