"""Pictures over HTTP: everything that can be wrong with one, each with its status and code; names, limits, processing."""

import asyncio
import base64
import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from ernie45.config.errors import ConfigError, MediaUnknownError, RequestError
from ernie45.config.server import ServerConfig
from ernie45.server import media as media_module
from ernie45.server.media import MediaRequest, RequestMedia, media_limits, tenant_of


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def picture(width: int = 56, height: int = 84, colour: str = "red") -> bytes:
    return encoded(Image.new("RGB", (width, height), colour))


def bomb() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a few bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def clip(num_frames: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 64, 48, "yuv420p", 1
        for _ in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(url: str | None, kind: str = "image_url", uuid: str | None = None) -> dict[str, Any]:
    return {"type": kind} | ({kind: {"url": url}} if url is not None else {}) | ({"uuid": uuid} if uuid is not None else {})


JPEG = encoded(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")
CLIP = clip(30)


class Pictures(BaseHTTPRequestHandler):
    """What hosts of pictures do."""

    protocol_version = "HTTP/1.1"
    num_served = 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        try:
            getattr(self, self.path.strip("/").split("/")[0])()
        except OSError:  # the other side has had enough
            self.close_connection = True

    def send(self, body: bytes, kind: str = "image/png", length: int | None = None) -> None:
        type(self).num_served += 1
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def good(self) -> None:
        self.send(picture(), "application/json")

    def text(self) -> None:
        self.send(b"hello, this is a text" * 100)

    def empty(self) -> None:
        self.send(b"")

    def cut(self) -> None:
        self.send(picture()[:60], length=200)
        self.close_connection = True

    def loop(self) -> None:
        self.redirect("/loop")

    def inside(self) -> None:
        self.redirect("http://169.254.169.254/latest/meta-data")

    def missing(self) -> None:
        self.send_error(404)

    def drip(self) -> None:
        self.send(b"", length=1000)
        while True:
            self.wfile.write(b"\x89")
            threading.Event().wait(0.05)

    def endless(self) -> None:
        self.send(b"", length=10**12)

    def unannounced(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        for _ in range(10_000):
            self.wfile.write(b"\x89PNG\r\n\x1a\n" + bytes(50_000))

    def never(self) -> None:
        threading.Event().wait(5)


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An allowed folder with a picture, links and a pipe in it, and a picture beside it."""
    parent = tmp_path_factory.mktemp("media")
    inside = parent / "inside"
    inside.mkdir()
    (inside / "good.png").write_bytes(picture())
    (parent / "secret.png").write_bytes(picture())
    (inside / "link.png").symlink_to(parent / "secret.png")
    (inside / "ring.png").symlink_to(inside / "ring.png")
    os.mkfifo(inside / "pipe.png")
    return inside


@pytest.fixture
def strict(start: Any, folder: Path) -> Any:
    """A server that may fetch from 127.0.0.1 alone, with limits that tests can wait for."""
    server = start(allowed_media_hosts=("127.0.0.1",), allowed_media_folder=folder)
    changes = {"total_seconds": 1.0, "connect_seconds": 0.5, "max_image_bytes": 300_000, "max_video_frames": 40}
    server.service.processor.limits = replace(media_limits(server.config), **changes)
    server.service.media = RequestMedia(server.config, server.service.processor)
    return server.wait()


CASES: dict[str, tuple[str, Any, int, str]] = {
    "truncated JPEG": ("image_url", data_url(JPEG[:2000]), 400, "invalid_media"),
    "bomb": ("image_url", data_url(bomb()), 400, "media_too_large"),
    "no such shape": ("image_url", data_url(picture(1, 10_000)), 400, "invalid_media"),
    "zero bytes": ("image_url", data_url(b""), 400, "invalid_media"),
    "text as .png": ("image_url", data_url(b"hello world, no picture"), 415, "unsupported_media_type"),
    "PDF": ("image_url", data_url(b"%PDF-1.7\n" + bytes(range(256))), 415, "unsupported_media_type"),
    "SVG": ("image_url", data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), 415, "unsupported_media_type"),
    "video as image": ("image_url", data_url(CLIP), 415, "unsupported_media_type"),
    "image as video": ("video_url", data_url(picture()), 415, "unsupported_media_type"),
    "wrong base64": ("image_url", "data:image/png;base64,@@@@", 400, "invalid_media"),
    "no base64": ("image_url", "data:image/png,abc", 400, "invalid_media"),
    "too many bytes": ("image_url", data_url(bytes(400_000)), 400, "media_too_large"),
    "playlist": ("video_url", data_url(b"#EXTM3U\nfile:///etc/passwd\n"), 415, "unsupported_media_type"),
    "half a video": ("video_url", data_url(CLIP[: len(CLIP) // 2]), 400, "invalid_media"),
    "no frames": ("video_url", data_url(clip(0)), 400, "invalid_media"),
    "too long a video": ("video_url", data_url(clip(41)), 400, "media_too_large"),
    "missing file": ("image_url", "file://{folder}/none.png", 400, "invalid_media"),
    "link out": ("image_url", "file://{folder}/link.png", 400, "media_not_allowed"),
    "ring of links": ("image_url", "file://{folder}/ring.png", 400, "invalid_media"),
    "pipe": ("image_url", "file://{folder}/pipe.png", 400, "invalid_media"),
    "folder": ("image_url", "file://{folder}", 400, "invalid_media"),
    "dots": ("image_url", "file://{folder}/../secret.png", 400, "media_not_allowed"),
    "encoded dots": ("image_url", "file://{folder}/%2e%2e/secret.png", 400, "media_not_allowed"),
    "zero in path": ("image_url", "file://{folder}/%00.png", 400, "invalid_media"),
    "passwd": ("image_url", "file:///etc/passwd", 400, "media_not_allowed"),
    "redirect loop": ("image_url", "{host}/loop", 400, "invalid_media"),
    "redirect inside": ("image_url", "{host}/inside", 400, "media_not_allowed"),
    "not allowed host": ("image_url", "http://10.0.0.1/a.png", 400, "media_not_allowed"),
    "404": ("image_url", "{host}/missing", 400, "invalid_media"),
    "slow drip": ("image_url", "{host}/drip", 400, "media_timeout"),
    "never": ("image_url", "{host}/never", 400, "media_timeout"),
    "endless": ("image_url", "{host}/endless", 400, "media_too_large"),
    "endless, no length": ("image_url", "{host}/unannounced", 400, "media_too_large"),
    "text by http": ("image_url", "{host}/text", 415, "unsupported_media_type"),
    "empty by http": ("image_url", "{host}/empty", 400, "invalid_media"),
    "cut by http": ("image_url", "{host}/cut", 400, "invalid_media"),
    "uuid alone": ("image_url", None, 400, "media_not_remembered"),
}


def test_every_kind_of_bad_picture_has_its_status_and_code(strict: Any, host: str, folder: Path) -> None:
    """One server for all of them, and it still works afterwards."""
    faults = []
    for name, (kind, url, status, code) in CASES.items():
        url = url.format(host=host, folder=folder) if url and not url.startswith("data:") else url
        response = strict.chat([part(url, kind, uuid=None if url else "nobody")])
        error = response.json().get("error", {})
        if (response.status_code, error.get("code")) != (status, code):
            faults.append(f"{name}: {response.status_code} {response.text[:300]}")
        elif not error["param"].startswith("messages[0].content[0]"):
            faults.append(f"{name}: param {error['param']}")
    assert not faults, "\n".join(faults)
    for url in (f"{host}/good", data_url(picture()), f"file://{folder}/good.png"):
        strict.answer([part(url)])
    strict.answer([part(data_url(CLIP), "video_url")])
    assert strict.service.num_active == 0


def test_the_declared_type_is_not_believed(server: Any, engine: Any) -> None:
    server.answer([part(data_url(JPEG, "text/plain")), part(data_url(picture(), "video/mp4"))])
    assert len(engine.prompts[-1].media) == 2


def test_a_client_that_leaves_ends_the_download_it_waited_for(start: Any, host: str, until: Any) -> None:
    server = start(allow_private_media=True).wait()
    body = {"messages": [{"role": "user", "content": [part(f"{host}/never")]}]}
    with pytest.raises(httpx.ReadTimeout):
        server.client.post("/v1/chat/completions", json=body, timeout=0.3)
    until(lambda: server.service.num_active == 0, 4.0)
    assert server.service.media._loader._fetcher._free_of_host == {}  # far before the host's own end or the limit of 20 s


# Names


def test_a_uuid_stands_for_the_bytes_of_an_earlier_request(server: Any, engine: Any) -> None:
    server.answer([part(data_url(picture(colour="green")), uuid="green")])
    server.answer([part(None, uuid="green"), {"type": "text", "text": "again"}])
    server.answer([{"type": "image_url", "image_url": None, "uuid": "green"}])
    hashes = {item.content_hash for prompt in engine.prompts for item in prompt.media}
    assert len(engine.prompts) == 3
    assert len(hashes) == 1


def test_a_uuid_is_known_only_with_the_same_key_and_salt(server: Any) -> None:
    def ask(parts: list[Any], key: str, **fields: Any) -> int:
        body = {"messages": [{"role": "user", "content": parts}], **fields}
        headers = {"Authorization": f"Bearer {key}"}
        return server.client.post("/v1/chat/completions", json=body, headers=headers).status_code

    named = [part(None, uuid="mine")]
    assert ask([part(data_url(picture()), uuid="mine")], "a", cache_salt="s") == 200
    assert ask(named, "a", cache_salt="s") == 200
    assert ask(named, "b", cache_salt="s") == 400
    assert ask(named, "a") == 400
    assert ask(named, "a", cache_salt="t") == 400
    assert len({tenant_of(*pair) for pair in (("a", "bc"), ("ab", "c"), (None, "abc"), ("abc", None), (None, None))}) == 5


def test_mm_hashes_are_names_too(server: Any, engine: Any) -> None:
    red, blue = data_url(picture()), data_url(picture(colour="blue"))
    server.answer([part(red), part(blue)], mm_hashes=["r", None])
    server.answer([part(None, uuid="r")])
    assert engine.prompts[-1].media[0].content_hash == engine.prompts[-2].media[0].content_hash
    # A hash that lies names a picture for its own tenant, and never becomes the content key of pages.
    server.answer([part(blue)], mm_hashes=[engine.prompts[-1].media[0].content_hash])
    assert engine.prompts[-1].media[0].content_hash == engine.prompts[0].media[1].content_hash
    for fields, words in (
        ({"mm_hashes": ["a", "b"]}, "mm_hashes (2) must have one text or null for each picture"),
        ({"mm_hashes": [""]}, "mm_hashes[0] must be a text of 1 to 256"),
    ):
        response = server.chat([part(red)], **fields)
        assert response.status_code == 400
        assert words in response.text
    assert "disagree" in server.chat([part(red, uuid="x")], mm_hashes=["y"]).text
    assert "has no effect without pictures" in server.chat("hi", mm_hashes=["y"]).text


def test_the_same_address_with_the_same_uuid_is_not_fetched_again(start: Any, host: str) -> None:
    server = start(allow_private_media=True).wait()
    before = Pictures.num_served
    for _ in range(3):
        server.answer([part(f"{host}/good", uuid="u")])
    assert Pictures.num_served == before + 1
    for _ in range(2):  # without a name it may have changed, so it is fetched, but not decoded
        server.answer([part(f"{host}/good")])
    assert Pictures.num_served == before + 3
    stats = server.service.media.stats()
    assert (stats.num_items, stats.num_misses) == (1, 1)


@pytest.mark.parametrize(
    "bad",
    [{"type": "image_url"}, {"type": "image_url", "image_url": None}, {"type": "image_url", "uuid": ""}, part("", uuid="u")],
)
def test_a_part_without_bytes_and_name_is_refused(server: Any, bad: dict[str, Any]) -> None:
    response = server.chat([bad])
    assert response.status_code == 400
    assert "image_url" in response.json()["error"]["message"] or "uuid" in response.json()["error"]["message"]


def test_names_need_a_cache(start: Any) -> None:
    server = start(max_processor_cache=0.0).wait()
    server.answer([part(data_url(picture()), uuid="u")])
    assert server.chat([part(None, uuid="u")]).json()["error"]["code"] == "media_not_remembered"


# Limits and processing


def test_limits_per_prompt(start: Any) -> None:
    server = start(limit_mm_per_prompt={"image": 2, "video": 0}).wait()
    server.answer([part(data_url(picture()))] * 2)
    response = server.chat([part(data_url(picture()))] * 3)
    assert response.status_code == 400
    assert "messages (3 images) may have at most 2 (--limit-mm-per-prompt" in response.text
    assert "messages (1 videos) may have at most 0" in server.chat([part(data_url(CLIP), "video_url")]).text


def test_processing_as_the_server_and_as_the_request_say(start: Any, new_engine: Any) -> None:
    big = data_url(picture(280, 280))
    server = start(new_engine, mm_processor_kwargs={"image_max_pixels": 9 * 784, "video_target_frames": 4}).wait()
    server.answer([part(big)])
    server.answer([part(big)], mm_processor_kwargs={"image_max_pixels": 4 * 784})
    server.answer([part(data_url(CLIP), "video_url")])
    server.answer([part(data_url(CLIP), "video_url")], mm_processor_kwargs={"video_target_frames": 2})
    assert [prompt.media[0].grid for prompt in new_engine.prompts][:2] == [(1, 6, 6), (1, 4, 4)]
    assert [prompt.media[0].grid[0] for prompt in new_engine.prompts][2:] == [4, 2]
    for kwargs, words in (
        ({"image_max_pixel": 784}, "unknown key 'image_max_pixel'"),
        ({"image_max_pixels": 10**8}, "at most 7056, what the server is set to"),
        ({"image_min_pixels": 10**9}, "what the server is set to"),
        ({"video_fps": "fast"}, "must be a number"),
    ):
        response = server.chat([part(big)], mm_processor_kwargs=kwargs)
        assert response.status_code == 400, kwargs
        assert words in response.text


def test_wrong_settings_end_the_start() -> None:
    for options in (
        {"limit_mm_per_prompt": {"images": 1}},
        {"mm_processor_kwargs": {"fps": 1}},
        {"max_processor_cache": -1.0},
        {"max_media_in_flight": 0.0},
        {"max_processor_cache": float("nan")},
    ):
        with pytest.raises(ConfigError):
            ServerConfig(model="m", **options)


def test_pictures_that_do_not_fit_are_refused_before_all_are_decoded(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    plain = media_module.MediaLoader._load

    async def counted(self: Any, *args: Any) -> Any:
        decoded.append(1)
        return await plain(self, *args)

    monkeypatch.setattr(media_module.MediaLoader, "_load", counted)

    async def main() -> None:
        media = RequestMedia(ServerConfig(model="m"), processor)
        messages = [{"role": "user", "content": [part(data_url(picture(colour="red")))] * 50}]
        with pytest.raises(RequestError, match="must fit into 20 tokens"):
            await media.load(MediaRequest(messages=messages, max_tokens=20))
        named = [{"role": "user", "content": [part(None, uuid="u")]}]
        with pytest.raises(MediaUnknownError):
            await media.load(MediaRequest(messages=named, max_tokens=20))
        await media.close()

    asyncio.run(main())


def test_tokenize_loads_pictures_as_chat_does(server: Any, engine: Any) -> None:
    messages = [{"role": "user", "content": [part(data_url(picture())), {"type": "text", "text": "hi"}]}]
    response = server.client.post("/tokenize", json={"messages": messages})
    assert response.status_code == 200, response.text
    server.answer(messages[0]["content"])
    assert response.json()["tokens"] == engine.prompts[-1].token_ids.tolist()
