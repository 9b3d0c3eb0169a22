"""What can be done with the messages of a chat: stop, retry, edit, delete, continue, copy; and that long ones stay quick."""

import json
import re
from typing import Any

from playwright.sync_api import Page, expect

from tests.server.chat_page import THOUGHT, ask, asked_and_done, done
from tests.server.test_page_chats import chats_file


def text_of(prompt: Any, processor: Any) -> str:
    return processor.tokenizer.decode(prompt.token_ids, skip_special_tokens=False)


def test_retry_keeps_the_first_answer_beside_the_second(page: Page, engine: Any, processor: Any) -> None:
    engine.say("x</think>one")
    asked_and_done(page, "number?")
    engine.say("x</think>two")
    page.get_by_role("button", name="Retry").click()
    answer = page.get_by_role("article", name="Answer")
    expect(answer.locator(".answer")).to_have_text("two")
    done(answer)
    expect(answer.locator(".others")).to_contain_text("2 of 2")
    assert engine.prompts[0].token_ids.tolist() == engine.prompts[1].token_ids.tolist()
    answer.get_by_role("button", name="Earlier answer").click()
    expect(answer.locator(".answer")).to_have_text("one")
    asked_and_done(page, "sure?")
    assert "one" in text_of(engine.prompts[-1], processor)
    assert "two" not in text_of(engine.prompts[-1], processor)


def test_an_edited_question_stands_beside_the_first(page: Page, engine: Any, processor: Any, png: bytes) -> None:
    engine.say("x</think>yes")
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png})
    asked_and_done(page, "first")
    asked_and_done(page, "second")
    you = page.get_by_role("article", name="You").first
    you.hover()
    you.get_by_role("button", name="Edit").click()
    expect(page.locator("#editing")).to_be_visible()
    expect(page.locator("#question")).to_have_value("first")
    expect(page.locator("#attached img")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("#editing")).to_be_hidden()
    you.get_by_role("button", name="Edit").click()
    page.fill("#question", "changed")
    page.keyboard.press("Enter")
    expect(page.locator("#turns article")).to_have_count(2)
    done(page.get_by_role("article", name="Answer"))
    prompt = engine.prompts[-1]
    assert len(prompt.media) == 1
    assert "changed" in text_of(prompt, processor)
    assert "first" not in text_of(prompt, processor)
    page.get_by_role("button", name="Earlier question").click()
    expect(page.locator("#turns article")).to_have_count(4)
    expect(page.locator("#turns")).to_contain_text("second")


def test_delete_a_turn_and_undo(page: Page, engine: Any, processor: Any) -> None:
    engine.say("x</think>yes")
    for text in ("one", "two", "three"):
        asked_and_done(page, text)
    middle = page.get_by_role("article", name="You").nth(1)
    middle.hover()
    middle.get_by_role("button", name="Delete this question and its answer").click()
    expect(page.locator("#turns article")).to_have_count(4)
    expect(page.locator("#question")).to_be_focused()
    asked_and_done(page, "four")
    assert re.findall("one|two|three|four", text_of(engine.prompts[-1], processor)) == ["one", "three", "four"]
    last = page.get_by_role("article", name="You").last
    last.hover()
    last.get_by_role("button", name="Delete this question and its answer").click()
    expect(page.locator("#turns article")).to_have_count(4)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#turns article")).to_have_count(6)


PICTURES_KEPT = """() => new Promise((resolve) => { const open = indexedDB.open("ernie45-chats");
    open.onsuccess = () => { const count = open.result.transaction("media").objectStore("media").count();
        count.onsuccess = () => resolve(count.result); }; })"""


def test_pictures_of_a_deleted_turn_do_not_stay(page: Page, engine: Any, png: bytes) -> None:
    asked_and_done(page, "one")
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png})
    asked_and_done(page, "two")
    last = page.get_by_role("article", name="You").last
    last.hover()
    last.get_by_role("button", name="Delete this question and its answer").click()
    expect(page.locator("#turns article")).to_have_count(2)
    assert page.evaluate(PICTURES_KEPT) == 1
    page.reload()
    expect(page.locator("#turns article")).to_have_count(2)
    assert page.evaluate(PICTURES_KEPT) == 0


