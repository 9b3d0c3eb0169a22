"""Loading for many at once: order, bounds, what is kept, who finds it, and names in place of bytes."""

import asyncio
import base64
import io
import threading
import time

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ernie45.config.errors import MediaError, MediaFormatError, MediaSizeError, MediaUnknownError, RequestError
from ernie45.config.media import override_processor
from ernie45.config.processor import ProcessorConfig
from ernie45.processor import loader as loader_module
from ernie45.processor.loader import LoadOptions, MediaLoader, Processing, load_all, load_media
from ernie45.processor.media import MediaLimits, Video
from ernie45.processor.media_cache import LoadedMedia, MediaCache, MediaKey
from ernie45.processor.messages import MediaSource

CONFIG = ProcessorConfig(
    image_min_pixels=784, image_max_pixels=24 * 784, video_min_pixels=784, video_max_pixels=4 * 784, video_min_frames=1
)
LIMITS = MediaLimits()


def png(width: int = 56, height: int = 84, colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def image(source, uuid: str | None = None) -> MediaSource:
    return MediaSource("image", source, "messages[0].content[0].image_url", uuid)


def load(sources, cache=None, limits=LIMITS, **options):
    """Through a loader of its own."""

    async def main():
        loader = MediaLoader(CONFIG, limits, cache, num_workers=2)
        try:
            return await loader.load(sources, LoadOptions(**options))
        finally:
            await loader.close()

    return asyncio.run(main())


@pytest.fixture
def decoded(monkeypatch):
    """Counts what is decoded."""
    calls = []
    plain = loader_module.load_image
    monkeypatch.setattr(loader_module, "load_image", lambda *args: calls.append(args) or plain(*args))
    return calls


def test_both_ways_give_the_same_in_order():
    sources = [image(png(56, 56)), image(data_url(png(84, 28))), image(Image.new("RGB", (28, 28)))]
    sources.append(MediaSource("video", Video(frames=[np.zeros((56, 56, 3), np.uint8)], timestamps=[0.0]), "v"))
    many, one_by_one = load(sources), load_all(sources, CONFIG, LIMITS)
    assert [media.grid for media in many] == [(1, 4, 4), (1, 2, 6), (1, 2, 2), (2, 4, 4)]
    for left, right in zip(many, one_by_one, strict=True):
        assert (left.kind, left.grid, left.content_hash) == (right.kind, right.grid, right.content_hash)
        np.testing.assert_array_equal(left.patches_PC, right.patches_PC)


def test_the_first_failure_ends_the_others(monkeypatch):
    seen = threading.Semaphore(0)
    plain = loader_module.load_image

    def slow(source, limits, field):
        seen.release()
        return plain(source, limits, field)

    monkeypatch.setattr(loader_module, "load_image", slow)
    with pytest.raises(MediaFormatError, match="is text"):
        load([image(b"no picture")] + [image(png())] * 40)
    num_started = 0
    while seen.acquire(blocking=False):
        num_started += 1
    assert num_started < 41


def test_loading_ends_as_soon_as_there_is_no_room(decoded):
    with pytest.raises(RequestError, match="must fit into 10 tokens"):
        load([image(png())] * 50, max_tokens=10)
    assert len(decoded) < 50
    assert len(load([image(png())], max_tokens=6)) == 1


def test_a_picture_is_decoded_once(decoded):
    cache = MediaCache(2**20)
    first, second = (load([image(data_url(png()))], cache)[0] for _ in range(2))
    assert len(decoded) == 1
    assert first is second
    load([image(png(colour="blue"))], cache)
    assert len(decoded) == 2
    assert (cache.stats().num_items, cache.stats().num_hits) == (2, 1)
    cache.check_integrity()


@pytest.fixture
def held(monkeypatch):
    """Decoding begins to be counted, and waits until it is let go on."""
    begun, go_on = threading.Semaphore(0), threading.Event()
    plain = loader_module.load_image

    def slow(*args):
        begun.release()
        assert go_on.wait(20)
        return plain(*args)

    monkeypatch.setattr(loader_module, "load_image", slow)
    return begun, go_on


def test_equal_pictures_that_come_together_are_decoded_once_for_each_tenant(held):
    begun, go_on = held

    async def main():
        cache = MediaCache(2**20)
        loader = MediaLoader(CONFIG, LIMITS, cache, num_workers=2)
        tasks = [
            asyncio.ensure_future(loader.load([image(data_url(png()))] * 3, LoadOptions(tenant=tenant))) for tenant in "aaab"
        ]
        assert await asyncio.to_thread(begun.acquire, timeout=20)
        await asyncio.sleep(0.1)
        tasks[0].cancel()  # who began leaves: the others get it all the same
        go_on.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[0].cancelled()
        assert len({id(media) for task in tasks[1:3] for media in task.result()}) == 1
        assert len(tasks[3].result()) == 3
        assert not begun.acquire(blocking=False) or not begun.acquire(blocking=False)  # one for each tenant
        cache.check_integrity()
        await asyncio.sleep(0)
        assert not loader._under_way
        await loader.close()

    asyncio.run(main())


def test_a_picture_that_nobody_waits_for_any_more_is_begun_anew(held):
    begun, go_on = held

    async def main():
        loader = MediaLoader(CONFIG, LIMITS, MediaCache(2**20), num_workers=2)
        task = asyncio.ensure_future(loader.load([image(png())]))
        assert await asyncio.to_thread(begun.acquire, timeout=20)
        task.cancel()
        again = asyncio.ensure_future(loader.load([image(png())]))
        assert await asyncio.to_thread(begun.acquire, timeout=20)
        go_on.set()
        assert len(await again) == 1
        await loader.close()

    asyncio.run(main())


def test_an_error_names_the_part_that_was_sent(held):
    begun, go_on = held
    cut = png()[:50]

    async def main():
        loader = MediaLoader(CONFIG, LIMITS, MediaCache(2**20), num_workers=2)
        tasks = [asyncio.ensure_future(loader.load([MediaSource("image", cut, name)])) for name in ("first", "second")]
        assert await asyncio.to_thread(begun.acquire, timeout=20)
        await asyncio.sleep(0.1)
        go_on.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(error).split()[0] for error in errors] == ["first", "second"]
        await loader.close()

    asyncio.run(main())


