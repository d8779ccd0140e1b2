"""Stories cut into pieces that GPT-2's pattern never joins, so that equal pieces are encoded once only.

Stories repeat themselves: a megabyte of them is about 230,000 pieces, of which some 5,000 to 12,000 differ and 600 to
1,800 are new. A cut is made only where two neighboring bytes of UTF-8 show that the pattern always splits; where they
do not, the piece stays long. Knows nothing about how a piece is encoded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

END = b"\xff"  # the piece after every story; no byte of UTF-8
_MOST_REMEMBERED = 1 << 17  # pieces; TinyStories and the children's books together have 80,000
_LONGEST_REMEMBERED = 32  # bytes; what is longer rarely comes again

# Kinds of bytes. A sign is any ASCII character without a kind of its own, control characters too; a byte of a foreign
# character is perhaps the last one of foreign white space.
_SPACE, _LETTER, _DIGIT, _SIGN, _APOSTROPHE, _FOREIGN, _PERHAPS_SPACE, _END = range(8)
_KINDS = 8
_ASCII_SPACES = b"\t\n\v\f\r "
_FOREIGN_SPACES = (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000)
# Between which kinds a piece begins. Never inside white space, whose last character may belong to the word behind it,
# and never behind an apostrophe, which may begin 's, 't, 're, 've, 'm, 'll or 'd.
_BEGINS = (
    *((left, _SPACE) for left in (_LETTER, _DIGIT, _SIGN, _APOSTROPHE, _FOREIGN)),
    *((left, right) for left in (_LETTER, _DIGIT) for right in (_SIGN, _APOSTROPHE)),
    *((_SIGN, right) for right in (_LETTER, _DIGIT)),
    *((left, _END) for left in range(_KINDS)),
    *((_END, right) for right in range(_KINDS)),
)

Ids = npt.NDArray[np.uint16]


def _kind_of_byte() -> bytes:
    """A table for bytes.translate."""
    kinds = bytearray([_SIGN] * 0x80 + [_FOREIGN] * 0x80)
    for byte in range(0x80):
        if chr(byte).isalnum():
            kinds[byte] = _DIGIT if chr(byte).isdigit() else _LETTER
    for byte in _ASCII_SPACES:
        kinds[byte] = _SPACE
    for space in _FOREIGN_SPACES:
        kinds[chr(space).encode()[-1]] = _PERHAPS_SPACE
    kinds[ord("'")] = _APOSTROPHE
    kinds[END[0]] = _END
    return bytes(kinds)


def _begins_between() -> bytes:
    """1 at left * _KINDS + right where a piece begins between them: a table for bytes.translate."""
    table = bytearray(256)
    for left, right in _BEGINS:
        table[left * _KINDS + right] = 1
    return bytes(table)


_KIND_OF_BYTE = _kind_of_byte()
_BEGINS_BETWEEN = _begins_between()


def cut(stories: Sequence[str]) -> pa.BinaryArray:
    """The pieces of some stories (at least one, together less than 2 GB) in order, END after each story."""
    data = b"".join([story.encode() + END for story in stories])
    kinds = np.frombuffer(data.translate(_KIND_OF_BYTE), dtype=np.uint8)
    pairs = kinds[:-1] * np.uint8(_KINDS) + kinds[1:]
    begins = np.frombuffer(pairs.tobytes().translate(_BEGINS_BETWEEN), dtype=np.bool_)
    inner = np.flatnonzero(begins) + 1
    return _binary(np.concatenate([[0], inner, [len(data)]]), data)


def _binary(offsets: npt.NDArray[np.int64], data: bytes | Ids) -> pa.BinaryArray:
    """Byte strings as pyarrow keeps them: number i is data[offsets[i] : offsets[i + 1]], in bytes."""
    places = pa.py_buffer(offsets.astype(np.int32))
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, places, pa.py_buffer(data)])


def _content(strings: pa.BinaryArray) -> Ids:
    """All the byte strings, one behind the other, as ids."""
    offsets = np.frombuffer(strings.buffers()[1], dtype=np.int32)
    start, end = int(offsets[strings.offset]), int(offsets[strings.offset + len(strings)])
    return np.frombuffer(strings.buffers()[2], dtype="<u2", count=(end - start) // 2, offset=start)


class PieceIds:
    """The ids of pieces, remembered: looked up where a piece was met before, else encoded. Serves several threads."""

    def __init__(self, encode: Callable[[Sequence[str]], Ids], end_id: int) -> None:
        """`encode` returns the GPT-2 ids of some texts, with `end_id` after each text."""
        self._encode = encode
        self._end_id = end_id
        end = np.array([end_id], dtype="<u2")
        self._only_end = pa.array([END], pa.binary()), _binary(np.array([0, end.nbytes]), end)
        self._remembered = self._only_end  # pieces and their ids; replaced as a whole, others read it meanwhile
        self._lock = threading.Lock()

    def of_stories(self, stories: Sequence[str]) -> Ids:
        """Ids of the stories, each followed by `end_id`."""
        if not stories:
            return np.zeros(0, dtype="<u2")
        # Only new pieces become Python objects; the steps over all pieces release the GIL.
        pieces = cut(stories).dictionary_encode()
        places, ids = self._look_up(pieces.dictionary)
        return _content(ids.take(places.take(pieces.indices)))

    def _look_up(self, pieces: pa.BinaryArray) -> tuple[pa.Array, pa.BinaryArray]:
        """For distinct pieces: the index of each piece's ids, and the ids at these indices."""
        known, ids = self._remembered
        places = pc.index_in(pieces, value_set=known)
        is_new = places.is_null()
        if not places.null_count:
            return places, ids
        new = pieces.filter(is_new)
        new_ids = self._encoded(new)
        self._remember(new, new_ids)
        numbers = places.fill_null(-1).to_numpy().copy()
        numbers[numbers < 0] = len(known) + np.arange(len(new))
        return pa.array(numbers), pa.concat_arrays([ids, new_ids])

    def _encoded(self, pieces: pa.BinaryArray) -> pa.BinaryArray:
        """The ids of each piece, all encoded in one go."""
        ids = self._encode([piece.decode() for piece in pieces.to_pylist()]).astype("<u2", copy=False)
        ends = np.flatnonzero(ids == self._end_id)
        bounds = np.concatenate([[0], ends - np.arange(len(ends))])  # in ids, where the ends are taken out
        return _binary(bounds * ids.itemsize, ids[ids != self._end_id])

    def _remember(self, pieces: pa.BinaryArray, ids: pa.BinaryArray) -> None:
        """Keep the short ones. If there are too many, start over: the frequent ones soon come back."""
        is_short = pc.less_equal(pc.binary_length(pieces), _LONGEST_REMEMBERED)
        with self._lock:
            known, known_ids = self._remembered
            if len(known) + len(pieces) > _MOST_REMEMBERED:
                known, known_ids = self._only_end
            self._remembered = (
                pa.concat_arrays([known, pieces.filter(is_short)]),
                pa.concat_arrays([known_ids, ids.filter(is_short)]),
            )