def test_stopping_frees_the_engine_and_the_answer_can_go_on(page: Page, engine: Any, until: Any, processor: Any) -> None:
    engine.say("on and on ", ends=False)
    engine.step_s = 0.01
    answer = ask(page, "go")
    expect(answer.locator("details.thought .text")).to_contain_text("on and on")
    page.get_by_role("button", name="Stop").click()
    until(lambda: len(engine.aborted) == 1 and not engine.has_work)
    expect(answer.locator(".numbers")).to_contain_text("stopped")
    expect(answer.locator("summary")).to_contain_text(re.compile(r"Thinking, stopped, \d+ tokens"))
    thought = answer.locator("details.thought .text").inner_text()
    engine.reset()
    engine.say(" more\n</think>\n\nThe end.")
    answer.get_by_role("button", name="Continue").click()
    answer = page.get_by_role("article", name="Answer")
    expect(answer.locator(".answer")).to_have_text("The end.")
    done(answer)
    assert text_of(engine.prompts[-1], processor).endswith("<think>" + thought)
    assert "Continue" not in answer.inner_text()


def test_an_answer_cut_at_the_limit_goes_on(page: Page, engine: Any) -> None:
    engine.say("x</think>abc ", ends=False)
    page.get_by_role("button", name="Settings").click()
    page.fill("#set-max_tokens", "20")
    page.keyboard.press("Escape")
    answer = asked_and_done(page, "go")
    expect(answer.locator(".numbers")).to_contain_text("cut at the length limit")
    expect(answer.locator(".numbers")).to_contain_text("20 out")
    engine.say("ends here")
    answer.get_by_role("button", name="Continue").click()
    answer = page.get_by_role("article", name="Answer")
    expect(answer.locator(".answer")).to_contain_text("ends here")
    expect(answer.locator(".numbers")).to_contain_text("30 out")


def test_copy_gives_the_text_as_the_model_wrote_it(open_chat: Any, server: Any, engine: Any) -> None:
    page = open_chat(server.url, permissions=["clipboard-read", "clipboard-write"])
    engine.say("x</think>**bold**\n\n```python\nprint('a')\n```")
    answer = asked_and_done(page, "go")
    answer.locator(".actions").get_by_role("button", name="Copy").click()
    expect(answer.locator(".actions")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "**bold**\n\n```python\nprint('a')\n```"
    answer.locator(".code").get_by_role("button", name="Copy").click()
    expect(answer.locator(".code")).to_contain_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "print('a')"


def test_screen_readers_hear_little(page: Page, engine: Any) -> None:
    page.evaluate(
        """() => { window.heard = [];
        new MutationObserver(() => heard.push(document.getElementById("announce").textContent))
            .observe(document.getElementById("announce"), { childList: true }); }"""
    )
    engine.say(THOUGHT)
    asked_and_done(page, "sum?")
    assert page.evaluate("heard") == ["Working", "The sum is 10."]


def test_a_long_chat_stays_quick(page: Page, engine: Any) -> None:
    """600 messages: few are drawn, and the page answers a key in time while a long answer comes."""
    nodes: dict[str, Any] = {}
    for index in range(300):
        parent = f"a{index - 1}" if index else None
        nodes[f"q{index}"] = {"id": f"q{index}", "parent": parent, "role": "user", "text": f"q {index}", "media": []}
        content = "| a | b |\n|---|---|\n| 1 | 2 |\n\n- x\n- y\n\n" + "word " * 100
        nodes[f"a{index}"] = {"id": f"a{index}", "parent": f"q{index}", "role": "assistant", "content": content}
    text = json.dumps(chats_file(nodes=nodes, leaf="a299", title="long"))
    page.set_input_files("#import-file", {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()})
    expect(page.locator("#chats .open")).to_be_visible()
    took = page.evaluate(
        """async () => { const start = performance.now(); document.querySelector("#chats .open").click();
        while (document.querySelectorAll("#turns article").length < 40) await new Promise((next) => setTimeout(next, 5));
        return performance.now() - start; }"""
    )
    assert took < 1500
    expect(page.locator("#turns article")).to_have_count(40)
    page.get_by_role("button", name="Show earlier messages").click()
    expect(page.locator("#turns article")).to_have_count(80)
    cost = page.evaluate(
        """async () => { const { render } = await import("/web/chat-markdown.js");
        const target = document.createElement("div"); document.body.append(target);
        const line = "Some **text** with `code` and a [link](https://example.org).\\n\\n"; let text = "", most = 0;
        for (let step = 0; step < 1500; step += 1) {
            text += line; const start = performance.now();
            render(target, text); most = Math.max(most, performance.now() - start);
        }
        const number = target.childNodes.length; target.remove(); return [most, number]; }"""
    )
    assert cost[0] < 150, "one step of a stream, at 95,000 characters"
    assert cost[1] == 1500
