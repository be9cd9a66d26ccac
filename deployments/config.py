"""The whole configuration: one frozen object, validated once, passed to every deployment.

Precedence: `key=value` on the command line, then the configuration file, then these defaults.
Nothing else of the product reads settings from the environment.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deployments.checked import MIB, Device, Folder, Frozen, Gpus, Key, PositiveFloat, PositiveInt
from deployments.image_config import ImageConfig
from deployments.rehearsal import Targets

SERVE_SETTINGS: Mapping[str, float] = {
    "metrics_interval_s": 1.0,
    "look_back_period_s": 5.0,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 10.0,
}
"""What goes with this policy into Serve's `autoscaling_config`: it smooths and holds by itself."""


class ScalingConfig(Frozen):
    """Bounds of a deployment's replicas; the policy is `deployments.autoscaling.TwoTowerPolicy`."""

    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: PositiveInt
    upscale_delay_s: Annotated[float, Field(ge=0)] = SERVE_SETTINGS["upscale_delay_s"]
    downscale_delay_s: Annotated[float, Field(ge=0)] = SERVE_SETTINGS["downscale_delay_s"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) exceeds max_replicas ({self.max_replicas})"
            )
        return self


class TargetsConfig(Frozen):
    """What the autoscaling policy aims for; the Router's `user_config`, changed without restart."""

    target_tokens_per_replica: PositiveFloat = 1_000_000
    """Outstanding tokens for each replica, where its throughput is not known."""
    target_images_per_replica: PositiveFloat = 1_000
    target_delay_s: Annotated[float, Field(ge=0)] = Targets.delay_s
    """How long clearing what waits may take; 0 counts outstanding work instead."""
    on_time: Annotated[float, Field(gt=0.5, lt=1)] = Targets.on_time
    """Share of the work that should not wait for a replica. What to hold follows from it and from
    the traffic of the last hours."""
    scale_to_zero: bool = False


class PolicyConfig(Frozen):
    """Arguments of the autoscaling policy; changing one restarts replicas, unlike the targets."""

    startup_s: PositiveFloat = Targets.startup_s
    """Seconds from the decision for a replica to its first batch, until the first have started:
    how long these took counts from then on."""


class ReplicasConfig(Frozen):
    """How often a deployment runs."""

    num_replicas: PositiveInt = 1
    scaling: ScalingConfig | None = None
    """If set, the replicas follow the work between its bounds, and `num_replicas` is not used."""
    num_cpus: PositiveFloat = 1

    @property
    def least_replicas(self) -> int:
        """Those it starts with."""
        return self.scaling.min_replicas if self.scaling else self.num_replicas

    @property
    def most_replicas(self) -> int:
        """Those it may come to."""
        return self.scaling.max_replicas if self.scaling else self.num_replicas


class ModelConfig(Frozen):
    """Which checkpoint is served, and how it runs."""

    source: str = "demo"
    """`demo`, a folder, a hub id such as `jinaai/jina-clip-v2`, or `s3://bucket/prefix`."""
    revision: str | None = None
    """Commit of a hub id; the published model has a pinned default."""
    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """`int8` is for CPUs with AVX512-VNNI or AMX; its vectors are never mixed with others."""
    attention: str = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    image_decode: Literal["auto", "exact", "draft", "gpu"] = "auto"
    """`draft` decodes large JPEGs several times faster; `gpu` on the device; both differ from
    `exact` by roundings."""
    implementation: Literal["native", "reference"] = "native"
    self_check_period_s: Annotated[float, Field(ge=0)] = 300
    """How often a replica checks its rows for pinned inputs, beside at its start; 0 for never."""
    name: str | None = None
    """The name in answers and in `/v1/models`; by default the source, shortened."""
    aliases: tuple[str, ...] = ("jina-clip-v2", "jinaai/jina-clip-v2")
    """Other names that a request may ask for."""

    @property
    def served_name(self) -> str:
        """The name in answers and in `/v1/models`."""
        if self.name is not None:
            return self.name
        last = self.source.rstrip("/").rsplit("/", 1)[-1]
        return "jina-clip-demo" if self.source == "demo" else last


class TowerConfig(ReplicasConfig):
    """Replicas of one tower. `enabled: false` leaves the tower out of the application."""

    enabled: bool = True
    num_gpus: Gpus = 0
    max_ongoing_requests: PositiveInt = 512
    """Calls a replica holds at once; more wait in the Router. A safety stop, not a budget."""


class TextTowerConfig(TowerConfig):
    """The text tower; its cost is tokens."""

    max_batch_tokens: PositiveInt = 16384
    """Most tokens that the device runs at once. A CPU takes 2,048 at most, to keep waits short, and
    a GPU what takes it about 100 ms."""
    max_batch_sequences: PositiveInt = 512


class VisionTowerConfig(TowerConfig):
    """The vision tower; its cost is images."""

    max_batch_images: PositiveInt = 32
    """Most images that the device runs at once. A CPU takes at most 8, so that others wait less,
    and a GPU what takes it about 100 ms."""
    decode_threads: PositiveInt = 4


