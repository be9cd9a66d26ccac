"""What one H100 does, as it was measured (benchmarks/README.md): the pace of `paced.py`."""

CALL_S = 0.001  # the least time of a batch
TEXT_TOKENS_PER_S = 650_000
IMAGES_PER_S = 450
# Launching a batch too large for a graph takes so long with nothing else to do in the process.
LAUNCH_S = 0.004
GRAPH_TOKENS = 2048
