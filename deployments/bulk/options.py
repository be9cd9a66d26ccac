"""What a bulk job embeds and how: one frozen object that travels to every stage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deployments.checked import Frozen, PositiveInt
from deployments.config import AppConfig
from deployments.image_config import ImageConfig
from deployments.model.architecture import Architecture
from deployments.model.errors import OptionError
from deployments.model.output import check_dimensions
from deployments.model.weights.source import TOKENIZER_FILES, find

Precision = Literal["float32", "float16", "int8", "binary"]
BITS = 8  # vector components in one byte of the binary precision


class PoolSize(Frozen):
    """Bounds of one stage's pool of actors."""

    min: PositiveInt = 1
    max: PositiveInt = 1

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"{self.min}:{self.max} has a minimum above its maximum")
        return self

    @classmethod
    def parse(cls, value: str) -> Self:
        """Read `"4"` or `"1:4"`.

        Raises:
            OptionError: anything else.
        """
        least, colon, most = value.partition(":")
        try:
            return cls(min=int(least), max=int(most if colon else least))
        except ValueError:
            raise OptionError(
                f"replicas are {value!r}; write a number as 4, or bounds as 1:4"
            ) from None


class EmbedOptions(Frozen):
    """How rows become vectors."""

    text: str | None = None
    """Column of the texts."""
    image: str | None = None
    """Column of the images: encoded bytes, paths, URLs, data URIs or base64."""
    task: Literal["retrieval.query"] | None = None
    dimensions: PositiveInt | None = None
    """Width to truncate to before normalising; None is the full width."""
    precision: Precision = "float32"
    truncate: bool = False
    """Cut texts over the token limit instead of giving them an error."""
    folder: str = ""
    """Where relative paths of images start: a folder or an s3:// prefix."""
    app: AppConfig = AppConfig()
    """The model, the batch budgets, and CPUs and GPUs of one replica of each tower."""
    images: ImageConfig = ImageConfig(local_files=True)
    text_replicas: PoolSize = PoolSize()
    vision_replicas: PoolSize = PoolSize()
    workers: PoolSize = PoolSize()
    """The CPU stage that tokenises, fetches and decodes."""
    batch_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows that a stage takes at once; None takes the dataset's blocks as they are."""

    @property
    def decodes_on_cpu(self) -> bool:
        """Whether the CPU stage decodes images; where a GPU can, its tower does."""
        return self.app.vision.num_gpus == 0 or self.app.model.image_decode in ("exact", "draft")

    @property
    def has_texts_on_gpu(self) -> bool:
        """Whether texts alone are embedded, on GPUs, which do them faster than stages hand over."""
        return self.image is None and self.app.text.num_gpus > 0

    @property
    def max_replicas(self) -> int:
        """The most replicas that the job's towers may have together."""
        text = self.text_replicas.max if self.text else 0
        return text + (self.vision_replicas.max if self.image else 0)

    def architecture(self) -> Architecture:
        """Read the sizes of the model, from its small files alone.

        Raises:
            CheckpointError: there is no such model.
        """
        return Architecture.read(
            find(self.app.model.source, self.app.model.revision, TOKENIZER_FILES)
        )

    def width(self, architecture: Architecture) -> int:
        """Return the components of a vector.

        Raises:
            OptionError: more than the model has, or no multiple of 8 in the binary precision.
        """
        width = check_dimensions(self.dimensions, architecture.width)
        if self.precision == "binary" and width % BITS:
            raise OptionError(f"dimensions is {width}; the binary precision needs a multiple of 8")
        return width
