"""The chat page in a real browser: what a person sees, with mouse, keyboard and on a phone."""

import base64
import io
import re
from typing import Any

import av
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.server.chat_page import THOUGHT, ask, done


def test_thought_is_open_while_it_comes_and_folds_when_the_answer_begins(page: Page, engine: Any) -> None:
    engine.say(THOUGHT)
    engine.step_s = 0.03
    answer = ask(page, "what is the sum?")
    thought = answer.locator("details.thought")
    expect(thought).to_have_attribute("open", "")
    expect(thought.locator(".text")).to_have_text(re.compile("^Two digits"))
    expect(answer.locator(".answer")).to_be_empty()
    done(answer)
    expect(thought).not_to_have_attribute("open", "")
    expect(answer.locator(".answer")).to_have_text("The sum is 10.")
    expect(thought.locator("summary")).to_have_text(re.compile("^Thought for "))
    numbers = ", ".join(answer.locator(".numbers span").all_inner_texts())
    assert re.search(r"^\d+ tokens in, 44 out, 27 of thought, \d+ tokens/s, first after \d+ ms, fake$", numbers), numbers
    thought.locator("summary").click()
    expect(thought.locator(".text")).to_be_visible()


def test_a_thought_that_was_folded_by_hand_stays_as_it_is(page: Page, engine: Any) -> None:
    engine.say(THOUGHT)
    engine.step_s = 0.03
    answer = ask(page, "what is the sum?")
    summary = answer.locator("details.thought summary")
    summary.click()
    summary.click()
    done(answer)
    expect(answer.locator("details.thought")).to_have_attribute("open", "")


def test_thinking_switch(page: Page, engine: Any, processor: Any) -> None:
    page.get_by_role("switch", name="Thinking").click()
    engine.say("plain")
    answer = ask(page, "hi")
    done(answer)
    expect(answer.locator(".answer")).to_have_text("plain")
    expect(answer.locator("details.thought")).to_be_hidden()
    assert processor.think_end_id in engine.prompts[-1].token_ids


def test_stop_button_and_escape(page: Page, engine: Any, until: Any) -> None:
    engine.say("on and on ", ends=False)
    engine.step_s = 0.01
    for stop in (lambda: page.get_by_role("button", name="Stop").click(), lambda: page.keyboard.press("Escape")):
        engine.aborted.clear()
        answer = ask(page, "go")
        expect(answer.locator("details.thought .text")).to_have_text(re.compile("on and on"))
        stop()
        until(lambda: len(engine.aborted) == 1)
        expect(answer.locator(".numbers")).to_have_text(re.compile("stopped"))
        expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_text_of_model_and_user_is_never_markup(page: Page, engine: Any) -> None:
    evil = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    engine.say(f"{evil}</think>{evil}")
    engine.at_once = True
    answer = ask(page, evil)
    done(answer)
    expect(answer.locator(".answer")).to_have_text(evil)
    assert page.locator("#turns img, #turns script").count() == 0
    assert page.evaluate("window.hacked") is None
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#samples")).to_contain_text("<b>What</b> is it?")


def test_sample_pictures(page: Page, engine: Any) -> None:
    expect(page.locator("#samples button")).to_have_count(2)
    page.get_by_role("button", name="What is it?").first.click()
    expect(page.locator("#attached img")).to_have_count(1)
    expect(page.locator("#question")).to_have_value("What is it?")
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.press("Enter")
    done(page.get_by_role("article", name="Answer"))
    assert [item.kind for item in engine.prompts[-1].media] == ["image"]
    expect(page.locator("#attached img")).to_have_count(0)
    expect(page.get_by_role("article", name="You").locator("img")).to_have_count(1)


SEND_FILE = """([kind, data]) => {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "x.png", { type: "image/png" }));
    const options = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
    document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options));
}"""