def test_other_processing_and_other_tenants_are_other_entries(decoded):
    cache = MediaCache(2**20)
    smaller = override_processor(CONFIG, {"image_max_pixels": 4 * 784})
    load([image(png())], cache)
    load([image(png())], cache, tenant="b")
    assert load([image(png())], cache, config=smaller)[0].grid != load([image(png())], cache)[0].grid
    assert len(decoded) == 3


def test_a_name_stands_for_the_bytes_of_its_own_tenant_only():
    cache = MediaCache(2**20)
    red = load([image(png(), "cat")], cache, tenant="a")[0]
    assert load([image(None, "cat")], cache, tenant="a")[0] is red
    for tenant in ("b", ""):
        with pytest.raises(MediaUnknownError, match=r"uuid \('cat'\) is not remembered"):
            load([image(None, "cat")], cache, tenant=tenant)
    blue = load([image(png(colour="blue"), "cat")], cache, tenant="b")[0]
    assert load([image(None, "cat")], cache, tenant="a")[0] is red
    assert load([image(None, "cat")], cache, tenant="b")[0] is blue


def test_bytes_win_over_a_name():
    cache = MediaCache(2**20)
    red = load([image(png(), "cat")], cache)[0]
    blue = load([image(png(colour="blue"), "cat")], cache)[0]
    assert blue.content_hash != red.content_hash
    assert load([image(None, "cat")], cache)[0] is blue


def test_a_name_is_lost_with_its_picture_and_without_a_cache():
    cache = MediaCache(4 * 6 * 588)
    load([image(png(), "cat")], cache)
    load([image(png(colour="blue"), "dog")], cache)
    assert cache.stats().num_items == 1
    for source, memory in ((image(None, "cat"), cache), (image(None, "dog"), None)):
        with pytest.raises(MediaUnknownError):
            load([source], memory)
    with pytest.raises(MediaUnknownError):
        load_all([image(None, "dog")], CONFIG, LIMITS)
    assert load_all([image(None, "dog")], CONFIG, LIMITS, cache)[0].grid == (1, 6, 4)


