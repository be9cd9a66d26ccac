"""The self-check: a tower has to give known rows for pinned inputs, before and while it serves.

A replica whose kernels, precision or memory are wrong answers with vectors that look like any
others; only known ones tell. Needs no torch, and no clock of its own.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deployments.model.output import Rows
from deployments.model.pictures.image import Pixels
from deployments.model.tokenizer import TokenIds

LEAST = 0.98  # a cosine with float32 below which no row is given
USUAL = 0.999  # half precision gives 0.9998 and more; less is worth a look
USUAL_INT8 = 0.995  # the shipped checkpoint's lowest: 0.9994 for texts, 0.9968 for images
UNCHANGED = 0.9999  # a cosine with the rows of the start: the same batches, the same code
STUCK_S = 120.0

# Scripts that take different paths through the tokenizer, a literal special token, and nothing.
SENTENCES = (
    "A beautiful sunset over the beach",
    "海滩上美丽的日落",
    "ビーチに沈む美しい夕日",
    "غروب جميل على الشاطئ",
    "समुद्र तट पर एक सुंदर सूर्यास्त",
    "Ένα όμορφο ηλιοβασίλεμα & <pad> ¿1,234.5?",
    "",
)
PASSAGE = "The tide comes in twice a day, und jedes Mal wäscht es den Sand glatt. 潮が満ちる。 "

Batches = tuple[tuple[NDArray[Any], ...], ...]
"""Pinned inputs as they run together: token ids int32 [n], or pixels uint8 [size, size, 3]."""
Submit = Callable[[Callable[[], float]], "Future[float]"]

logger = logging.getLogger("ray.serve")


class SelfCheck:
    """Keeps a tower's last cosine and says when the tower is not to be trusted.

    Args:
        run: embeds the pinned inputs and returns their lowest cosine with the rows that the tower
            gave at its start; called on the device's thread.
        period_s: seconds from one run to the next; 0 for none after the first.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        run: Callable[[], float],
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cosine = math.nan
        self._has_drifted = False
        self._run = run
        self._period_s = period_s
        self._clock = clock
        self._running: Future[float] | None = None
        self._last_s = clock()

    @property
    def is_running(self) -> bool:
        """Whether a run waits for the device or is on it."""
        return self._running is not None and not self._running.done()

    def accept(self, cosine: float, usual: float = USUAL) -> None:
        """Take the lowest cosine with float32, found before serving; below usual is a warning.

        Raises:
            RuntimeError: it is below `LEAST`, or NaN.
        """
        self.cosine = cosine
        if not passes(cosine):
            raise RuntimeError(
                f"the self-check gives cosine {cosine:.6f}, below {LEAST}: this replica's device, "
                "kernels or weights are not to be trusted; look at the GPU"
            )
        level = logging.INFO if cosine >= usual else logging.WARNING
        logger.log(level, "self-check: lowest cosine with float32 %.6f", cosine)

    def poll(self, submit: Submit) -> None:
        """Take the result of a run that has ended, and begin the next when it is time.

        Args:
            submit: puts a function on the device's thread, behind the batch that runs there.

        Raises:
            RuntimeError: the rows have drifted, or a run does not come to its end.
        """
        if self._running is not None and self._running.done():
            self._collect(self._running)
        if self._has_drifted:
            raise RuntimeError(
                f"the self-check gives cosine {self.cosine:.6f} with the rows of this replica's "
                f"start, below {UNCHANGED}: its device is not to be trusted; look at the GPU"
            )
        elapsed_s = self._clock() - self._last_s
        if self._running is not None:
            if elapsed_s > STUCK_S:
                raise RuntimeError(f"the self-check has not ended within {STUCK_S:.0f} s")
        elif self._period_s and elapsed_s >= self._period_s:
            self._last_s = self._clock()
            self._running = submit(self._run)

    def _collect(self, ended: "Future[float]") -> None:
        self._running, self._last_s = None, self._clock()
        try:
            cosine = ended.result()
        except MemoryError:
            logger.warning("too little device memory for the self-check; later again")
            return
        except Exception:
            logger.exception("the self-check failed")
            cosine = math.nan
        if not passes(cosine, UNCHANGED):
            self.cosine, self._has_drifted = cosine, True


def embed_all(embed: Callable[[Sequence[Any]], Rows], batches: Batches) -> Rows:
    """Embed each batch and return all rows in order."""
    return np.concatenate([embed(batch) for batch in batches])


def lowest_cosine(rows: Rows, expected: Rows) -> float:
    """Return the lowest cosine of two matrices row by row; NaN if a row is NaN or zero."""
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(((rows * expected).sum(axis=1) / lengths).min())


def passes(cosine: float, least: float = LEAST) -> bool:
    """Tell whether a cosine is high enough; NaN is not."""
    return cosine >= least


def pinned_texts(
    encode: Callable[[Sequence[str]], list[TokenIds]], long_tokens: int
) -> tuple[tuple[TokenIds, ...], ...]:
    """Return the text tower's batches: short texts in several scripts, then a long one alone.

    Args:
        encode: the tokenizer; it cuts what is longer than `long_tokens`.
        long_tokens: length of the long text.
    """
    *short, long = encode([*SENTENCES, PASSAGE * (1 + long_tokens // 8)])
    return (tuple(short), (long,))


def pinned_images(size: int) -> tuple[tuple[Pixels, ...], ...]:
    """Return the vision tower's batch: a smooth image and one with hard edges and noise."""
    ramp = np.linspace(0, 255, size, dtype=np.float32)
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 255 - ramp[None, :]), -1)
    steps = np.arange(size) // max(1, size // 8)
    squares = (steps[:, None] + steps[None, :]) % 2 * 190
    noise = np.random.default_rng(7).integers(0, 64, (size, size, 3))
    edges = squares[:, :, None] + noise
    return ((smooth.astype(np.uint8), edges.astype(np.uint8)),)


def shipped_rows(folder: Path, tower: Literal["text", "vision"]) -> tuple[Batches, Rows]:
    """Read the shipped checkpoint's own inputs and the rows that third-party towers gave them."""
    with np.load(folder / "golden.npz") as arrays:
        if tower == "vision":
            return (tuple(arrays["crops"]),), arrays["image_unit"]
        expected = arrays["text_unit"]
    facts = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    ids = tuple(np.array(text["ids"], dtype=np.int32) for text in facts["texts"])
    return (ids,), expected
