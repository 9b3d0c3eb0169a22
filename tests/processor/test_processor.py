"""The processor as a whole: a model folder in, conversations with media to model inputs."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.ernie4_5_vl_moe.image_processing_pil_ernie4_5_vl_moe import Ernie4_5_VLMoeImageProcessorPil

from ernie45.config.errors import CheckpointError, ConfigError, MediaError, RequestError
from ernie45.config.model import ExpertPoolConfig, ModelConfig, SpecialTokens, VisionConfig
from ernie45.config.model_json import config_to_json
from ernie45.config.processor import ProcessorConfig, processor_config_from_json, processor_config_to_json
from ernie45.processor import Processor
from ernie45.processor.image import image_patches
from ernie45.processor.media import MediaLimits, Video
from ernie45.processor.template import ChatTemplate
from ernie45.processor.tokenizer import Tokenizer


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def film(num_frames: int, width: int = 56, height: int = 56) -> Video:
    frames = [np.full((height, width, 3), 10 * index, dtype=np.uint8) for index in range(num_frames)]
    return Video(frames=frames, timestamps=[index / 2 for index in range(num_frames)])


def ask(*parts) -> list[dict]:
    kinds = {str: "text", Image.Image: "image", Video: "video"}
    content = []
    for part in parts:
        kind = next(kind for cls, kind in kinds.items() if isinstance(part, cls))
        content.append({"type": kind, kind: part})
    return [{"role": "user", "content": content}]


def test_an_image_in_a_conversation(processor, tokens):
    """Ids, experts, positions and patches of one small prompt."""
    image = picture(84, 56)
    encoded = processor.encode_chat(ask("hi", image, "?"), enable_thinking=False)
    text = processor.tokenizer.encode
    before = text("<|begin_of_sentence|>User: hiPicture 1:", True)
    picture_ids = [tokens.image_start, *[tokens.image_patch] * 6, tokens.image_end]
    after = text("?\nAssistant: <think>\n\n</think>\n\n", True)
    assert encoded.token_ids.tolist() == [*before, *picture_ids, *after]
    assert encoded.is_vision.tolist() == [False] * len(before) + [True] * 8 + [False] * len(after)
    (item,) = encoded.media
    assert (item.kind, item.grid, item.offset, item.length) == ("image", (1, 4, 6), len(before) + 1, 6)
    np.testing.assert_array_equal(encoded.patches, image_patches(image, processor.config).patches_PC)
    start = len(before) + 1
    assert encoded.positions[start - 1].tolist() == [start - 1] * 3
    assert encoded.positions[start : start + 6].tolist() == [
        [start, start + row, start + column] for row in range(2) for column in range(3)
    ]
    assert encoded.positions[start + 6].tolist() == [start + 3] * 3
    assert encoded.next_position == start + 3 + 1 + len(after)


def test_several_images_and_a_video_keep_their_order(processor, tokens):
    video, wide, tall = film(4), picture(112, 28), picture(28, 84)
    encoded = processor.encode_chat(ask(wide, video, "and", tall))
    assert [(item.kind, item.grid) for item in encoded.media] == [
        ("image", (1, 2, 8)), ("video", (4, 4, 4)), ("image", (1, 6, 2))
    ]  # fmt: skip
    assert [item.length for item in encoded.media] == [4, 8, 3]
    for item in encoded.media:
        span = encoded.token_ids[item.offset - 1 : item.offset + item.length + 1].tolist()
        ends = (tokens.image_start, tokens.image_end) if item.kind == "image" else (tokens.video_start, tokens.video_end)
        assert span == [ends[0], *[tokens.image_patch] * item.length, ends[1]]
    assert encoded.patches.shape == (16 + 64 + 12, 588)
    np.testing.assert_array_equal(encoded.patches[80:], image_patches(tall, processor.config).patches_PC)
    assert "Picture 1:" in processor.prompt_text(ask(wide, video, "and", tall))
    assert "Picture 2:" in processor.prompt_text(ask(wide, video, "and", tall))


def test_text_after_a_long_video_starts_behind_it(processor):
    encoded = processor.encode_chat(ask(film(24)))
    (item,) = encoded.media
    assert item.grid == (24, 4, 4)
    end_marker = encoded.positions[item.offset + item.length]
    assert end_marker.tolist() == [item.offset + 12] * 3


def test_equal_pictures_have_equal_hashes_whatever_they_came_in(processor, tmp_path):
    image = picture(56, 56)
    path = tmp_path / "picture.png"
    image.save(path)
    from_path = processor.encode_chat([{"role": "user", "content": [{"type": "image", "image": path}]}])
    assert from_path.media[0].content_hash == processor.encode_chat(ask(image)).media[0].content_hash
    assert from_path.media[0].content_hash != processor.encode_chat(ask(picture(57, 56))).media[0].content_hash


def test_video_files_in_a_conversation(processor, tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 112, 84
        for _ in range(21):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((84, 112, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    encoded = processor.encode_chat([{"role": "user", "content": [{"type": "video", "video": path}]}])
    assert encoded.media[0].kind == "video"
    assert encoded.media[0].grid == (16, 4, 4)


def test_an_extremely_thin_picture_is_squeezed_where_it_fits_and_refused_where_not(processor, shared_processor):
    """1x10000 becomes 28x5600 under the limits of the released model; a tiny model's 24 tokens cannot hold it."""
    thin = ask("x", Image.new("RGB", (1, 10000)))
    assert shared_processor.encode_chat(thin).media[0].grid == (1, 400, 2)
    with pytest.raises(MediaError, match=r"^messages\[0\]\.content\[1\]\.image has the size 1x10000, which cannot"):
        processor.encode_chat(thin)