SEND_MADE_FILE = """() => {
    const transfer = new DataTransfer();
    transfer.items.add(FILE);
    document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""


def test_pictures_by_choosing_pasting_and_dropping(page: Page, engine: Any, png: bytes) -> None:
    data = base64.b64encode(png).decode()
    file: Any = {"name": "chosen.png", "mimeType": "image/png", "buffer": png}
    page.set_input_files("#files", [file, file])
    expect(page.locator("#attached img")).to_have_count(2)
    page.evaluate(SEND_FILE, ["paste", data])
    expect(page.locator("#attached img")).to_have_count(3)
    page.evaluate(SEND_FILE, ["dragenter", data])
    expect(page.get_by_text("Drop to add")).to_be_visible()
    page.evaluate(SEND_FILE, ["drop", data])
    expect(page.get_by_text("Drop to add")).to_be_hidden()
    expect(page.locator("#attached img")).to_have_count(4)
    page.get_by_role("button", name="Remove chosen.png").first.click()
    expect(page.locator("#attached img")).to_have_count(3)
    done(ask(page, "what are they?"))
    assert len(engine.prompts[-1].media) == 3


def test_wrong_files_are_refused_before_anything_is_sent(page: Page, engine: Any) -> None:
    text: Any = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hi"}
    false: Any = {"name": "false.png", "mimeType": "image/png", "buffer": b"no pixels here"}
    page.set_input_files("#files", [text, false])
    notice = page.locator("#notice[role=alert]")
    expect(notice).to_contain_text("notes.txt is not a picture or video")
    expect(notice).to_contain_text("false.png is not a picture or video")
    large = "new File([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), new Uint8Array(21 << 20)], 'large.png')"
    page.evaluate(SEND_MADE_FILE.replace("FILE", large))
    expect(notice).to_contain_text("large.png has 21 MB, over the 20 MB for a picture. Scale it down first.")
    notice.get_by_role("button", name="Dismiss").click()
    expect(notice).to_be_hidden()
    expect(page.locator("#attached li")).to_have_count(0)
    assert engine.prompts == []


def test_what_the_server_refuses_can_be_edited(page: Page, engine: Any, png: bytes) -> None:
    half: Any = {"name": "half.png", "mimeType": "image/png", "buffer": png[: len(png) // 2]}
    page.set_input_files("#files", half)
    answer = ask(page, "what is it?")
    error = answer.get_by_role("alert")
    expect(error).to_contain_text("is a damaged or cut-off image")
    error.get_by_role("button", name="Edit").click()
    expect(page.locator("#question")).to_have_value("what is it?")
    expect(page.locator("#attached img")).to_have_count(1)
    expect(page.locator("#turns article")).to_have_count(0)
    assert engine.prompts == []


def clip() -> bytes:
    """A short video."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height = 64, 48
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index * 30, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def test_a_video_among_pictures(page: Page, engine: Any, png: bytes) -> None:
    picture: Any = {"name": "a.png", "mimeType": "image/png", "buffer": png}
    video: Any = {"name": "walk.mp4", "mimeType": "video/mp4", "buffer": clip()}
    page.set_input_files("#files", [picture, video])
    expect(page.locator("#attached video")).to_have_attribute("aria-label", "walk.mp4")
    done(ask(page, "what happens?"))
    assert [item.kind for item in engine.prompts[-1].media] == ["image", "video"]
    expect(page.locator("#turns video[controls]")).to_have_count(1)


def test_a_second_turn_knows_the_first(page: Page, engine: Any, processor: Any, png: bytes) -> None:
    engine.say(THOUGHT)
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png})
    done(ask(page, "sum?"))
    done(ask(page, "sure?"))
    prompt = engine.prompts[-1]
    assert len(prompt.media) == 1
    text = processor.tokenizer.decode(prompt.token_ids)
    assert "sum?" in text
    assert "The sum is 10." in text
    assert "Two digits" not in text
    assert text.index("sum?") < text.index("The sum is 10.") < text.index("sure?")


def test_new_chat_forgets_also_while_an_answer_comes(page: Page, engine: Any, until: Any) -> None:
    engine.say("a</think>and on ", ends=False)
    engine.step_s = 0.01
    answer = ask(page, "first")
    expect(answer.locator(".answer")).to_have_text(re.compile("and on"))
    page.get_by_role("button", name="New chat").click()
    until(lambda: len(engine.aborted) == 1)
    expect(page.locator("#turns article")).to_have_count(0)
    engine.say("short")
    done(ask(page, "second"))
    assert len(engine.prompts[-1]) == len(engine.prompts[0]) + 1


