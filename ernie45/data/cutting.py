"""Fixed-length records for pretraining: every source is cut into them, nothing lost and nothing twice.

Knows nothing about the order in which they are read; needs no torch.
"""

from collections.abc import Mapping

import numpy as np

from ernie45.data.sizes import Bad
from ernie45.data.token_store import Piece, TokenStore


class SourceRecords:
    """The records of one source, texts or such with pictures.

    Texts that may be cut are one stream of tokens, document behind document, of which record i is the i-th `length` tokens; the
    last one is shorter. What stays whole is put together, in order, into records that hold at most `length` tokens.
    """

    def __init__(self, cut: np.ndarray, whole: np.ndarray, store: TokenStore, length: int) -> None:
        """cut, whole: numbers of the documents."""
        self._cut, self._length = cut, length
        self._borders = np.concatenate([[0], store.sizes_N3[cut, 0].cumsum()])
        self._num_cut = -(-int(self._borders[-1]) // length)
        self._whole: list[tuple[Piece, ...]] = []
        pieces: list[Piece] = []
        for document in whole.tolist():
            size = int(store.sizes_N3[document, 0])
            if sum(piece.end for piece in pieces) + size > length:
                self._whole.append(tuple(pieces))
                pieces = []
            pieces.append(Piece(document, 0, size))
        if pieces:
            self._whole.append(tuple(pieces))

    def __len__(self) -> int:
        return self._num_cut + len(self._whole)

    def pieces(self, number: int) -> tuple[Piece, ...]:
        """What a record consists of, in order."""
        if number >= self._num_cut:
            return self._whole[number - self._num_cut]
        start, end = number * self._length, min((number + 1) * self._length, int(self._borders[-1]))
        found = []
        place = int(np.searchsorted(self._borders, start, side="right")) - 1
        while start < end:
            border, following = int(self._borders[place]), int(self._borders[place + 1])
            if following > start:
                found.append(Piece(int(self._cut[place]), start - border, min(end, following) - border))
                start = min(end, following)
            place += 1
        return tuple(found)


class RecordTable:
    """All records of a data set by source: of texts, and of what has pictures."""

    def __init__(self, sources: Mapping[str, np.ndarray], store: TokenStore, length: int, patches: int = 0) -> None:
        """sources: document numbers by name. length: tokens of a record. patches: of a document at most; 0: any number.

        too_long: documents that must stay whole and do not fit into a record.
        """
        tokens, used = store.sizes_N3[:, 0], store.sizes_N3[:, 1]
        fits = store.cut_N | ((tokens > 0) & (tokens <= length) & (not patches or used <= patches))
        self.too_long = [
            Bad(int(document), f"{tokens[document]} tokens and {used[document]} patches stay whole and fit into no record")
            for document in np.flatnonzero(~fits & (tokens > 0))
        ]
        self.texts: dict[str, SourceRecords] = {}
        self.pictures: dict[str, SourceRecords] = {}
        none = np.empty(0, dtype=np.int64)
        for name, documents in sources.items():
            own = documents[fits[documents]]
            cut, whole = own[store.cut_N[own]], own[~store.cut_N[own]]
            texts = SourceRecords(cut, whole[used[whole] == 0], store, length)
            pictures = SourceRecords(none, whole[used[whole] > 0], store, length)
            self.texts |= {name: texts} if len(texts) else {}
            self.pictures |= {name: pictures} if len(pictures) else {}


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours that are one stretch of a document as one piece: a context of several records reads on over their borders."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if last is not None and last.document == piece.document and last.end == piece.start:
            result[-1] = Piece(last.document, last.start, piece.end)
        else:
            result.append(piece)
    return result
