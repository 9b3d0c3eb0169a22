"""Settings that are fields of the API, and the request as curl and as Python: both run, and send what the page sends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from ernie45.server import service
from tests.server.chat_page import ask, asked_and_done, done, open_settings

EVERYTHING = {
    "system": "Be brief.",
    "enable_thinking": "true",
    "reasoning_max_tokens": "50",
    "max_tokens": "100",
    "temperature": "0.5",
    "top_p": "0.9",
    "top_k": "40",
    "min_p": "0.05",
    "seed": "7",
    "repetition_penalty": "1.1",
    "frequency_penalty": "-0.5",
    "presence_penalty": "0.25",
    "stop": "END\n###",
}


@pytest.fixture
def bodies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the server is asked, as JSON."""
    found: list[Any] = []
    parse = service.parse_request

    def noting(body: bytes, model: Any) -> Any:
        found.append(json.loads(body))
        return parse(body, model)

    monkeypatch.setattr(service, "parse_request", noting)
    return found


def test_defaults_are_left_out(page: Page, bodies: list[Any]) -> None:
    asked_and_done(page, "hi")
    assert bodies == [
        {
            "model": "fake",
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
    ]


def test_every_setting_is_a_field(page: Page, bodies: list[Any]) -> None:
    open_settings(page, **EVERYTHING)
    expect(page.get_by_role("button", name=re.compile("^Settings"))).to_have_attribute("aria-label", "Settings, 13 changed")
    asked_and_done(page, "hi")
    body = bodies.pop()
    assert body.pop("messages") == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert {name: value for name, value in body.items() if name not in ("model", "stream", "stream_options")} == {
        "enable_thinking": True, "reasoning_max_tokens": 50, "max_tokens": 100, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
        "min_p": 0.05, "seed": 7, "repetition_penalty": 1.1, "frequency_penalty": -0.5, "presence_penalty": 0.25,
        "stop": ["END", "###"],
    }  # fmt: skip
    page.reload()
    expect(page.locator("#settings-count")).to_have_text("13")
    page.get_by_role("button", name=re.compile("^Settings")).click()
    page.get_by_role("button", name="Reset all").click()
    page.keyboard.press("Escape")
    expect(page.locator("#settings-count")).to_be_hidden()


def test_the_switch_and_the_setting_are_one(page: Page, bodies: list[Any]) -> None:
    page.get_by_role("switch", name="Thinking").click()
    asked_and_done(page, "hi")
    assert bodies.pop()["enable_thinking"] is False
    open_settings(page, enable_thinking="true")
    expect(page.get_by_role("switch", name="Thinking")).to_be_checked()


def test_wrong_values_are_said_and_not_sent(page: Page, bodies: list[Any]) -> None:
    wrong = {"temperature": "-1", "top_p": "0", "seed": "1.5", "top_k": "many", "max_tokens": "0", "stop": "x\n" * 17}
    open_settings(page, **wrong)
    said = {name: page.locator(f"#wrong-{name}").text_content() for name in wrong}
    assert said == {
        "temperature": "temperature must be a number from 0 to 100",
        "top_p": "top_p must be a number above 0 to 1",
        "seed": f"seed must be a whole number from 0 to {2**53 - 1}",
        "top_k": f"top_k must be a whole number from -1 to {2**31 - 1}",
        "max_tokens": f"max_tokens must be a whole number from 1 to {2**31 - 1}",
        "stop": "stop must have at most 16 lines",
    }
    page.fill("#question", "hi")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("must be")
    assert bodies == []
    page.locator("#notice").get_by_role("button", name="Settings").click()
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    expect(page.locator("#set-temperature")).to_have_attribute("aria-invalid", "true")


def test_json_answers(page: Page, bodies: list[Any]) -> None:
    open_settings(page, response_format="json_schema", json_schema='{"type": "object"')
    page.fill("#question", "hi")
    page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_contain_text("json_schema must be JSON")
    page.locator("#notice").get_by_role("button", name="Settings").click()
    page.fill("#set-json_schema", '{"type": "object"}')
    page.keyboard.press("Escape")
    page.press("#question", "Enter")
    done(page.get_by_role("article", name="Answer"))
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert bodies.pop()["response_format"] == form


def test_adapters_can_be_chosen(page: Page, bodies: list[Any]) -> None:
    cards = {"data": [{"id": "fake"}, {"id": "fake-poet"}]}
    page.route("**/v1/models", lambda route: route.fulfill(json=cards))
    page.reload()
    expect(page.locator("#set-model option")).to_have_count(2)
    open_settings(page, model="fake-poet")
    answer = ask(page, "hi")
    expect(answer.get_by_role("alert")).to_contain_text("model ('fake-poet') is not served here")
    assert bodies[-1]["model"] == "fake-poet"


HARD = "It's $HOME `id` $(id) \\n \"q\" 'q' !x! \\ 100% é 你好 🙂 \u2028 <b>&amp;</b>\n```sh\necho $PATH\n```\nEND\n"


@pytest.fixture(params=["", "sk-copy-1"], ids=["open", "with a key"])
def keyed(request: pytest.FixtureRequest, open_chat: Any, start: Any, new_engine: Any) -> tuple[str, Page]:
    """A key, "" for none, and the page of a server that wants it."""
    key = request.param
    server = start(new_engine, **({"api_keys": [key]} if key else {})).wait()
    page = open_chat(server.url, before=f"sessionStorage.setItem('ernie45.api_key', {key!r})" if key else "")
    expect(page.locator("#model.ready")).to_be_visible()
    new_engine.say("Thought.\n</think>\n\nAn answer.")
    return key, page


def test_copied_programs_send_what_the_page_sends(
    keyed: tuple[str, Page], bodies: list[Any], png: bytes, tmp_path: Path
) -> None:
    key, page = keyed
    pictures: list[Any] = [{"name": "it's $1.png", "mimeType": "image/png", "buffer": png}] * 2
    page.set_input_files("#files", pictures)
    expect(page.locator("#attached img")).to_have_count(2)
    open_settings(page, **EVERYTHING | {"system": "Say $5!now"})
    asked_and_done(page, "first")
    page.fill("#question", HARD)
    page.get_by_role("button", name="Copy as curl or Python").click()
    dialog = page.get_by_role("dialog", name="This request as a program")
    curl = dialog.locator("#copy-text").inner_text()
    dialog.get_by_label("Python").check()
    python = dialog.locator("#copy-text").inner_text()
    assert "base64," + "iVBOR" not in curl + python
    assert not key or key not in curl + python
    for name in ("it_s_1.png", "2-it_s_1.png"):
        with page.expect_download() as download:
            dialog.get_by_role("button", name=f"Save {name}", exact=True).click()
        download.value.save_as(tmp_path / name)
    page.keyboard.press("Escape")
    page.press("#question", "Enter")
    done(page.get_by_role("article", name="Answer").nth(1))
    page.close()
    sent = bodies[-1]
    bodies.clear()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8", "ERNIE45_API_KEY": key}
    for shell in ("bash", "sh"):
        done_by = subprocess.run([shell], input=curl, text=True, cwd=tmp_path, env=environment, capture_output=True, timeout=30)
        assert "data: [DONE]" in done_by.stdout, done_by
        assert bodies.pop() == sent
    program = tmp_path / "ask.py"
    program.write_text(python)
    done_by = subprocess.run([sys.executable, program.name], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert done_by.stdout.decode() == "Thought.An answer.\n", done_by
    assert bodies.pop() == sent


def test_colours_and_motion_can_be_chosen(open_chat: Any, server: Any) -> None:
    page = open_chat(server.url, color_scheme="dark", reduced_motion="reduce")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    button = page.get_by_role("button", name=re.compile("^Colours"))
    button.click()
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "light"
    expect(button).to_have_attribute("aria-label", "Colours: light")
    page.emulate_media(color_scheme="light")
    button.click()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    button.click()
    assert page.locator("html").get_attribute("data-theme") == "light"
    style = "getComputedStyle(document.querySelector('.switch input')).transitionDuration"
    assert page.evaluate(style) == "0s"
