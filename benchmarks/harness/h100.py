"""What one H100 does, as it was measured (benchmarks/README.md): the pace of `paced.py`."""

CALL_S = 0.001  # the least time of a batch
TEXT_TOKENS_PER_S = 650_000
IMAGES_PER_S = 450
LAUNCH_S = 0.001  # what a large batch takes of the interpreter: packing, one graph
LARGE_TOKENS = 2048