def test_keyboard_alone(page: Page, engine: Any, processor: Any) -> None:
    expect(page.locator("#question")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#question") == "one\ntwo"
    page.keyboard.press("Enter")
    done(page.get_by_role("article", name="Answer"))
    assert "one\ntwo" in processor.tokenizer.decode(engine.prompts[-1].token_ids)
    names = []
    for _ in range(2):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.id"))
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid", names
    assert names == ["Add pictures or videos", "thinking"]
    page.keyboard.press("Space")
    expect(page.locator("#thinking")).not_to_be_checked()
    expect(page.locator("[aria-live=polite]")).to_have_text("No answer")


def test_focus_goes_through_the_page_in_order(page: Page, engine: Any) -> None:
    engine.say("x</think>yes")
    done(ask(page, "hi"))
    page.reload()
    expect(page.locator("#turns article")).to_have_count(2)
    page.locator(".skip").focus()
    names, style = ["Skip to the message field"], ""
    for _ in range(16):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                """() => { const e = document.activeElement;
                return e.ariaLabel || e.labels?.[0]?.textContent || e.textContent.trim() || e.placeholder; }"""
            )
        )
        style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style == "solid" or names[-1] == "Message", names  # the field's frame shows its focus
    assert names[1:3] == ["Chats", "New chat"]
    chats, turns = names.index("Search chats by title"), names.index("Edit")
    assert names.index("Settings") < chats < names.index("Import") < turns < names.index("Retry")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()


def test_arabic_runs_from_right_to_left(page: Page, engine: Any) -> None:
    engine.say("x</think>مرحبا\n\nhello")
    answer = ask(page, "سؤال")
    done(answer)
    direction = "e => getComputedStyle(e).direction"
    assert answer.locator(".answer p").first.evaluate(direction) == "rtl"
    assert answer.locator(".answer p").last.evaluate(direction) == "ltr"
    assert page.locator(".user .text").evaluate(direction) == "rtl"


@pytest.mark.parametrize("opener", ["Settings", "Copy as curl or Python"])
def test_dialogs_fit_a_phone_and_give_the_focus_back(page: Page, opener: str) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    button = page.get_by_role("button", name=opener)
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    box = dialog.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert box["y"] + box["height"] <= 640
    assert dialog.evaluate("e => e.scrollWidth <= e.clientWidth")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(button).to_be_focused()


def test_enter_that_picks_a_character_does_not_send(page: Page) -> None:
    page.fill("#question", "ni")
    event = "new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true })"
    page.evaluate(f"document.getElementById('question').dispatchEvent({event})")
    assert page.input_value("#question") == "ni"
    assert page.locator("#turns article").count() == 0


def test_everything_has_a_name(page: Page) -> None:
    page.get_by_role("button", name="What is it?").first.click()
    expect(page.locator("#attached img")).to_have_count(1)
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, textarea")]
            .filter((e) => !e.ariaHidden && !(e.ariaLabel || e.labels?.length || e.textContent.trim()))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("html").get_attribute("lang") == "en"


def test_fits_every_width(page: Page, engine: Any, png: bytes) -> None:
    engine.say("w" * 150 + "</think>" + "x" * 200 + "\n\n```\n" + "c" * 99 + "\n```\n\n|a|" + "t" * 99 + "|\n|-|-|")
    page.set_input_files("#files", [{"name": f"{n}.png", "mimeType": "image/png", "buffer": png} for n in range(8)])
    expect(page.locator("#attached img")).to_have_count(8)
    done(ask(page, "y" * 200))
    for width in (320, 360, 390, 768, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.getElementById('scroll'))"), width
        box = page.locator("#go").bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= 700
        assert min(box["width"], box["height"]) >= 36


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_apart(page: Page, scheme: Any) -> None:
    """WCAG AA: at least 4.5 between text and what is behind it."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function("(scheme) => document.documentElement.dataset.theme === scheme", arg=scheme)
    names = ("paper", "card", "ink", "soft", "tint", "bad", "bad-tint", "accent", "accent-ink")
    style = "getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
    colours = page.evaluate(f"(names) => Object.fromEntries(names.map((name) => [name, {style}]))", list(names))
    assert (luminance(colours["paper"]) > 0.5) == (scheme == "light")
    pairs = [("ink", "paper"), ("ink", "card"), ("ink", "tint"), ("soft", "paper"), ("soft", "card")]
    for text, back in [*pairs, ("bad", "bad-tint"), ("accent-ink", "accent"), ("accent", "paper")]:
        light, dark = sorted((luminance(colours[text]), luminance(colours[back])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, back)


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_page_has_a_strict_policy(server: Any) -> None:
    response = server.client.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    for name in re.findall(r"(?:src|href)=\"(web/[^\"]+)\"", response.text):
        asset = server.client.get(f"/{name}")
        assert asset.status_code == 200, name
        assert asset.headers["x-content-type-options"] == "nosniff"
    assert server.client.get("/web/index.html").status_code == 404
    assert server.client.get("/web/..%2fpages.py").status_code == 404
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", response.text)
