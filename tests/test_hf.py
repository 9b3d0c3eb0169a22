"""transformers' Auto classes answer with ours: Baidu's snippet as it is, on every layout, with the engine's tokens."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

import ernie45.hf  # noqa: E402
from ernie45.checkpoint import convert, resolve_model  # noqa: E402
from ernie45.config.errors import ConfigError, RequestError  # noqa: E402
from ernie45.config.sampling import SamplingParams  # noqa: E402
from ernie45.engine.llm import LLM  # noqa: E402
from ernie45.hf import ErnieForCausalLM, ErnieProcessor, ErnieTokenizer  # noqa: E402
from ernie45.hf.auto import ernie_folder  # noqa: E402
from ernie45.processor import Processor  # noqa: E402
from ernie45.processor.media import Video  # noqa: E402

# The model card's, word for word but for the path.
SNIPPET = """
import torch
from transformers import AutoProcessor, AutoTokenizer, AutoModelForCausalLM
model_path = MODEL_PATH
model = AutoModelForCausalLM.from_pretrained(
    model_path,
    device_map="auto",
    torch_dtype=torch.bfloat16,
    trust_remote_code=True
)
processor = AutoProcessor.from_pretrained(model_path, trust_remote_code=True)
processor.eval()
model.add_image_preprocess(processor)
messages = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Describe the image."},
            {"type": "image_url", "image_url": {"url": "https://paddlenlp.bj.bcebos.com/datasets/paddlemix/demo_images/example1.jpg"}},
        ]
    },
]
text = processor.apply_chat_template(
    messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
)
image_inputs, video_inputs = processor.process_vision_info(messages)
inputs = processor(
    text=[text],
    images=image_inputs,
    videos=video_inputs,
    padding=True,
    return_tensors="pt",
)
device = next(model.parameters()).device
inputs = inputs.to(device)
generated_ids = model.generate(
    inputs=inputs['input_ids'].to(device),
    **inputs,
    max_new_tokens=128
)
output_text = processor.decode(generated_ids[0])
print(output_text)
"""
TINY = resolve_model("tiny")
SAMPLES = TINY.parent / "samples"
STRIP = next(path for path in sorted(SAMPLES.iterdir()) if path.suffix == ".png")
LAYOUTS = ("pt", "native", "paddle")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped model in every layout, one with the traps of real repositories: code, and classes that it names."""
    made = {}
    for layout in LAYOUTS:
        made[layout] = tmp_path_factory.mktemp("layouts") / layout
        convert("tiny", made[layout], layout)
    file = made["pt"] / "config.json"
    auto_map = {"AutoModelForCausalLM": "modeling.Evil", "AutoConfig": "modeling.Evil", "AutoProcessor": "modeling.Evil"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": auto_map}))
    (made["pt"] / "modeling.py").write_text("raise SystemExit('code of a stranger was run')")
    file = made["native"] / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor_class": "Ernie4_5_VLMoeProcessor"}))
    return made


@pytest.fixture(scope="module")
def model() -> ErnieForCausalLM:
    return transformers.AutoModelForCausalLM.from_pretrained("tiny", torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def processor() -> ErnieProcessor:
    return transformers.AutoProcessor.from_pretrained("tiny", trust_remote_code=True)


def ask(question: str, *pictures: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": str(picture)}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def encode(processor: ErnieProcessor, *conversations: Any, **options: Any) -> Any:
    options = {"add_generation_prompt": True, "tokenize": True, "padding": True, "return_tensors": "pt", **options}
    return processor.apply_chat_template(list(conversations), **options)


def greedy(inputs: Any, num_tokens: int) -> tuple[int, ...]:
    """What the engine by itself says, and the token that ended it."""
    engine = LLM.load("tiny")
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, stop_token_ids=(2, 4))
    done = engine.generate([inputs], params)[0]
    return (*done.token_ids, *([done.stop_token_id] if done.stop_token_id is not None else []))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_snippet_of_the_model_card_runs_as_it_is(folders: Any, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    monkeypatch.setattr("ernie45.processor.source.fetch", lambda url, *_: fetched.append(url) or STRIP.read_bytes())
    printed, scope = io.StringIO(), {"MODEL_PATH": str(folders[layout])}
    with contextlib.redirect_stdout(printed):
        exec(SNIPPET, scope)
    assert fetched == ["https://paddlenlp.bj.bcebos.com/datasets/paddlemix/demo_images/example1.jpg"]
    ids, prompt = scope["generated_ids"], scope["inputs"]["input_ids"]
    assert torch.equal(ids[:, : prompt.shape[1]], prompt)
    assert isinstance(scope["model"], ErnieForCausalLM)
    assert scope["model"].dtype == torch.bfloat16
    # The same as the engine in the same type says by itself.
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Describe the image."}, {"type": "image", "image": STRIP}]}
    ]
    inputs = Processor.from_dir(folders[layout]).encode_chat(messages, enable_thinking=False)
    params = SamplingParams(max_tokens=128, temperature=0.0, stop_token_ids=(2, 4))
    done = LLM(scope["model"].model).generate([inputs], params)[0]
    assert ids[0, prompt.shape[1] :].tolist()[: len(done.token_ids)] == list(done.token_ids)
    assert printed.getvalue() == scope["processor"].decode(ids[0]) + "\n"


def test_answers_are_those_of_the_engine(model: Any, processor: Any) -> None:
    messages = ask("Read the digits.", STRIP)
    features = encode(processor, messages, enable_thinking=False)
    ids = model.generate(**features, max_new_tokens=24)
    tokens = tuple(ids[0, features["input_ids"].shape[1] :].tolist())
    source = [{"role": "user", "content": [{"type": "image", "image": STRIP}, messages[0]["content"][1]]}]
    assert tokens == greedy(processor.processor.encode_chat(source, enable_thinking=False), 24)
    assert processor.decode(tokens, skip_special_tokens=True).strip()


def test_rows_of_different_lengths_and_pictures_are_answered_as_alone(model: Any, processor: Any) -> None:
    conversations = [ask("What is 47+12?"), ask("Read the digits.", STRIP), ask("Compare.", STRIP, STRIP)]
    together = encode(processor, *conversations, enable_thinking=False)
    width = together["input_ids"].shape[1]
    rows = model.generate(**together, max_new_tokens=12)
    assert together["attention_mask"][0, 0] == 0  # padded in front
    for conversation, row in zip(conversations, rows, strict=True):
        alone = encode(processor, conversation, enable_thinking=False)
        answer = model.generate(**alone, max_new_tokens=12)[0, alone["input_ids"].shape[1] :].tolist()
        assert row[width:].tolist()[: len(answer)] == answer
        assert set(row[width + len(answer) :].tolist()) <= {0}


def test_videos_and_images_in_any_order(model: Any, processor: Any) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    clip = Video(frames=list(frames), timestamps=[0.0, 0.5, 1.0, 1.5])
    parts = [{"type": "video", "video": clip}, {"type": "image", "image": str(STRIP)}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}]
    images, videos = processor.process_vision_info(messages)
    assert (len(images), len(videos)) == (1, 1)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    features = processor(text=text, images=images, videos=videos, return_tensors="pt")
    assert torch.equal(features["grid_thw"], encode(processor, messages)["grid_thw"])
    assert features["grid_thw"][0, 0] == 4
    assert torch.equal(features["images"], encode(processor, messages)["images"])
    assert model.generate(**features, max_new_tokens=3).shape[1] <= features["input_ids"].shape[1] + 3
    assert processor.process_vision_info(ask("no picture")) == (None, None)


def test_the_text_snippet_with_a_tokenizer_alone(model: Any) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained("tiny", trust_remote_code=True)
    assert isinstance(tokenizer, ErnieTokenizer)
    options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    text = tokenizer.apply_chat_template(ask("What is 47+12?"), **options)
    inputs = tokenizer([text], add_special_tokens=False, return_tensors="pt").to(model.device)
    ids = model.generate(inputs.input_ids, max_new_tokens=16)
    answer = tuple(ids[0][inputs.input_ids.shape[1] :].tolist())
    assert answer == greedy(tokenizer.processor.encode_chat(ask("What is 47+12?"), enable_thinking=False), 16)
    assert tokenizer.decode(answer, skip_special_tokens=True).strip()
    assert tokenizer.encode(text) == inputs.input_ids[0].tolist()
    assert tokenizer.convert_tokens_to_ids(["</s>", "nothing"]) == [tokenizer.eos_token_id, None]
    assert tokenizer.batch_decode([[2]], skip_special_tokens=True) == [""]


def test_forward_gives_logits_and_the_loss(model: Any, processor: Any) -> None:
    features = encode(processor, ask("What is 47+12?"), ask("Read the digits.", STRIP))
    labels = features["input_ids"].masked_fill(features["attention_mask"] == 0, -100)
    with torch.no_grad():
        output = model(**features, labels=labels)
    assert output.logits.shape == (*features["input_ids"].shape, len(processor.tokenizer))
    assert torch.isfinite(output.loss)
    with torch.no_grad():
        alone = model(**encode(processor, ask("Read the digits.", STRIP)))
    torch.testing.assert_close(output.logits[1, -5:], alone.logits[0, -5:])
    first = model.generate(**features, max_new_tokens=1)[:, -1]
    assert first.tolist() == output.logits[:, -1].argmax(-1).tolist()


def test_sampling_follows_torchs_seed(model: Any, processor: Any) -> None:
    features = encode(processor, ask("Tell me something."))

    def sample(seed: int) -> Any:
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 10, "num_return_sequences": 2}
        return model.generate(**features, **options)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))
    assert sample(1).shape[0] == 2


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"num_beams": 4}, "num_beams (4) must be 1"),
        ({"streamer": object()}, "streamer is not served"),
        ({"temprature": 1}, "temprature is not served"),
        ({"input_ids": torch.tensor([[1, 2]])}, "differ"),
        ({"images": torch.zeros(1, 588)}, "belong together"),
    ],
)
def test_what_generate_does_not_serve_is_refused(model: Any, options: Any, rule: str) -> None:
    with pytest.raises(RequestError) as error:
        model.generate(torch.tensor([[1, 300, 301]]), **{"max_new_tokens": 2, **options})
    assert rule in str(error.value)