def test_media_errors_name_the_part(processor, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 nothing")
    with pytest.raises(MediaError, match=r"^messages\[0\]\.content\[1\]\.image "):
        processor.encode_chat(
            [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image", "image": broken}]}]
        )


def test_plain_text_has_no_template(processor, tokens):
    encoded = processor.encode_text("1 + 2 =</s>")
    assert processor.tokenizer.decode(encoded.token_ids, skip_special_tokens=False) == "1 + 2 =</s>"
    assert tokens.eos not in encoded.token_ids
    assert encoded.positions[:, 0].tolist() == list(range(len(encoded)))
    assert encoded.next_position == len(encoded)
    assert encoded.patches.shape == (0, 588)
    assert processor.encode_text("</s>", allow_special=True).token_ids.tolist() == [tokens.eos]
    assert len(processor.encode_text("")) == 0


def test_ids_that_callers_need(processor, tokens):
    assert processor.stop_token_ids == (tokens.eos, tokens.end_of_turn)
    assert processor.think_start_id == processor.tokenizer.id_of("<think>")
    assert processor.think_end_id == processor.tokenizer.id_of("</think>")


REMOTE_TEMPLATE = """
{{- cls_token }}
{%- set ns = namespace(pictures=0) %}
{%- for message in messages if message.role == 'user' %}
    {{- 'User: ' }}
    {%- for part in message.content %}
        {%- if part.type == 'text' %}
            {{- part.text }}
        {%- elif part.type in ['image', 'image_url'] %}
            {%- set ns.pictures = ns.pictures + 1 %}
            {{- 'Picture ' ~ ns.pictures ~ ':<|IMAGE_START|><|image@placeholder|><|IMAGE_END|>' }}
        {%- elif part.type in ['video', 'video_url'] %}
            {{- 'Video 1:<|VIDEO_START|><|video@placeholder|><|VIDEO_END|>' }}
        {%- endif %}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '\nAssistant: <think>' }}
    {{- '\n\n</think>\n\n' if not enable_thinking }}
{%- endif %}"""


def test_a_template_of_the_remote_code_gives_the_same_ids(tokenizer_data, tokens, config, processor):
    remote = Processor(Tokenizer(tokenizer_data), tokens=tokens, config=config, template=ChatTemplate(REMOTE_TEMPLATE))
    messages = ask("look <s>", picture(56, 56), film(2), "and", picture(28, 28))
    for thinking in (True, False):
        ours = processor.encode_chat(messages, enable_thinking=thinking)
        assert remote.encode_chat(messages, enable_thinking=thinking).token_ids.tolist() == ours.token_ids.tolist()


# Model folders


def write_folder(folder: Path, processor: Processor, tokens: SpecialTokens, patch_size: int = 14) -> None:
    vision = VisionConfig(depth=1, hidden_size=16, num_heads=2, intermediate_size=32, patch_size=patch_size)
    text_pool = ExpertPoolConfig(modality="text", num_experts=4, ffn_size=8, num_active=2)
    vision_pool = ExpertPoolConfig(modality="vision", num_experts=4, ffn_size=8, num_active=2)
    model = ModelConfig(
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
        vocab_size=320,
        head_dim=16,
        mrope_section=(3, 3, 2),
        expert_pools=(text_pool, vision_pool),
        vision=vision,
        tokens=tokens,
    )
    (folder / "config.json").write_text(json.dumps(config_to_json(model, "pt")))
    processor.save(folder)


def test_saved_and_read_again(processor, tokens, tmp_path):
    write_folder(tmp_path, processor, tokens)
    again = Processor.from_dir(tmp_path)
    assert again.config == processor.config
    assert again.tokens == tokens
    assert again.template.source == processor.template.source
    messages = ask("hi", picture(60, 60))
    assert again.encode_chat(messages).token_ids.tolist() == processor.encode_chat(messages).token_ids.tolist()


def test_transformers_reads_the_folder_alike(processor, tokens, tmp_path):
    write_folder(tmp_path, processor, tokens)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)  # not AutoTokenizer: with ernie45.hf it is ours
    messages = ask("hi ", picture(90, 40), "what is it?")
    encoded = processor.encode_chat(messages, enable_thinking=False)
    text = theirs.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi "}, {"type": "image_url"}, {"type": "text", "text": "what is it?"}],
            }
        ],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert text == processor.prompt_text(messages, enable_thinking=False)
    placeholder = "<|IMAGE_PLACEHOLDER|>"
    expanded = text.replace(placeholder, placeholder * encoded.media[0].length)
    assert theirs(expanded, add_special_tokens=False)["input_ids"] == encoded.token_ids.tolist()
    assert theirs.image_token_id == tokens.image_patch
    assert len(theirs) == len(processor.tokenizer)
    images = Ernie4_5_VLMoeImageProcessorPil.from_pretrained(tmp_path)
    assert images(picture(90, 40), return_tensors="np")["image_grid_thw"].tolist() == [list(encoded.media[0].grid)]