def test_an_image_does_not_wait_for_videos(monkeypatch):
    """All threads for videos are busy for good; images still come."""
    release = threading.Event()
    monkeypatch.setattr(loader_module, "video_patches", lambda *args: release.wait(20) and None)

    async def main():
        loader = MediaLoader(CONFIG, LIMITS, num_workers=2)
        videos = asyncio.ensure_future(loader.load([MediaSource("video", b"v", "v")] * 5))
        assert len(await asyncio.wait_for(loader.load([image(png())] * 3), 15)) == 3
        videos.cancel()
        with pytest.raises(asyncio.CancelledError):
            await videos
        release.set()
        await loader.close()

    asyncio.run(main())


def test_a_bomb_costs_one_error_and_the_loop_stays_free():
    async def main():
        loader = MediaLoader(CONFIG, MediaLimits(max_image_pixels=1000), num_workers=1)
        with pytest.raises(MediaError, match="over the limit of 1000 pixels"):
            await loader.load([image(png(500, 500))])
        assert (await loader.load([image(png(28, 28))]))[0].grid == (1, 2, 2)
        await loader.close()

    asyncio.run(main())


def entry(size: int, name: int) -> tuple[MediaKey, LoadedMedia]:
    return MediaKey("", "image", bytes([name]), None), LoadedMedia("image", np.zeros((size, 1), np.uint8), (1, 1, 1), str(name))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=60))
def test_the_cache_stays_within_its_bytes_and_keeps_the_latest(steps):
    cache = MediaCache(100)
    sizes: dict[int, int] = {}
    for size, name in steps:
        size = sizes.setdefault(name, size)  # equal content has equal size
        key, media = entry(size, name)
        cache.put(key, media)
        cache.check_integrity()
        assert cache.get(key) is media
    key, media = entry(101, 200)
    cache.put(key, media)
    assert cache.get(key) is None


def test_the_order_of_use_decides_what_goes():
    cache = MediaCache(100)
    entries = [entry(40, name) for name in range(3)]
    for key, media in entries[:2]:
        cache.put(key, media)
    cache.get(entries[0][0])
    cache.put(*entries[2])
    assert [cache.get(key) is not None for key, _ in entries] == [True, False, True]


def test_load_media_by_itself():
    assert load_media(image(png()), Processing(CONFIG, LIMITS)).grid == (1, 6, 4)


def clip(num_frames: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = 64, 48, "yuv420p", 1
        for _ in range(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def test_a_video_that_nobody_waits_for_any_more_stops_in_the_middle(monkeypatch):
    ended: list[str] = []
    begun = threading.Event()
    plain, work = loader_module.video_patches, loader_module._decode

    def slow(source, config, limits, field, is_unwanted):
        def wait() -> bool:
            begun.set()
            time.sleep(0.01)
            return is_unwanted()

        return plain(source, config, limits, field, wait)

    def watched(*args):
        try:
            return work(*args)
        except MediaError as error:
            ended.append(str(error))
            raise

    monkeypatch.setattr(loader_module, "video_patches", slow)
    monkeypatch.setattr(loader_module, "_decode", watched)

    async def main():
        loader = MediaLoader(CONFIG, LIMITS, num_workers=1)
        task = asyncio.ensure_future(loader.load([MediaSource("video", clip(2000), "v")]))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await loader.close()

    asyncio.run(main())
    end = time.monotonic() + 10
    while not ended and time.monotonic() < end:
        time.sleep(0.01)
    assert ended == ["v is not wanted any more; its request has ended"]


def test_a_video_that_takes_too_long_to_decode_is_refused():
    with pytest.raises(MediaSizeError, match=r"took longer to decode than the limit of 0 s \(1 frames of 64x48\)"):
        load([MediaSource("video", clip(50), "v")], limits=MediaLimits(max_decode_seconds=0.0))