def test_features_that_contradict_each_other_are_refused(model: Any, processor: Any) -> None:
    features = dict(encode(processor, ask("Read the digits.", STRIP)))
    ids = features["input_ids"]
    for changes, rule in (
        ({"images": features["images"][:-1]}, "patches"),
        ({"images": features["images"].float()}, "uint8"),
        ({"images": None, "grid_thw": None}, "does not fit"),
        ({"position_ids": features["position_ids"] + 1}, "position_ids differs"),
        ({"input_ids": ids[:, -3:]}, "attention_mask"),
        ({"input_ids": ids[0]}, "must be"),
        ({"images": features["images"].repeat(2, 1), "grid_thw": features["grid_thw"].repeat(2, 1)}, "more than"),
    ):
        with pytest.raises(RequestError, match=rule):
            model.generate(**{**features, **changes}, max_new_tokens=1)
    text = processor.apply_chat_template(ask("x", STRIP), tokenize=False)
    for arguments, rule in (
        ({"text": text}, "1 places for images, and 0 are left"),
        ({"text": "no place", "images": [STRIP]}, "images has 1 more"),
        ({"text": ["a", "b c d e f"], "return_tensors": "pt"}, "set padding=True"),
        ({"text": "a", "return_tensors": "np"}, "must be 'pt' or None"),
        ({"text": []}, "at least one"),
    ):
        with pytest.raises(RequestError, match=rule):
            processor(**arguments)


def test_devices(model: Any) -> None:
    for device_map in (None, "cpu", {"": "cpu"}, torch.device("cpu")):
        loaded = transformers.AutoModelForCausalLM.from_pretrained("tiny", device_map=device_map, dtype="auto")
        assert loaded.device.type == "cpu"
    for device_map in ("nowhere", {"a": "cpu", "b": "cuda"}):
        with pytest.raises(ConfigError, match="device_map"):
            transformers.AutoModelForCausalLM.from_pretrained("tiny", device_map=device_map)


def test_other_models_go_to_transformers(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    before = transformers.AutoProcessor.from_pretrained
    ernie45.hf.install()  # a second time changes nothing
    assert transformers.AutoProcessor.from_pretrained == before
    # A name that is not on this machine is transformers' to complain about.
    assert ernie_folder("nowhere/at-all", local_files_only=True, cache_dir=tmp_path) is None
    assert ernie_folder(tmp_path) is None
