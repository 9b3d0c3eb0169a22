"""Samples as model inputs with labels, made directly from token lists: the fast twin of `Processor.encode_chat`.

Knows nothing about batches or losses. `encode_slowly` is the same through the processor; a test holds the two equal.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ernie45.config.errors import DataError
from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.data.packing import IGNORED, Labelled
from ernie45.data.tiny.sample import Sample
from ernie45.processor import Processor
from ernie45.processor.image import patchify
from ernie45.processor.positions import MediaSpan, num_media_tokens, rope_positions


class DocumentPart(NamedTuple):
    """A sample in a document. refers_to: asks again about that picture, counted from 1. shows: its pictures are there."""

    sample: Sample
    thinking: bool
    refers_to: int | None = None
    shows: bool = True


class SampleEncoder:
    """Encodes samples for one model folder's processor."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._tokens = processor.tokens
        self._patch, self._merge = processor.config.patch_size, processor.config.merge_size
        self._ids = functools.lru_cache(maxsize=8192)(self._encode_piece)
        self._position = functools.lru_cache(maxsize=8192)(self._positions)
        names = ("<|begin_of_sentence|>", "<think>", "</think>")
        self._begin, self._think, self._think_end = (_id_of(processor, name) for name in names)

    def encode(self, sample: Sample, thinking: bool, whole_text: bool = False) -> Labelled:
        """The conversation with its answer.

        thinking: which answer form. whole_text: labels on questions too (pre-training), else on the last answer only; of that,
        the thoughts' opening and, without thinking, the empty thoughts belong to the prompt.
        """
        ids = [self._begin]
        spans: list[tuple[int, tuple[int, int, int]]] = []
        text = ""
        for place, turn in enumerate((*sample.history, sample.turn)):
            text += "User: "
            pictures = sample.pictures if place == 0 else ()
            if not sample.pictures_first:
                text += turn.question
            for number, picture in enumerate(pictures, 1):
                text = self._show(picture, ids, spans, f"{text}Picture {number}:")
            if sample.pictures_first:
                text += turn.question
            text += "\nAssistant: "
            if place < len(sample.history):
                ids += self._ids(text + turn.answer)
                ids.append(self._tokens.end_of_turn)
                text = ""
        ids += self._ids(text)
        prompt, answer = self._answer(sample, thinking)
        start = len(ids) + prompt
        ids += answer
        return self._finish(sample.pictures, ids, spans, 1 if whole_text else start)

    def encode_document(self, parts: Sequence[DocumentPart]) -> Labelled:
        """Samples one after the other as plain text without roles, all of it to be learnt (pre-training)."""
        ids, pictures = [self._begin], []
        spans: list[tuple[int, tuple[int, int, int]]] = []
        for sample, thinking, refers_to, shows in parts:
            text = "" if refers_to is None else f"Picture {refers_to}: "
            shown = sample.pictures if shows and refers_to is None else ()
            for place, turn in enumerate((*sample.history, sample.turn)):
                if not sample.pictures_first:
                    text += f"{turn.question}\n"
                for picture in shown if place == 0 else ():
                    pictures.append(picture)
                    text = self._show(picture, ids, spans, f"{text}Picture {len(pictures)}:")
                if sample.pictures_first:
                    text += f"{turn.question}\n"
                is_last = place == len(sample.history)
                text += f"{turn.reasoning}\n{turn.answer}\n" if is_last and thinking else f"{turn.answer}\n"
            ids += self._encode_piece(text)
        ids.append(self._tokens.eos)
        return self._finish(tuple(pictures), ids, spans, 1)

    def encode_slowly(self, sample: Sample, thinking: bool) -> ModelInput:
        """The same sequence through `Processor.encode_chat`."""
        return self._processor.encode_chat(sample.messages(thinking), enable_thinking=thinking, add_generation_prompt=False)

    def encode_question(self, sample: Sample) -> ModelInput:
        """The beginning of a document that asks the sample's question, for a model that has read documents alone."""
        ids = [self._begin]
        spans: list[tuple[int, tuple[int, int, int]]] = []
        text = "" if sample.pictures_first else f"{sample.turn.question}\n"
        for number, picture in enumerate(sample.pictures, 1):
            text = self._show(picture, ids, spans, f"{text}Picture {number}:")
        ids += self._encode_piece(f"{text}{sample.turn.question}\n") if sample.pictures_first else []
        inputs = self._finish(sample.pictures, ids, spans, 1).inputs
        # The engine keeps features by what a picture holds.
        hashes = [hashlib.sha256(picture.tobytes() + bytes(picture.shape)).hexdigest() for picture in sample.pictures]
        media = [replace(medium, content_hash=digest) for medium, digest in zip(inputs.media, hashes, strict=True)]
        return replace(inputs, media=tuple(media))

    def _show(
        self, picture: np.ndarray, ids: list[int], spans: list[tuple[int, tuple[int, int, int]]], text_before: str
    ) -> str:
        """Add text and a picture's tokens to ids, its place to spans; the text that is left over: none."""
        grid = (1, picture.shape[0] // self._patch, picture.shape[1] // self._patch)
        ids += self._ids(text_before)
        spans.append((len(ids) + 1, grid))
        ids += [self._tokens.image_start, *[self._tokens.image_patch] * num_media_tokens(grid), self._tokens.image_end]
        return ""

    def _answer(self, sample: Sample, thinking: bool) -> tuple[int, list[int]]:
        """How many of the answer's ids belong to the prompt, and the ids with the end of the turn."""
        turn = sample.turn
        end = [*self._encode_piece(f"\n\n{turn.answer}"), self._tokens.end_of_turn]
        if thinking:
            return 1, [self._think, *self._encode_piece(f"\n{turn.reasoning}\n"), self._think_end, *end]
        empty = self._ids("\n\n")
        return 2 + 2 * len(empty), [self._think, *empty, self._think_end, *end]

    def _finish(
        self, pictures: tuple[np.ndarray, ...], ids: list[int], spans: list[tuple[int, tuple[int, int, int]]], first_label: int
    ) -> Labelled:
        token_ids = np.array(ids, dtype=np.int64)
        is_vision = np.isin(token_ids, self._tokens.vision_ids)
        positions_SX, next_position = self._position(len(ids), tuple(spans))
        patches = [patchify(picture, self._patch, self._merge) for picture in pictures]
        media = tuple(
            MediaItem(kind="image", grid=grid, offset=offset, length=num_media_tokens(grid), content_hash="")
            for offset, grid in spans
        )
        inputs = ModelInput(
            token_ids=token_ids,
            is_vision=is_vision,
            positions=positions_SX,
            patches=np.concatenate(patches) if patches else np.empty((0, 3 * self._patch**2), dtype=np.uint8),
            media=media,
            next_position=next_position,
        )
        return Labelled(inputs, self._labels(token_ids, is_vision, first_label))

    def _labels(self, token_ids: np.ndarray, is_vision: np.ndarray, first_label: int) -> np.ndarray:
        """Next tokens from `first_label` on. The model learns to end with </s> where its context has the end of turn."""
        labels = np.full(len(token_ids), IGNORED, dtype=np.int64)
        labels[first_label - 1 : -1] = token_ids[first_label:]
        labels[-2] = self._tokens.eos
        labels[:-1][is_vision[1:]] = IGNORED
        return labels

    def _encode_piece(self, text: str) -> list[int]:
        return self._processor.tokenizer.encode(text)

    @staticmethod
    def _positions(num_tokens: int, spans: tuple[tuple[int, tuple[int, int, int]], ...]) -> tuple[np.ndarray, int]:
        positions = rope_positions(num_tokens, [MediaSpan(*span) for span in spans])
        return positions.positions_SX, positions.next_position


def _id_of(processor: Processor, name: str) -> int:
    found = processor.tokenizer.id_of(name)
    if found is None:
        raise DataError(f"the model's tokenizer has no token {name!r}; train with one made by `train_tokenizer`")
    return found
