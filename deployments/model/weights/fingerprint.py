"""What a vector depends on besides its input, as a short digest; needs no torch."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

DIGITS = 16
NUM_SAMPLES = 64
SAMPLE_BYTES = 64 * 1024


def preprocessing_digest(folder: Path, files: Iterable[str]) -> str:
    """Return a digest of the files that decide what a text or an image is turned into."""
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode())
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:DIGITS]


def tower_digest(weights: Path, choices: Mapping[str, str]) -> str:
    """Return digests of the weights and, behind it, of how they run: precision, image decoding.

    The first is the same for both towers of a checkpoint. Of the weights it reads the header
    (names, shapes and types of all tensors) and evenly spaced samples, about 4 MiB: milliseconds
    instead of seconds, and weights that were trained further differ in every sample.
    """
    size = weights.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    step = max(SAMPLE_BYTES, size // NUM_SAMPLES)
    with weights.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")  # as safetensors files begin
        digest.update(file.read(min(header_bytes, size)))
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:DIGITS] + combine(f"{sorted(choices.items())}")


def weights_of(digest: str) -> str:
    """Return the part of a `tower_digest` that is of the weights alone."""
    return digest[:DIGITS]


def combine(*digests: str) -> str:
    """Return one digest for several."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:DIGITS]
