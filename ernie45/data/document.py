"""A document as a sequence: begin of sentence, its texts and pictures, </s>.

Knows nothing about files, labels or how pictures were loaded.
"""

from collections.abc import Sequence

import numpy as np

from ernie45.config.inputs import MediaItem, ModelInput
from ernie45.data.records import Document
from ernie45.processor import Processor
from ernie45.processor.media_cache import LoadedMedia
from ernie45.processor.positions import MediaSpan, num_media_tokens, rope_positions

_NAMES = {"image": "Picture", "video": "Video"}


def document_input(processor: Processor, document: Document, media: Sequence[LoadedMedia]) -> ModelInput:
    """Pictures are introduced as in a conversation, "Picture 1:". Control tokens written in the text stay text."""
    tokens, encode = processor.tokens, processor.tokenizer.encode
    markers = {"image": (tokens.image_start, tokens.image_end), "video": (tokens.video_start, tokens.video_end)}
    ids: list[int] = [begin_id(processor)]
    items: list[MediaItem] = []
    text, counts = "", dict.fromkeys(_NAMES, 0)
    for part in document.parts:
        if part["type"] == "text":
            text += part["text"]
            continue
        found = media[len(items)]
        counts[found.kind] += 1
        ids += encode(f"{text}{_NAMES[found.kind]} {counts[found.kind]}:")
        text = ""
        length = num_media_tokens(found.grid, processor.config.merge_size)
        place = {"offset": len(ids) + 1, "length": length}
        items.append(MediaItem(kind=found.kind, grid=found.grid, content_hash=found.content_hash, **place))
        start, end = markers[found.kind]
        ids += [start, *[tokens.image_patch] * length, end]
    return _assemble(processor, [*ids, *encode(text), tokens.eos], items, media)


def begin_id(processor: Processor) -> int:
    """What a sequence begins with: <|begin_of_sentence|>, else the model's <s>."""
    begin = processor.tokenizer.id_of("<|begin_of_sentence|>")
    return processor.tokens.bos if begin is None else begin


def _assemble(processor: Processor, ids: list[int], items: list[MediaItem], media: Sequence[LoadedMedia]) -> ModelInput:
    token_ids = np.array(ids, dtype=np.int64)
    spans = [MediaSpan(item.offset, item.grid) for item in items]
    positions = rope_positions(len(ids), spans, processor.config.merge_size)
    empty = np.empty((0, 3 * processor.config.patch_size**2), dtype=np.uint8)
    return ModelInput(
        token_ids=token_ids,
        is_vision=np.isin(token_ids, processor.tokens.vision_ids),
        positions=positions.positions_SX,
        patches=np.concatenate([empty, *(item.patches_PC for item in media)]),
        media=tuple(items),
        next_position=positions.next_position,
    )
