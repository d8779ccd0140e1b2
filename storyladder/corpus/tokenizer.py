"""GPT-2's tokenizer: tiktoken with the bundled ranks, without network access.

tiktoken itself would download the ranks on first use, and keep them in a temporary folder.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from storyladder.runtime.errors import DataError

if TYPE_CHECKING:
    import tiktoken

    from storyladder.corpus.pieces import PieceIds

EOT = 50256  # after every story
EOT_TEXT = "<|endoftext|>"
RANKS_FILE = Path(__file__).parent / "assets" / "r50k_base.tiktoken"
RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
# GPT-2's split into words, as tiktoken_ext.openai_public writes it.
_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_LONGEST_RUN = 100_000  # characters of white space; at about a million, tiktoken's regex overflows its stack
_LONG_RUN = re.compile(rf"[^\S\x1c-\x1f]{{{_LONGEST_RUN}}}")  # four characters are white space to Python alone


class Tokenizer:
    """Story text to token ids and back."""

    vocab_size = 50257
    eot = EOT
    fingerprint = f"gpt2:{RANKS_SHA256[:16]}"

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding

    def encode(self, text: str) -> list[int]:
        """Ids of a text; a literal <|endoftext|> inside it stays ordinary text."""
        if len(text) <= _LONGEST_RUN:
            return self._encoding.encode_ordinary(text)
        ends = [match.end() for match in _LONG_RUN.finditer(text)]
        pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
        return [token for piece in pieces for token in self._encoding.encode_ordinary(piece)]

    def encode_stories(self, stories: Sequence[str]) -> npt.NDArray[np.uint16]:
        """Ids of all the stories, each followed by EOT, as one array: what `encode` gives for each alone, but faster.

        Equal pieces of text are encoded once only. For bundles of some MB, from any thread.
        """
        if self._piece_ids is None:
            return self.encode_stories_plainly(stories)
        return self._piece_ids.of_stories(stories)

    @functools.cached_property
    def _piece_ids(self) -> PieceIds | None:
        """None where pyarrow is not installed, which only .parquet cannot do without."""
        try:
            from storyladder.corpus.pieces import PieceIds
        except ImportError:
            return None
        return PieceIds(self.encode_stories_plainly, EOT)

    def encode_stories_plainly(self, stories: Sequence[str]) -> npt.NDArray[np.uint16]:
        """What `encode_stories` gives, from tiktoken alone: for what is new to it, and to compare with.

        One call into tiktoken for all of them; where one holds the marker itself, or is very long, each is encoded
        alone, so that its marker stays text.
        """
        if any(EOT_TEXT in story or len(story) > _LONGEST_RUN for story in stories):
            ids = [token for story in stories for token in (*self.encode(story), EOT)]
            return np.array(ids, dtype=np.uint16)
        joined = EOT_TEXT.join([*stories, ""])
        return self._encoding.encode_to_numpy(joined, allowed_special={EOT_TEXT}).astype(np.uint16)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; bytes that are no UTF-8 become the replacement character."""
        return self._encoding.decode(ids)

    def decode_bytes(self, token: int) -> bytes:
        """The bytes of one token; EOT has none."""
        return b"" if token == EOT else self._encoding.decode_single_token_bytes(token)

    @functools.cached_property
    def token_bytes_V(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of every token, (V,); 0 for EOT, which is a mark and no text."""
        return np.array([len(self.decode_bytes(token)) for token in range(self.vocab_size)])


def tokenizer_named(name: str) -> Tokenizer:
    """The tokenizer of that name, which settings.py has checked."""
    return {"gpt2": gpt2_tokenizer}[name]()


@functools.cache
def gpt2_tokenizer() -> Tokenizer:
    """The tokenizer from the bundled ranks; a DataError if that file was damaged."""
    import tiktoken

    try:
        raw = RANKS_FILE.read_bytes().replace(b"\r\n", b"\n")  # of a copy made by way of Windows
    except OSError as error:
        raise DataError(
            f"cannot read {RANKS_FILE}: {error.strerror}; restore it with git checkout {RANKS_FILE.name}"
        ) from None
    if hashlib.sha256(raw).hexdigest() != RANKS_SHA256:
        raise DataError(f"{RANKS_FILE} is not GPT-2's token list (SHA-256 differs); restore it with git checkout")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in raw.splitlines())}
    encoding = tiktoken.Encoding(
        name="gpt2", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={EOT_TEXT: EOT}, explicit_n_vocab=50257
    )
    return Tokenizer(encoding)
