"""What one H100 does, as it was measured (benchmarks/README.md): the pace of `paced.py`.

The environment may set another pace: a machine of few cores cannot send three times 450 images.
"""

import os

IMAGES_PER_S_VARIABLE = "PACED_IMAGES_PER_S"
TEXT_TOKENS_PER_S_VARIABLE = "PACED_TEXT_TOKENS_PER_S"

CALL_S = 0.001  # the least time of a batch
TEXT_TOKENS_PER_S = float(os.environ.get(TEXT_TOKENS_PER_S_VARIABLE, "650000"))
IMAGES_PER_S = float(os.environ.get(IMAGES_PER_S_VARIABLE, "450"))
LAUNCH_S = 0.001  # what a large batch takes of the interpreter: packing, one graph
LARGE_TOKENS = 2048
