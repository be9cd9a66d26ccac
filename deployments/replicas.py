"""The part of the configuration that says how often a deployment runs, and by what that changes."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.autoscaling import Targets

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]

SERVE_SETTINGS: Mapping[str, float] = {
    "metrics_interval_s": 1.0,
    "look_back_period_s": 5.0,
    "upscale_delay_s": 0.0,
    "downscale_delay_s": 10.0,
}
"""What goes with this policy into Serve's `autoscaling_config`: it smooths and holds by itself."""


class Frozen(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    scale_to_zero: bool = False


class PolicyConfig(Frozen):
    """Arguments of the autoscaling policy; changing one restarts replicas, unlike the targets."""

    headroom: PositiveFloat = Targets.headroom
    """Capacity over the rate of arrival."""
    window_s: PositiveFloat = Targets.window_s
    """Seconds over which the rate of arrival is taken."""
    hold_s: Annotated[float, Field(ge=0)] = Targets.hold_s
    """Seconds for which the highest count of late is kept."""


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
