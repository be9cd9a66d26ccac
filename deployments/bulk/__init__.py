"""Bulk jobs on Ray Data: from files to vectors, restartable, with nothing lost."""

from deployments.bulk.embedders import ImageEmbedder, TextEmbedder
from deployments.bulk.estimate import Estimate, estimate
from deployments.bulk.job import BulkJob, TooManyErrorsError, prepare
from deployments.bulk.options import EmbedOptions, PoolSize
from deployments.bulk.pipeline import embed
from deployments.bulk.progress import JobProgress

__all__ = [
    "BulkJob",
    "EmbedOptions",
    "Estimate",
    "ImageEmbedder",
    "JobProgress",
    "PoolSize",
    "TextEmbedder",
    "TooManyErrorsError",
    "embed",
    "estimate",
    "prepare",
]
