"""What the model refuses, and why.

EmbeddingError
├── CheckpointError       the weights: missing, mis-shaped, unreadable (the operator's to mend)
└── InputError            one input or option (the caller's to mend); also a ValueError
    ├── OptionError       task, dimensions, max_length
    ├── TextTooLongError  more tokens than the limit
    └── ImageError        not an image, broken, or larger than the limits

Every argument goes to `super().__init__`, so that each survives pickling between processes.
"""


class EmbeddingError(Exception):
    """Root of every error this product raises on purpose."""


class CheckpointError(EmbeddingError):
    """A checkpoint that cannot be found, read or trusted."""


class InputError(EmbeddingError, ValueError):
    """An input or option that the caller has to change."""


class OptionError(InputError):
    """An unknown task, or dimensions or max_length outside their range."""


class TextTooLongError(InputError):
    """A text that exceeds the token or character limit and was not to be truncated."""


class ImageError(InputError):
    """Bytes that are not a readable image within the limits."""
