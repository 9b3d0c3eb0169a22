"""The dashboard in a real browser, live, and the Grafana dashboard: both draw what is exported and nothing else."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ernie45.server.dashboard import PAGE
from ernie45.server.metrics_table import METRICS, PREFIX

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "docs" / "grafana" / "ernie45.json"
CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking".split()
KEY = "sk-dashboard"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is missing; install it with `apt-get install chromium`"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    """Opens the dashboard of a server. Afterwards: no script error, nothing asked of another host, policy kept."""
    contexts, errors, asked = [], [], []

    def open_one(url: str, **options: Any) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None)
        page.on("request", lambda request: asked.append((request.url, url)))
        page.goto(f"{url}/dashboard")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert errors == []
    assert [url for url, own in asked if not url.startswith((own, "data:"))] == []


def tile(page: Page, name: str) -> Any:
    return page.locator("#tiles div", has=page.get_by_text(name, exact=True)).locator("dd")


def test_it_draws_what_happens(open_page: Any, server: Any, engine: Any) -> None:
    page = open_page(server.url)
    expect(page.locator("#state.up")).to_contain_text("live")
    expect(page.locator(".card")).to_have_count(10)
    engine.say("abcdefgh")
    for _ in range(3):
        server.answer()
    expect(tile(page, "Generated")).not_to_have_text(re.compile("^(0|–) "))
    expect(tile(page, "TTFT, p50")).to_contain_text("ms")
    expect(page.locator("#chart-tokens > svg path.s0")).to_have_attribute("d", re.compile("L"))
    expect(page.locator("#chart-ttft svg[role=img]")).to_have_attribute("aria-label", re.compile(r"p50 [\d.]+ ms"))
    assert server.chat(temperature=-1).status_code == 400
    expect(page.locator("#chart-trouble svg[role=img]")).to_have_attribute("aria-label", re.compile(r"4xx [1-9\d.]"))


def test_experts_of_each_pool(open_page: Any, server: Any, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = server.service.engine.stats
    stats = type(before)(expert_tokens={"text": ((8, 0, 0, 0), (2, 2, 2, 2)), "vision": ((0, 0),)})
    monkeypatch.setattr(server.service.engine, "stats", stats)
    page = open_page(server.url)
    expect(page.locator("#chart-experts-text rect")).to_have_count(4)
    expect(page.locator("#chart-experts-text .legend")).to_contain_text("4.00× in layer 0")
    expect(page.locator("#chart-experts-vision")).to_contain_text("no tokens yet")


def test_it_asks_for_a_key(open_page: Any, start: Any) -> None:
    server = start(api_keys=(KEY,)).wait()
    page = open_page(server.url)
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server does not know this key.")
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Open the dashboard").click()
    expect(page.locator("#state.up")).to_be_visible()
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    page.reload()
    expect(page.locator("#state.up")).to_be_visible()


def test_a_server_that_goes_away(open_page: Any, start: Any) -> None:
    server = start().wait()
    page = open_page(server.url)
    expect(page.locator("#state.up")).to_be_visible()
    server.stop()
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(page.locator("#charts")).to_be_visible()


@pytest.mark.parametrize("width", [360, 800, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_the_width(open_page: Any, server: Any, width: int, scheme: str) -> None:
    page = open_page(server.url, viewport={"width": width, "height": 800}, color_scheme=scheme)
    expect(page.locator("#state.up")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = page.evaluate("['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])")
    assert (brightness(paper) > brightness(ink)) == (scheme == "light")


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_the_policy(server: Any) -> None:
    response = server.client.get("/dashboard")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", response.text)
    assert "innerHTML" not in response.text


def exported() -> set[str]:
    """Every name that a query may use."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {metric.exported + suffix for metric in METRICS.values() for suffix in suffixes.get(metric.kind, ("",))}


def test_the_page_reads_exported_names_only() -> None:
    text = PAGE.read_text(encoding="utf-8")
    known = {name.removeprefix(PREFIX) for name in exported()} | {metric.name for metric in METRICS.values()}
    asked = set(re.findall(r"(?:total|rows|grown|rate|quantiles?)\((?:now\(\), |before\(\), )?\"(\w+)\"", text))
    assert len(asked) > 15
    assert asked <= known


def test_grafana_reads_exported_names_only() -> None:
    dashboard = json.loads(GRAFANA.read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 15
    for query in queries:
        names = re.findall(r"ernie45:\w+", query)
        assert names, query
        assert set(names) <= exported(), query
        assert query.count("(") == query.count(")"), query
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    used = {name for query in queries for name in re.findall(r"ernie45:\w+", query)}
    drawn = {metric.name for metric in METRICS.values() if any(name.startswith(metric.exported) for name in used)}
    wanted = {
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "prefix_cache_hits",
        "expert_tokens",
        "num_preemptions",
    }
    assert wanted <= drawn