def test_a_folder_whose_files_contradict_each_other(processor, tokens, tmp_path):
    write_folder(tmp_path, processor, tokens, patch_size=16)
    with pytest.raises(CheckpointError, match="patch_size and merge_size"):
        Processor.from_dir(tmp_path)
    other = SpecialTokens(**{**vars(tokens), "image_patch": 12})
    write_folder(tmp_path, processor, other)
    with pytest.raises(CheckpointError, match=r"'<\|IMAGE_PLACEHOLDER\|>' has id 5 in the tokenizer but 12"):
        Processor.from_dir(tmp_path)


def test_a_folder_without_config_or_with_a_broken_file(processor, tokens, tmp_path):
    processor.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Processor.from_dir(tmp_path)
    write_folder(tmp_path, processor, tokens)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json .* is not JSON"):
        Processor.from_dir(tmp_path)


def test_where_a_chat_template_may_stand(processor, tokens, tmp_path):
    write_folder(tmp_path, processor, tokens)
    (tmp_path / "chat_template.jinja").unlink()
    messages = [{"role": "user", "content": "x"}]
    assert Processor.from_dir(tmp_path).prompt_text(messages) == processor.prompt_text(messages)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "in config"}))
    assert Processor.from_dir(tmp_path).prompt_text(messages) == "in config"
    named = [{"name": "default", "template": "named"}, {"name": "other", "template": "other"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    assert Processor.from_dir(tmp_path).prompt_text(messages) == "named"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "older file"}))
    assert Processor.from_dir(tmp_path).prompt_text(messages) == "older file"
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }}")
    assert Processor.from_dir(tmp_path).prompt_text(messages) == "file </s>"