class RouterConfig(ReplicasConfig):
    """The ingress: limits of a request, and how it is cut into chunks."""

    max_ongoing_requests: PositiveInt = 1024
    max_body_bytes: PositiveInt = 32 * MIB
    body_timeout_s: PositiveFloat = 60
    """Longest time for a body to arrive."""
    min_body_bytes_per_s: PositiveInt = 1024
    """Least pace of a body, on average after its first 5 s; below it the request ends with 408."""
    max_items_per_request: PositiveInt = 8192
    max_classified_items: PositiveInt = 512
    """Items of a request for labels; likewise its labels."""
    max_tokens_per_chunk: PositiveInt = 8192
    max_images_per_chunk: PositiveInt = 8
    max_chunk_bytes: PositiveInt = 32 * MIB
    """Encoded images in one call to the tower; below the transport's message limit."""
    max_chunks_in_flight: PositiveInt = 8
    """Chunks of one request and modality under way at once; lets others in between."""
    max_queued_tokens: PositiveInt = 2_000_000
    """Tokens that one Router holds from admission to answer; over it requests get 429."""
    max_queued_images: PositiveInt = 4096
    max_queued_bytes: PositiveInt = 1024 * MIB
    """Memory in which one Router holds bodies, and images that were fetched or unpacked from them.
    An image counts four times while it is sent to a tower: so many copies there are."""
    bulk_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """The part of these three that the lane `bulk` may hold; the rest is for interactive work."""
    cache_bytes: Annotated[int, Field(ge=0)] = 64 * MIB
    """Memory in each Router for rows of texts seen before; 0 keeps none. It is a cache, no limit:
    Routers do not share it, so a text is computed once for each at most. A row of the published
    model takes 4.5 KB, so 64 MiB hold 14,800. Images are not kept. Rows of a tower that has been
    replaced go when its successor is heard, with its first answer or within about 10 s."""
    timeout_s: PositiveFloat = 60
    """Longest time for a request; a request may ask for less."""
    asleep: Literal["hold", "refuse"] = "hold"
    """What a request meets that finds a tower scaled to zero: it waits for the start, up to its
    deadline, or is 503 with the time of a start (`policy.startup_s`) as `Retry-After`. Either wakes
    the tower."""
    playground: bool = True
    """Serve the page to try it on, at `/`."""
    max_json_depth: Annotated[int, Field(ge=4)] = 16
    image_price_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens that `usage` counts for an image; by default those that the vision tower runs."""

    @model_validator(mode="after")
    def _check_scaling(self) -> Self:
        if self.least_replicas < 1:
            raise ValueError(
                "router.scaling.min_replicas is 0, but HTTP comes in by a Router; set 1"
            )
        if self.max_queued_bytes * self.bulk_share < 4 * self.max_body_bytes:
            raise ValueError(
                f"router.max_queued_bytes ({self.max_queued_bytes:,}) times router.bulk_share is "
                f"below 4 times router.max_body_bytes ({self.max_body_bytes:,}): a body and the "
                "images in it, with their copies, must fit"
            )
        return self


class CorsConfig(Frozen):
    """Pages of other origins whose scripts may call the API; none by default."""

    allow_origins: tuple[
        Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/]+)$")], ...
    ] = ()
    """Such as `https://app.example`, without a path; `*` for any. Keys are still asked for."""


class BatchesConfig(Frozen):
    """Files of many requests (`/v1/files`, `/v1/batches`)."""

    folder: Folder | None = None
    """Where files and batches are kept; every node that has a Router reaches it. Without one there
    are no batches, but that `up` for this machine alone has a folder for as long as it runs."""
    max_file_bytes: PositiveInt = 2048 * MIB
    files_expire_after_s: PositiveInt | None = 30 * 24 * 3600
    """How long a file is kept, an upload or what a batch has written, where its maker does not say;
    null for ever."""
    lines_under_way: PositiveInt = 8
    """Of all batches that a Router works off."""


class AppConfig(Frozen):
    """Everything that `build_app` needs."""

    model: ModelConfig = ModelConfig()
    text: TextTowerConfig = TextTowerConfig()
    vision: VisionTowerConfig = VisionTowerConfig()
    router: RouterConfig = RouterConfig()
    images: ImageConfig = ImageConfig()
    cors: CorsConfig = CorsConfig()
    batches: BatchesConfig = BatchesConfig()
    targets: TargetsConfig = TargetsConfig()
    log_format: Literal["text", "json"] = "text"
    """How replicas write their logs; `json` has a field for the request's id."""
    policy: PolicyConfig = PolicyConfig()
    api_keys: tuple[Key, ...] = ()
    """If not empty, requests must carry one of them as `Authorization: Bearer KEY`."""
    api_keys_file: str | None = None
    """YAML file of hashed keys with names, lanes and limits; read again when it changes."""
    api_keys_variable: str | None = None
    """Environment variable of the Router with keys, separated by commas."""

    @property
    def asks_for_keys(self) -> bool:
        """Whether requests must carry an API key."""
        return bool(self.api_keys or self.api_keys_file or self.api_keys_variable)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.text.enabled or self.vision.enabled):
            raise ValueError("text.enabled and vision.enabled are both false: nothing to serve")
        if self.images.local_files:
            raise ValueError("images.local_files is for bulk jobs; a server must not read its disk")
        _check_concurrency(
            "text", self.text, self.text.max_batch_tokens, self.router.max_tokens_per_chunk
        )
        _check_concurrency(
            "vision", self.vision, self.vision.max_batch_images, self.router.max_images_per_chunk
        )
        if self.images.max_image_bytes > self.router.max_chunk_bytes:
            raise ValueError(
                f"images.max_image_bytes ({self.images.max_image_bytes}) exceeds "
                f"router.max_chunk_bytes ({self.router.max_chunk_bytes}): one image must fit"
            )
        return self


def _check_concurrency(name: str, tower: TowerConfig, batch: int, chunk: int) -> None:
    """Raise where a replica may hold too few chunks to fill a batch while one runs."""
    needed = 2 * -(-batch // chunk)
    if tower.max_ongoing_requests < needed:
        raise ValueError(
            f"{name}.max_ongoing_requests ({tower.max_ongoing_requests}) is too low: a batch of "
            f"{batch:,} takes {needed // 2} chunks of {chunk:,}, and as many should wait while it "
            f"runs; set it to {needed} or more"
        )
