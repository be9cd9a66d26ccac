"""Databases that a bulk job writes to in place of parquet files."""