def test_a_text_model_refuses_pictures(tokenizer_data, tokens):
    text = json.dumps(tokenizer_data).replace("IMAGE_PLACEHOLDER", "UNUSED")
    processor = Processor(Tokenizer(json.loads(text)), tokens=tokens)
    with pytest.raises(RequestError, match=r"messages\[0\]\.content\[0\]\.image is given, but this model reads text only"):
        processor.encode_chat(ask(picture(9, 9)))


def test_a_text_model_with_a_vocabulary_for_pictures_refuses_them_too(tokenizer_data, tmp_path):
    """The text releases share the vocabulary, placeholders included; their config says nothing of those ids."""
    model = ModelConfig(
        hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2, intermediate_size=64, head_dim=16, mrope_section=(3, 3, 2)
    )
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(model, "pt")))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_data))
    processor = Processor.from_dir(tmp_path)
    assert processor.stop_token_ids == (2, 4)
    assert processor.encode_chat([{"role": "user", "content": "x"}]).media == ()
    with pytest.raises(RequestError, match="reads text only"):
        processor.encode_chat(ask(picture(9, 9)))


def test_limits_of_the_processor_reach_the_media(tokenizer_data, tokens):
    processor = Processor(Tokenizer(tokenizer_data), tokens=tokens, limits=MediaLimits(max_image_pixels=99))
    with pytest.raises(MediaError, match="limit of 99 pixels"):
        processor.encode_chat(ask(picture(10, 10)))


# Preprocessor files


def test_preprocessor_files_of_three_programs():
    defaults = ProcessorConfig()
    remote = {
        "image_processor_type": "Ernie4_5_VLImageProcessor", "min_pixels": 3136, "max_pixels": 28 * 28 * 1280,
        "size": {"min_pixels": 3136, "max_pixels": 28 * 28 * 1280}, "do_rescale": False, "do_normalize": False,
        "auto_map": {}, "resample": 3, "patch_size": 14, "merge_size": 2, "temporal_conv_size": 2,
    }  # fmt: skip
    assert processor_config_from_json(remote) == defaults
    native = Ernie4_5_VLMoeImageProcessorPil(size={"shortest_edge": 784, "longest_edge": 7840}).to_dict()
    video = {"size": {"shortest_edge": 1568, "longest_edge": 3136}, "fps": 1, "min_frames": 2, "max_frames": 9}
    read = processor_config_from_json(native, video | {"draw_on_frames": False, "font": "x.ttf"})
    assert (read.image_min_pixels, read.image_max_pixels) == (784, 7840)
    assert (read.video_min_pixels, read.video_max_pixels) == (1568, 3136)
    assert (read.video_fps, read.video_min_frames, read.video_max_frames, read.render_timestamp) == (1, 2, 9, False)
    assert processor_config_from_json(processor_config_to_json(read)) == read
    assert processor_config_from_json({}) == defaults


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"image_max_pixel": 5}, "unknown key 'image_max_pixel'"),
        ({"resample": 2}, r"resample \(2\) must be 3"),
        ({"do_resize": False}, "do_resize"),
        ({"patch_size": 0}, "patch_size"),
        ({"image_min_pixels": 10, "image_max_pixels": 100}, r"image_max_pixels \(100\) must be at least"),
        ({"frames_sample": "rand"}, "frames_sample"),
        ({"video_fps": 0}, "video_fps"),
        ({"video_min_frames": 9, "video_max_frames": 8}, "video_min_frames"),
    ],
)
def test_bad_preprocessor_files(data, error):
    with pytest.raises(ConfigError, match=error):
        processor_config_from_json(data)


def test_bytes_of_an_image(processor):
    file = io.BytesIO()
    picture(30, 30).save(file, "PNG")
    encoded = processor.encode_chat([{"role": "user", "content": [{"type": "image", "image": file.getvalue()}]}])
    assert encoded.media[0].grid == (1, 2, 2)
