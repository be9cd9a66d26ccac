"""Benchmarks, one question per file; each runs as `python -m benchmarks.NAME`."""
