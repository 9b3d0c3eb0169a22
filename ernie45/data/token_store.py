"""Documents as tokens on disk, made once: what pretraining cuts its records from.

Knows nothing about records, order or batches; needs no torch.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ernie45.config.errors import DataError
from ernie45.data.labelled import IGNORED, Labelled
from ernie45.data.loader import Loader
from ernie45.data.records import Document, Record
from ernie45.data.sizes import Bad, Encoding, alone

_CHUNK = 32


class Piece(NamedTuple):
    """Tokens [start, end) of a document, by its number in the data set."""

    document: int
    start: int
    end: int


@dataclass(frozen=True)
class _Tokens:
    """What a document is to the store: ids if it may be cut anywhere, else only its size."""

    ids: np.ndarray | None
    size: tuple[int, int, int]


@dataclass(frozen=True)
class Tokenise:
    """The function that worker processes run to fill a store."""

    encoding: Encoding

    def __call__(self, indices: tuple[int, ...]) -> list[_Tokens | Bad]:
        return [self._one(index) for index in indices]

    def _one(self, index: int) -> _Tokens | Bad:
        dataset, encoder = self.encoding.dataset, self.encoding.encoder
        try:
            record = dataset[index]
            assert isinstance(record, Record | Document), type(record)
            if isinstance(record, Document) and is_cuttable(record):
                ids = encoder.document_ids(record).astype(np.uint32)
                return _Tokens(ids, (len(ids), 0, len(ids) - 1))
            return _Tokens(None, encoder.measure(record))
        except DataError as error:
            return Bad(index, str(error))


def is_cuttable(document: Document) -> bool:
    """Texts may be cut anywhere; documents with pictures, and conversations, stay whole."""
    return all(part["type"] == "text" for part in document.parts)


class TokenStore:
    """sizes_N3: tokens, patches and labels of every document, zeros for a bad one. cut_N: bool, which are kept as ids."""

    def __init__(self, path: Path, sizes_N3: np.ndarray, cut_N: np.ndarray, bad: tuple[Bad, ...]) -> None:
        self.sizes_N3, self.cut_N, self.bad = sizes_N3, cut_N, bad
        self._path = path
        self._starts = np.concatenate([[0], np.where(cut_N, sizes_N3[:, 0], 0).cumsum()])
        self._ids: np.ndarray | None = None

    def ids(self, document: int) -> np.ndarray:
        """uint32: all ids of a document that may be cut; not in memory until they are looked at."""
        if self._ids is None:
            self._ids = np.memmap(self._path, dtype=np.uint32, mode="r") if self._starts[-1] else np.empty(0, dtype=np.uint32)
        return self._ids[self._starts[document] : self._starts[document + 1]]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ids": None}


def build_store(
    encoding: Encoding, folder: Path, workers: int = 0, progress: Callable[[int, int], None] | None = None
) -> TokenStore:
    """The store of a data set in `folder`, made if it is not there. Processes that share the folder make it once."""
    place = folder / "data"
    place.mkdir(parents=True, exist_ok=True)
    tokens, facts = place / f"tokens-{encoding.key}.bin", place / f"tokens-{encoding.key}.npz"
    with alone(facts.with_suffix(".lock")):
        if not facts.is_file():
            temporary = place / f".tokens-{encoding.key}"
            with open(temporary, "wb") as file:
                sizes_N3, cut_N, bad = _fill(encoding, file, workers, progress)
            os.replace(temporary, tokens)
            with open(temporary, "wb") as file:
                np.savez(file, sizes=sizes_N3, cut=cut_N, bad=np.frombuffer(json.dumps(bad).encode(), dtype=np.uint8))
            os.replace(temporary, facts)  # last: without it the store is made again
        with np.load(facts) as kept:
            bad = [Bad(*item) for item in json.loads(bytes(kept["bad"]))]
            return TokenStore(tokens, kept["sizes"], kept["cut"], tuple(bad))


def _fill(
    encoding: Encoding, file: BinaryIO, workers: int, progress: Callable[[int, int], None] | None
) -> tuple[np.ndarray, np.ndarray, list[Bad]]:
    total = len(encoding.dataset)
    sizes_N3, cut_N, bad = np.zeros((total, 3), dtype=np.int64), np.zeros(total, dtype=bool), []
    tasks = [tuple(range(start, min(start + _CHUNK, total))) for start in range(0, total, _CHUNK)]
    with Loader(Tokenise(encoding), workers, ahead=2 * workers) as loader:
        for task, found in zip(tasks, loader.map(tasks), strict=True):
            for index, tokens in zip(task, found, strict=True):
                if isinstance(tokens, Bad):
                    bad.append(tokens)
                    continue
                sizes_N3[index] = tokens.size
                if tokens.ids is not None:
                    cut_N[index] = True
                    file.write(tokens.ids.tobytes())
            if progress is not None:
                progress(task[-1] + 1, total)
    return sizes_N3, cut_N, bad


@dataclass(frozen=True)
class Fetch:
    """Sequences of pieces; the function that worker processes run while training."""

    encoding: Encoding
    store: TokenStore

    def __call__(self, pieces: tuple[Piece, ...]) -> list[Labelled | Bad]:
        return [self._one(piece) for piece in pieces]

    def _one(self, piece: Piece) -> Labelled | Bad:
        dataset, encoder = self.encoding.dataset, self.encoding.encoder
        try:
            if self.store.cut_N[piece.document]:
                return self._cut(piece)
            record = dataset[piece.document]
            assert isinstance(record, Record | Document), type(record)
            return encoder.encode(record)
        except DataError as error:
            return Bad(piece.document, str(error))

    def _cut(self, piece: Piece) -> Labelled:
        """The label of the last token is the one behind the cut, so every token of a document is learnt exactly once."""
        ids = self.store.ids(piece.document)
        inputs = self.encoding.encoder.processor.encode_ids(ids[piece.start : piece.end].tolist())
        following = ids[piece.start + 1 : piece.end + 1].astype(np.int64)
        labels_S = np.full(len(inputs), IGNORED, dtype=np.int64)
        labels_S[: len(following)] = following
        return Labelled(inputs, labels_S, self.encoding.dataset.source_of(piece.document))


def num_labels(piece: Piece, store: TokenStore) -> int:
    """Of the sequence that `Fetch` makes of it."""
    tokens, _, labels = (int(size) for size in store.sizes_N3[piece.document])
    return min(piece.end, tokens - 1) - piece.start if store.cut_N[piece.document] else labels
