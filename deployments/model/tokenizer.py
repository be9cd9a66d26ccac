"""Text to token ids, by the checkpoint's own `tokenizer.json`; needs no torch."""

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from deployments.model.architecture import QUERY_TASK, TextArchitecture
from deployments.model.errors import CheckpointError, InputError, OptionError, TextTooLongError
from deployments.model.words import WordIds

TASKS = (None, QUERY_TASK)

# Characters that a token of text can stand for at most, far above what any language needs. Longer
# texts are refused before tokenising, which costs about a second per million characters.
MAX_CHARACTERS_PER_TOKEN = 32

Truncate = bool | Literal["start"]
TokenIds = NDArray[np.int32]
ID_BYTES = 4


class TextTokenizer:
    """Tokenises as the published model does; no cleaning of any kind.

    Raises:
        CheckpointError: the file is missing or broken, or its specials differ from the model's.
    """

    def __init__(self, folder: Path, arch: TextArchitecture) -> None:
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"cannot read {path}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._arch = arch
        self.max_characters = arch.max_tokens * MAX_CHARACTERS_PER_TOKEN
        size = self._tokenizer.get_vocab_size()
        if size > arch.vocab_size:
            raise CheckpointError(f"{path} has {size} tokens, the model {arch.vocab_size}")
        end = self._tokenizer.token_to_id("</s>")
        start = self._tokenizer.token_to_id("<s>")
        pad = self._tokenizer.token_to_id("<pad>")
        if pad != arch.pad_token_id or start is None or end is None:
            raise CheckpointError(
                f"{path} lacks <s> or </s>, or its <pad> is not {arch.pad_token_id}"
            )
        if self._tokenizer.encode("").ids != [start, end]:
            raise CheckpointError(f"{path} does not put <s> and </s> around a text")
        self._start, self._end = (array("i", [x]).tobytes() for x in (start, end))
        self._words = WordIds(self._tokenizer)
        self.vocab_size: int = size

    def encode(
        self,
        texts: Sequence[str],
        task: str | None = None,
        max_length: int | None = None,
        truncate: Truncate = False,
    ) -> list[TokenIds]:
        """Return the token ids of each text, `<s>` and `</s>` included.

        Args:
            texts: any strings; an empty one gives `<s></s>`.
            task: `"retrieval.query"` prepends the query prefix, None does not.
            max_length: limit in tokens, specials and prefix included; None is the model's own.
            truncate: keep the first tokens of a longer text instead of refusing it; with
                `"start"` the last ones, behind the prefix.

        Raises:
            OptionError: unknown task, or max_length out of range.
            TextTooLongError: a text exceeds the limit and `truncate` is false, or is longer than
                any text within the limit could be.
            InputError: a text is not valid Unicode.
        """
        rows: list[TokenIds] = []
        for index, ids in enumerate(self.encode_each(texts, task, max_length, truncate)):
            if isinstance(ids, InputError):
                raise type(ids)(f"text {index}: {ids}")
            rows.append(ids)
        return rows

    def encode_each(
        self,
        texts: Sequence[str],
        task: str | None = None,
        max_length: int | None = None,
        truncate: Truncate = False,
    ) -> list[TokenIds | InputError]:
        """Do as `encode`, but give a text that is refused its error in place of its ids."""
        prefix, limit = self._prefix(task), self._limit(max_length)
        faults = [self._fault(text) for text in texts]
        # A text that is refused is not tokenised; an empty one stands in for it.
        good = ["" if fault else text for text, fault in zip(texts, faults, strict=True)]
        rows = self._words.encode([prefix + text for text in good])
        (head,) = self._words.encode([prefix.rstrip()]) if truncate == "start" else (b"",)
        return [
            fault or self._row(ids, limit, truncate, head)
            for fault, ids in zip(faults, rows, strict=True)
        ]

    def wrap_each(
        self,
        texts: Sequence[Sequence[int]],
        task: str | None = None,
        max_length: int | None = None,
        truncate: Truncate = False,
    ) -> list[TokenIds | InputError]:
        """Do as `encode_each` for texts that are token ids of this vocabulary already.

        The query prefix goes in front where `task` asks for it; `<s>` and `</s>` are added where
        they are missing.
        """
        limit = self._limit(max_length)
        (prefix,) = self._words.encode([self._prefix(task)])
        return [self._wrap(ids, prefix, limit, truncate) for ids in texts]

    def _wrap(
        self, ids: Sequence[int], prefix: bytes, limit: int, truncate: Truncate
    ) -> TokenIds | InputError:
        if ids and not 0 <= min(ids) <= max(ids) < self.vocab_size:
            return InputError(
                f"the token ids go from {min(ids)} to {max(ids)}; those of this model go from 0 to "
                f"{self.vocab_size - 1}"
            )
        inner = array("i", ids).tobytes().removeprefix(self._start).removesuffix(self._end)
        return self._row(prefix + inner, limit, truncate, prefix)

    def _fault(self, text: str) -> InputError | None:
        if len(text) > self.max_characters:
            return TextTooLongError(
                f"the text has {len(text):,} characters, the limit is {self.max_characters:,}, "
                "with truncation too; split it"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return InputError(f"the text is not valid Unicode: {error.reason} at {error.start}")
        return None

    def _row(
        self, ids: bytes, limit: int, truncate: Truncate, head: bytes
    ) -> TokenIds | InputError:
        """Put `<s>` and `</s>` around a text's int32 ids, within the limit; `head` stays."""
        num_tokens = len(ids) // ID_BYTES + 2
        if num_tokens > limit:
            if not truncate:
                return TextTooLongError(
                    f"the text has {num_tokens:,} tokens, the limit is {limit:,}; split it or ask "
                    "for truncation"
                )
            room = (limit - 2) * ID_BYTES
            if truncate == "start" and room > len(head):
                ids = head + ids[len(ids) - room + len(head) :]
            ids = ids[:room]
        return np.frombuffer(b"".join((self._start, ids, self._end)), dtype=np.int32)

    def _prefix(self, task: str | None) -> str:
        if task not in TASKS:
            raise OptionError(f"task is {task!r}; choose {QUERY_TASK!r} or leave it out")
        return self._arch.query_prefix if task == QUERY_TASK else ""

    def _limit(self, max_length: int | None) -> int:
        longest = self._arch.max_tokens
        if max_length is None:
            return longest
        if not 2 <= max_length <= longest:
            raise OptionError(f"max_length is {max_length}; it must be from 2 to {longest}")
        return max_length
