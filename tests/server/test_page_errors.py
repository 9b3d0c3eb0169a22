"""What the page does when something goes wrong: it says so where it happened, keeps what came and shows a way out."""

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.server.chat_page import ask, done

KEY = "sk-page-1"


def error_of(page: Page) -> Any:
    return page.get_by_role("article", name="Answer").get_by_role("alert")


def test_a_key_is_asked_for_and_stays_in_this_tab(open_chat: Any, start: Any, new_engine: Any) -> None:
    server = start(new_engine, api_keys=[KEY]).wait()
    page = open_chat(server.url)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    dialog = page.get_by_role("dialog", name="This server wants a key")
    expect(dialog.get_by_label("API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    expect(page.locator("#model")).to_have_text("the server wants a key")
    new_engine.say("x</think>yes")
    answer = ask(page, "hello")
    expect(dialog.get_by_role("alert")).to_have_text("The server does not know this key.")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    done(answer)
    expect(answer.locator(".answer")).to_have_text("yes")
    expect(page.locator("#model.ready")).to_have_text("fake")
    page.reload()
    expect(page.locator("#model.ready")).to_have_text("fake")
    expect(page.locator("#turns .answer")).to_have_text("yes")
    assert page.evaluate("sessionStorage.getItem('ernie45.api_key')") == KEY
    assert KEY not in page.evaluate("JSON.stringify(localStorage)")
    assert not [url for url in urls if KEY in url or "wrong" in url]
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#samples button")).to_have_count(2)


def test_without_a_key_the_question_waits(open_chat: Any, start: Any) -> None:
    server = start(api_keys=[KEY]).wait()
    page = open_chat(server.url)
    dialog = page.get_by_role("dialog", name="This server wants a key")
    expect(dialog.get_by_label("API key")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    ask(page, "hello")
    page.get_by_role("button", name="Not now").click()
    expect(error_of(page)).to_contain_text("the API key is missing")
    error_of(page).get_by_role("button", name="Try again").click()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    done(page.get_by_role("article", name="Answer"))


def test_a_busy_server_is_asked_again_in_time(page: Page, server: Any, engine: Any) -> None:
    engine.say("x</think>yes")
    tries: list[Route] = []

    def busy(route: Route) -> None:
        tries.append(route)
        if len(tries) > 2:
            route.continue_()
            return
        error = {"error": {"message": "the server already has 4 requests, its limit", "type": "rate_limit_error"}}
        route.fulfill(status=429, headers={"Retry-After": "2" if len(tries) == 1 else "600"}, body=json.dumps(error))

    page.route("**/v1/chat/completions", busy)
    answer = ask(page, "hello")
    expect(error_of(page)).to_contain_text("already has 4 requests, its limit. Trying again in 2 s.")
    expect(error_of(page)).to_contain_text("Trying again in 1 s.")
    expect(error_of(page)).to_contain_text(re.compile(r"again in (600|599) s"))
    error_of(page).get_by_role("button", name="Try now").click()
    done(answer)
    expect(answer.locator(".answer")).to_have_text("yes")
    expect(error_of(page)).to_have_count(0)


def test_a_server_that_is_not_ready_is_waited_for(
    page: Page, server: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.say("x</think>yes")
    monkeypatch.setattr(server.service, "draining", True)
    answer = ask(page, "hello")
    expect(error_of(page)).to_contain_text("The server is stopping. The question is sent as soon as it is ready.")
    monkeypatch.undo()
    done(answer)
    expect(answer.locator(".answer")).to_have_text("yes")
    monkeypatch.setattr(server.service, "draining", True)
    ask(page, "again")
    expect(error_of(page)).to_contain_text("as soon as it is ready")
    page.keyboard.press("Escape")
    answer = page.get_by_role("article", name="Answer").last
    expect(answer.locator(".numbers")).to_have_text(re.compile("stopped"))
    monkeypatch.undo()
    answer.get_by_role("button", name="Retry").click()
    expect(page.get_by_role("article", name="Answer").last.locator(".answer")).to_have_text("yes")


def test_a_server_that_goes_away(open_chat: Any, start: Any) -> None:
    server = start().wait()
    page = open_chat(server.url)
    expect(page.locator("#model.ready")).to_be_visible()
    server.stop()
    ask(page, "still there?")
    expect(error_of(page)).to_contain_text("The server cannot be reached.")
    error_of(page).get_by_role("button", name="Stop waiting").click()
    expect(page.get_by_role("button", name="Retry")).to_be_visible()


def test_a_broken_stream_keeps_what_came_and_goes_on(open_chat: Any, start: Any, new_engine: Any, processor: Any) -> None:
    server = start(new_engine, restarts=50).wait()
    page = open_chat(server.url)
    new_engine.say("I think\n</think>\n\nThe answer is forty-two.")
    new_engine.fail_at = 28
    ask(page, "what?")
    error = error_of(page)
    expect(error).to_contain_text("the engine is not running")
    expect(error).to_contain_text("What came is kept.")
    answer = page.get_by_role("article", name="Answer")
    kept = answer.locator(".answer").inner_text()
    assert kept
    assert "The answer is forty".startswith(kept)
    new_engine.reset()
    new_engine.say("!! and done")
    error.get_by_role("button", name="Continue").click()
    expect(answer.locator(".answer")).to_have_text(kept + "!! and done")
    done(answer)
    text = processor.tokenizer.decode(new_engine.prompts[-1].token_ids, skip_special_tokens=False)
    assert text.endswith("<think>I think\n</think>\n\n" + kept)


def test_a_connection_that_ends_early(page: Page, engine: Any) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "half an"}, "finish_reason": None}], "usage": None, "model": "fake"}
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            status=200, headers={"Content-Type": "text/event-stream"}, body=f"data: {json.dumps(chunk)}\n\n"
        ),
    )
    answer = ask(page, "what?")
    expect(error_of(page)).to_contain_text("The connection ended before the answer did. What came is kept.")
    expect(answer.locator(".answer")).to_have_text("half an")
    page.unroute("**/v1/chat/completions")
    error_of(page).get_by_role("button", name="Try again").click()
    done(page.get_by_role("article", name="Answer"))
    expect(page.get_by_role("article", name="Answer").locator(".others")).to_contain_text("2 of 2")


@pytest.mark.parametrize(("status", "body"), [(500, "<h1>proxy</h1>"), (413, '{"error": {"message": "too large"}}')])
def test_other_errors(page: Page, engine: Any, status: int, body: str) -> None:
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, body=body))
    ask(page, "what?")
    expect(error_of(page)).to_contain_text("The server answered 500." if status == 500 else "too large")
    page.unroute("**/v1/chat/completions")
    error_of(page).get_by_role("button", name="Try again").click()
    done(page.get_by_role("article", name="Answer"))
    expect(page.locator("#turns article")).to_have_count(2)


def test_a_question_while_the_model_is_loading(open_chat: Any, start: Any, new_engine: Any) -> None:
    new_engine.loaded.clear()
    server = start(new_engine).wait("loading")
    page = open_chat(server.url)
    expect(page.locator("#model")).to_have_text("loading the model")
    new_engine.say("x</think>yes")
    answer = ask(page, "already?")
    expect(error_of(page)).to_contain_text("loaded")
    new_engine.loaded.set()
    done(answer)
    expect(answer.locator(".answer")).to_have_text("yes")
    expect(page.locator("#model.ready")).to_have_text("fake")
