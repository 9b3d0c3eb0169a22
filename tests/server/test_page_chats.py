"""The chats that the page keeps in the browser: list, titles, reload, files, limits, and a browser that keeps nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.server.chat_page import ask, asked_and_done, done, titles

NO_STORE = {
    "none": "delete window.indexedDB; Object.defineProperty(window, 'indexedDB', { value: undefined });",
    "refused": "IDBFactory.prototype.open = () => { throw new DOMException('no', 'SecurityError'); };",
    "full": "IDBObjectStore.prototype.put = () => { throw new DOMException('full', 'QuotaExceededError'); };",
}
NO_STORAGE = """for (const name of ['localStorage', 'sessionStorage'])
    Object.defineProperty(window, name, { get() { throw new Error(name); } });"""


def more(page: Page, title: str, what: str) -> None:
    page.get_by_role("button", name=f"More about {title}").click()
    page.locator("#chats").get_by_role("button", name=what, exact=True).click()


def test_chats_survive_a_reload_newest_first(page: Page, engine: Any, png: bytes) -> None:
    engine.say("A **thought**</think>An *answer*")
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png})
    asked_and_done(page, "first question")
    page.get_by_role("button", name="New chat").click()
    asked_and_done(page, "second question")
    assert titles(page) == ["second question", "first question"]
    page.get_by_role("button", name="first question", exact=False).first.click()
    expect(page.locator("#turns")).to_contain_text("first question")
    page.reload()
    expect(page.locator("#turns")).to_contain_text("first question")
    expect(page.locator("#turns .answer em")).to_have_text("answer")
    expect(page.locator("#turns .numbers")).to_contain_text("tokens/s")
    assert page.locator("#turns .pictures img").evaluate("e => e.decode().then(() => e.naturalHeight)") == 84
    expect(page.locator("#chats [aria-current]")).to_contain_text("first question")
    asked_and_done(page, "third question")
    assert [item.kind for item in engine.prompts[-1].media] == ["image"]
    assert titles(page) == ["first question", "second question"]


def test_an_answer_that_a_reload_cut_off_can_be_continued(page: Page, engine: Any, processor: Any) -> None:
    engine.say("so</think>and on ", ends=False)
    engine.step_s = 0.03
    answer = ask(page, "go")
    expect(answer.locator(".answer")).to_contain_text("and on")
    page.wait_for_timeout(1300)
    page.reload()
    answer = page.get_by_role("article", name="Answer")
    expect(answer.locator(".answer")).to_contain_text("and on")
    expect(answer.locator(".numbers")).to_contain_text("interrupted")
    had = answer.locator(".answer").inner_text()
    engine.say("the end")
    answer.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("article", name="Answer").locator(".answer")).to_contain_text("the end")
    done(page.get_by_role("article", name="Answer"))
    text = processor.tokenizer.decode(engine.prompts[-1].token_ids, skip_special_tokens=False)
    assert text.rstrip().endswith("<think>so\n</think>\n\n" + had.rstrip()), text


def test_rename_search_delete_and_undo(page: Page, engine: Any) -> None:
    for question in ("apples", "pears"):
        page.get_by_role("button", name="New chat").click()
        asked_and_done(page, question)
    more(page, "apples", "Rename")
    field = page.get_by_role("textbox", name="Title")
    expect(field).to_be_focused()
    field.fill("<b>Fruit</b>")
    field.press("Enter")
    expect(page.locator("#chats")).to_contain_text("<b>Fruit</b>")
    page.get_by_role("searchbox").fill("FRUIT")
    assert titles(page) == ["<b>Fruit</b>"]
    page.get_by_role("searchbox").fill("nothing")
    expect(page.locator("#chats")).to_have_text("No chat has this in its title.")
    page.get_by_role("searchbox").fill("")
    more(page, "pears", "Delete")
    expect(page.locator("#chats li")).to_have_count(1)
    expect(page.locator("#turns article")).to_have_count(0)
    page.locator("#notice").get_by_role("button", name="Undo").click()
    expect(page.locator("#chats li")).to_have_count(2)
    page.reload()
    expect(page.locator("#chats li")).to_have_count(2)
    assert sorted(titles(page)) == ["<b>Fruit</b>", "pears"]


def test_export_and_import(page: Page, engine: Any, png: bytes, tmp_path: Path) -> None:
    page.evaluate("sessionStorage.setItem('ernie45.api_key', 'sk-secret')")
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png})
    engine.say("x</think>An answer")
    asked_and_done(page, "what is it?")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export all").click()
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    text = file.read_text()
    assert json.loads(text)["format"] == "ernie45-chats"
    assert "sk-secret" not in text
    more(page, "what is it?", "Delete")
    expect(page.locator("#chats .open")).to_have_count(0)
    page.set_input_files("#import-file", file)
    expect(page.locator("#notice")).to_contain_text("One chat was imported.")
    page.locator("#chats .open").click()
    expect(page.locator("#turns .answer")).to_have_text("An answer")
    assert page.locator("#turns .pictures img").evaluate("e => e.decode().then(() => e.naturalWidth)") == 56


def chats_file(**changes: Any) -> dict[str, Any]:
    """A file as exported, with one chat that has a question and an answer."""
    question = {"id": "q", "parent": None, "role": "user", "text": "hi", "media": ["m"], "created": 1}
    answer = {"id": "a", "parent": "q", "role": "assistant", "content": "ho", "reasoning": "", "stats": {"prompt": 3}}
    chat = {"id": "c", "title": "t", "created": 1, "updated": 1, "leaf": "a", "nodes": {"q": question, "a": answer}} | changes
    media = {"m": {"name": "x", "type": "text/html", "data": "PGI+"}}
    return {"format": "ernie45-chats", "version": 1, "chats": [chat], "media": media}


HOSTILE = "<img src=x onerror=window.hacked=1>"
FILES: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "x.json is not JSON."),
    "something else": ({"a": 1}, "x.json is not a file of chats exported here."),
    "nothing": ({"format": "ernie45-chats", "chats": [1, None, {"id": 5}]}, "x.json has no chats in it."),
    "hostile": (chats_file(title=HOSTILE, leaf="__proto__"), "One chat was imported."),
    "a circle": (
        chats_file(nodes={n: {"id": n, "parent": p, "role": "user", "text": HOSTILE} for n, p in ("ab", "bc", "ca")}),
        "One chat was imported.",
    ),
}


def test_files_that_others_made(page: Page) -> None:
    for content, said in FILES.values():
        text = content if isinstance(content, str) else json.dumps(content)
        page.set_input_files("#import-file", {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()})
        expect(page.locator("#notice")).to_contain_text(said)
        if "imported" in said:
            page.locator("#chats .open").first.click()
            expect(page.locator("#turns article").first).to_be_visible()
            assert page.locator("#turns :is(img, script)").count() == 0
            assert page.evaluate("window.hacked") is None
        page.locator("#notice").get_by_role("button", name="Dismiss").click()
    expect(page.locator("#chats .open")).to_have_count(2)


@pytest.mark.parametrize("kind", NO_STORE)
def test_a_browser_that_keeps_nothing_still_chats(open_chat: Any, server: Any, engine: Any, kind: str, png: bytes) -> None:
    page = open_chat(server.url, before=NO_STORE[kind] + (NO_STORAGE if kind == "refused" else ""))
    engine.say("x</think>yes")
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": png})
    expect(asked_and_done(page, "one").locator(".answer")).to_have_text("yes")
    asked_and_done(page, "two")
    assert len(engine.prompts[-1].media) == 1
    expect(page.locator("#side-note.bad")).to_contain_text("until the page is closed" if kind != "full" else "no room left")
    page.get_by_role("button", name="New chat").click()
    asked_and_done(page, "three")
    page.get_by_role("button", name="one", exact=False).first.click()
    expect(page.locator("#turns .pictures img")).to_have_count(1)


def test_the_oldest_chats_go_when_there_are_too_many(page: Page, engine: Any) -> None:
    chats = [chats_file(title=f"old {n}", updated=n + 1)["chats"][0] for n in range(200)]
    text = json.dumps(chats_file() | {"chats": chats})
    page.set_input_files("#import-file", {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()})
    expect(page.locator("#notice")).to_contain_text("200 chats were imported.")
    asked_and_done(page, "new")
    expect(page.locator("#notice")).to_contain_text("The oldest chat was deleted to make room.")
    names = titles(page)
    assert len(names) == 200
    assert names[0] == "new"
    assert "old 0" not in names
    assert "old 1" in names


def test_the_list_folds_on_a_phone(page: Page, engine: Any) -> None:
    asked_and_done(page, "a question")
    expect(page.locator("#side")).to_be_visible()
    page.set_viewport_size({"width": 390, "height": 700})
    expect(page.locator("#side")).to_be_hidden()
    fold = page.get_by_role("button", name="Chats", exact=True)
    fold.click()
    expect(page.locator("#side")).to_be_visible()
    expect(fold).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#side")).to_be_hidden()
    expect(fold).to_be_focused()
    fold.click()
    page.mouse.click(380, 400)
    expect(page.locator("#side")).to_be_hidden()
    fold.click()
    page.locator("#chats .open").click()
    expect(page.locator("#side")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
