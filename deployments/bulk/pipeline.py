"""`embed`: the stages of a bulk job, put together on a Ray Data dataset."""

from collections.abc import Callable
from typing import Any

from ray.data import ActorPoolStrategy, Dataset

from deployments.bulk.columns import drop_internal
from deployments.bulk.embedders import ImageEmbedder, TextEmbedder
from deployments.bulk.options import EmbedOptions, PoolSize
from deployments.bulk.prepare import RowPreparer
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
    prepared = pool(dataset, RowPreparer, (options,), options, options.workers, {"num_cpus": 1})
    return towers(prepared, options).map_batches(
        drop_internal,
        batch_format="pyarrow",
        batch_size=options.batch_rows,
        num_cpus=LIGHT_CPUS,
    )


def towers(dataset: Dataset, options: EmbedOptions) -> Dataset:
    """Add a stage for each tower that the job needs, to rows that are prepared."""
    if options.text is not None:
        resources = tower_resources(options.app.text)
        replicas = options.text_replicas
        dataset = pool(dataset, TextEmbedder, (options,), options, replicas, resources)
    if options.image is not None:
        resources = tower_resources(options.app.vision)
        replicas = options.vision_replicas
        dataset = pool(dataset, ImageEmbedder, (options,), options, replicas, resources)
    return dataset


def tower_resources(tower: TowerConfig) -> dict[str, float]:
    """Return what one replica reserves; Ray Data takes GPUs or CPUs, not both."""
    if tower.num_gpus:
        return {"num_gpus": tower.num_gpus}
    return {"num_cpus": tower.num_cpus}


def pool(
    dataset: Dataset,
    stage: Callable[..., Callable[[Any], Any]],  # Any: batches in Ray Data's Arrow format
    arguments: tuple[object, ...],
    options: EmbedOptions,
    replicas: PoolSize,
    resources: dict[str, Any],  # Any: mypy matches them with every keyword argument
) -> Dataset:
    """Add a stage that runs in a pool of actors."""
    # Without a number of rows a batch is a block, which `map_batches` itself refuses to give to a
    # GPU; Ray Data's own `map_groups` comes this way for that reason.
    return dataset.map_batches_internal(
        stage,
        fn_constructor_args=arguments,
        batch_format="pyarrow",
        batch_size=options.batch_rows,
        compute=ActorPoolStrategy(min_size=replicas.min, max_size=replicas.max),
        **resources,
    )
