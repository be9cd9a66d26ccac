"""`embed`: the stages of a bulk job, put together on a Ray Data dataset."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset

from deployments.bulk.columns import drop_internal
from deployments.bulk.embedders import ImageEmbedder, TextEmbedder
from deployments.bulk.options import EmbedOptions, Replicas
from deployments.bulk.prepare import Preparer
from deployments.config import TowerConfig
from deployments.model.errors import OptionError

LIGHT_CPUS = 0.1  # of a stage that mostly waits for files


def embed(dataset: Dataset, options: EmbedOptions) -> Dataset:
    """Add `text_embedding`, `image_embedding` and `error` to a dataset; runs when it is consumed.

    Vectors are fixed-size lists, null where a row has no such input or failed; `error` says why a
    row failed and is null otherwise. No row is dropped.

    Raises:
        CheckpointError: there is no such model.
        OptionError: no column is named, or dimensions that the model does not have.
    """
    if options.text is None and options.image is None:
        raise OptionError("options name neither a text nor an image column; name one or both")
    options.width(options.architecture())
    rows = options.batch_rows
    return stages(dataset, options).map_batches(
        drop_internal, batch_format="pyarrow", batch_size=rows, num_cpus=LIGHT_CPUS
    )


def stages(dataset: Dataset, options: EmbedOptions) -> Dataset:
    """Add the CPU stage and a stage for each tower that the job needs."""
    dataset = _pool(dataset, Preparer, options, options.workers, {"num_cpus": 1})
    if options.text is not None:
        resources = tower_resources(options.app.text)
        dataset = _pool(dataset, TextEmbedder, options, options.text_replicas, resources)
    if options.image is not None:
        resources = tower_resources(options.app.vision)
        dataset = _pool(dataset, ImageEmbedder, options, options.vision_replicas, resources)
    return dataset


def tower_resources(tower: TowerConfig) -> dict[str, float]:
    """Return what one replica reserves; Ray Data takes GPUs or CPUs, not both."""
    if tower.num_gpus:
        return {"num_gpus": tower.num_gpus}
    return {"num_cpus": tower.num_cpus}


def _pool(
    dataset: Dataset,
    stage: Callable[..., Callable[[Any], pa.Table]],  # Any: a batch in Ray Data's Arrow format
    options: EmbedOptions,
    replicas: Replicas,
    resources: dict[str, Any],  # Any: mypy matches them with every keyword argument
) -> Dataset:
    return dataset.map_batches(
        stage,
        fn_constructor_args=(options,),
        batch_format="pyarrow",
        batch_size=options.batch_rows,
        compute=ActorPoolStrategy(min_size=replicas.min, max_size=replicas.max),
        **resources,
    )
