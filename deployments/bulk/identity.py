"""What the vectors of a job are: written into every file, and compared before resuming."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from deployments.bulk.options import EmbedOptions
from deployments.bulk.reading.plan import Plan
from deployments.bulk.reading.tables import Layout
from deployments.config import ModelConfig
from deployments.model.errors import OptionError
from deployments.model.weights.source import FILES, find

PREFIX = "embedding."
COMPUTED = (
    *("fingerprint", "dimensions", "precision", "task", "implementation"),
    *("device", "dtype", "image_decode", "truncate"),
)
"""What the vector of a row depends on, besides its text and its image."""


@dataclass(frozen=True)
class Identity:
    """All that has to stay the same for two blocks to belong to one output.

    Attributes:
        model: the name that the service gives it.
        fingerprint: of the checkpoint's files, hexadecimal.
        device: of each tower, as JSON; a GPU is `cuda`.
        dtype: what each tower computes in, as JSON.
        image_decode: how images are decoded, and what of them is seen; empty without images.
        columns: text, image and kept columns, as JSON.
        input: fingerprint of the list of files and their sizes, and the rows of a block.
    """

    model: str
    fingerprint: str
    dimensions: int
    precision: str
    task: str
    implementation: str
    device: str
    dtype: str
    image_decode: str
    truncate: bool
    columns: str
    input: str

    @classmethod
    def of(cls, options: EmbedOptions, layout: Layout, plan: Plan) -> "Identity":
        """Describe a job; reads the checkpoint's files."""
        model = options.app.model
        places = {}
        if layout.text:
            places["text"] = _place(model, options.app.text.num_gpus)
        if layout.image:
            places["vision"] = _place(model, options.app.vision.num_gpus)
        columns = {"text": layout.text, "image": layout.image, "kept": layout.kept}
        return cls(
            model=model.served_name,
            fingerprint=fingerprint(model.source, model.revision),
            dimensions=options.width(options.architecture()),
            precision=options.precision,
            task=options.task or "",
            implementation=model.implementation,
            device=json.dumps({name: device for name, (device, _) in places.items()}),
            dtype=json.dumps({name: dtype for name, (_, dtype) in places.items()}),
            image_decode=_decoding(options, places["vision"][0]) if layout.image else "",
            truncate=options.truncate,
            columns=json.dumps(columns),
            input=plan.fingerprint,
        )

    @property
    def files(self) -> str:
        """Fingerprint of the input alone: a row has the same place in it, however it is cut."""
        return self.input.partition(" ")[0]

    def to_json(self) -> bytes:
        """Return the content of the job's file."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Identity":
        """Read a job's file.

        Raises:
            OptionError: it is not one of this version.
        """
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise OptionError(
                f"the output was made by another version ({error}); choose another output"
            ) from None

    def metadata(self) -> dict[str, str]:
        """Return what the files of the output say about their vectors."""
        return {PREFIX + name: str(getattr(self, name)) for name in ("model", *COMPUTED)}

    def has_vectors_of(self, stated: Mapping[bytes, bytes]) -> bool:
        """Tell whether the vectors of a file, by its metadata, are as this job computes them."""
        own = self.metadata()
        names = [PREFIX + name for name in COMPUTED]
        return all(stated.get(name.encode()) == own[name].encode() for name in names)

    def check_same(self, before: "Identity") -> None:
        """Refuse to continue a job that was another.

        Raises:
            OptionError: names what changed, its old and its new value.
        """
        changed = [
            f"{field.name} was {old}, now {new}"
            for field in fields(self)
            if (old := getattr(before, field.name)) != (new := getattr(self, field.name))
        ]
        if changed:
            raise OptionError(
                f"cannot resume, the job has changed: {'; '.join(changed)}; "
                "run it as before, or choose another output"
            )


def fingerprint(source: str, revision: str | None = None) -> str:
    """Return one hash over the checkpoint's files: weights, tokenizer and configuration.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    folder = find(source, revision)
    digest = hashlib.sha256()
    for name in FILES:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _place(model: ModelConfig, num_gpus: float) -> tuple[str, str]:
    """Return the device and the precision of a tower, as far as they can be told from here.

    Replicas with GPUs may run on other machines than this one; theirs is then called `cuda`.
    """
    import torch

    from deployments.model.weights.loading import place

    on_gpu = model.device.startswith("cuda") or (model.device == "auto" and num_gpus > 0)
    if on_gpu and not torch.cuda.is_available():
        return "cuda", model.dtype
    found = place(model.device, model.dtype)
    return found.device.type, found.precision


def _decoding(options: EmbedOptions, device: str) -> str:
    """Return how images are decoded, and what of them is seen."""
    mode = options.app.model.image_decode
    if options.decodes_on_cpu:
        mode = "draft" if mode == "draft" else "exact"
    return json.dumps({"mode": mode, "device": device} | asdict(options.images.seeing))
