"""What a competent engineer writes in an afternoon: the baseline of `benchmarks.serve`.

FastAPI in one process, the towers of transformers and timm (`implementation="reference"`), texts in
padded batches of 32 sorted by length as sentence-transformers does it, a lock around the model.

    python -m benchmarks.harness.baseline_server --port 8080 [--source demo] [--device cpu]
"""

import argparse
import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from deployments.model import ClipModel
from deployments.model.output import Rows, finish


class Request(BaseModel):
    """The part of the embedding API that the benchmark uses."""

    input: list[dict[str, str]]
    dimensions: int | None = None
    embedding_type: str = "float"


def build(source: str, device: str) -> FastAPI:
    """Load the model, on a GPU in bfloat16, and return the application."""
    model = ClipModel.load(source, device=device, dtype="auto", implementation="reference")
    lock = asyncio.Lock()
    app = FastAPI()

    def embed(items: list[dict[str, str]]) -> Rows:
        texts = [(i, item["text"]) for i, item in enumerate(items) if "text" in item]
        images = [(i, item["image"]) for i, item in enumerate(items) if "image" in item]
        rows = np.empty((len(items), model.width), dtype=np.float32)
        if texts:
            found = model.encode_text([text for _, text in texts], normalized=False, batch_size=32)
            rows[[i for i, _ in texts]] = found
        if images:
            data = [base64.b64decode(image) for _, image in images]
            rows[[i for i, _ in images]] = model.encode_image(data, normalized=False, batch_size=32)
        return rows

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> dict[str, Any]:
        async with lock:
            rows = await asyncio.to_thread(embed, request.input)
        rows = finish(rows, request.dimensions)
        if request.embedding_type == "base64":
            encoded: list[Any] = [base64.b64encode(row).decode() for row in rows]
        else:
            encoded = rows.tolist()
        data = [
            {"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(encoded)
        ]
        return {"model": source, "object": "list", "data": data, "usage": {"total_tokens": 0}}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--source", default="demo")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    uvicorn.run(build(options.source, options.device), port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
