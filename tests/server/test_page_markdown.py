"""Answers as Markdown: what models write is shown as it is meant, and hostile text stays text and costs little."""

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

RENDER = """async (text) => {
    const { render } = await import("/web/chat-markdown.js");
    const target = document.createElement("div");
    render(target, text);
    for (const element of target.querySelectorAll("*")) element.removeAttribute("dir");
    return target.innerHTML;
}"""
SAME_IN_PIECES = """async (text) => {
    const { render } = await import("/web/chat-markdown.js");
    const whole = document.createElement("div"), pieces = document.createElement("div");
    render(whole, text);
    for (let end = 1; end <= text.length; end += 1) render(pieces, text.slice(0, end));
    return whole.innerHTML === pieces.innerHTML;
}"""


@pytest.fixture(scope="module")
def blank(browser: Browser, shared_server: Any) -> Iterator[Page]:
    """The chat page, for its modules; shared, as rendering changes nothing on it."""
    page = browser.new_page()
    page.goto(shared_server.url)
    yield page
    page.close()


def link(address: str, inside: str) -> str:
    """As it is shown."""
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer nofollow" title="{address}">{inside}</a>'


def math(text: str) -> str:
    return f'<span class="math">{text}</span>'


CASES = {
    "paragraphs": ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
    "headings": ("# One\n### Three #\n#no", "<h3>One</h3><h5>Three</h5><p>#no</p>"),
    "emphasis": (
        "**b** *i* ***bi*** __b__ _i_ ~~s~~ a_b_c 2*3*4 * x",
        "<p><strong>b</strong> <em>i</em> <strong><em>bi</em></strong> <strong>b</strong> <em>i</em> <s>s</s> a_b_c "
        "2<em>3</em>4 * x</p>",
    ),
    "nested emphasis": ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    "open emphasis": ("**not closed and `no", "<p>**not closed and `no</p>"),
    "code in a line": ("`a **b**` and ``c`d``", "<p><code>a **b**</code> and <code>c`d</code></p>"),
    "lists": (
        "- a\n- b\n  - c\n\n1. x\n2. y",
        "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol><li>x</li><li>y</li></ol>",
    ),
    "a list that goes on": (
        "3. x\n\n   more\n4. y",
        '<ol class="loose" start="3"><li><p>x</p><p>more</p></li><li><p>y</p></li></ol>',
    ),
    "tasks": ("- [ ] a\n- [x] b", "<ul><li>☐ a</li><li>☑ b</li></ul>"),
    "quote": ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
    "rule": ("a\n\n---\nb", "<p>a</p><hr><p>b</p>"),
    "escapes": (r"\*a\* \# \[", r"<p>*a* # \[</p>"),
    "break in a cell": ("a<br>b", "<p>a<br>b</p>"),
    "link": ("[a *b*](https://x.org/a_(b))", "<p>" + link("https://x.org/a_(b)", "a <em>b</em>") + "</p>"),
    "address": ("see https://x.org/a?b=1.", "<p>see " + link("https://x.org/a?b=1", "https://x.org/a?b=1") + ".</p>"),
    "no picture is fetched": ("![alt](https://x.org/p.png)", "<p>" + link("https://x.org/p.png", "alt") + "</p>"),
    "LaTeX in a line": (
        r"$a_1 * b_2 * c$ and \(x_1\)",
        "<p>" + math("$a_1 * b_2 * c$") + " and " + math(r"\(x_1\)") + "</p>",
    ),
    "LaTeX block": ("$$\n\\frac{a_1}{b_2}\n$$\nx", '<pre class="math">$$\n\\frac{a_1}{b_2}\n$$</pre><p>x</p>'),
    "money": ("$5 and $6", "<p>$5 and $6</p>"),
    "markup": ("<b>x</b> &amp; <script>", "<p>&lt;b&gt;x&lt;/b&gt; &amp;amp; &lt;script&gt;</p>"),
}


def test_what_models_write(blank: Page) -> None:
    shown = {name: blank.evaluate(RENDER, text) for name, (text, _) in CASES.items()}
    assert shown == {name: html for name, (_, html) in CASES.items()}


def test_a_table(blank: Page) -> None:
    html = blank.evaluate(RENDER, "| a | b |\n|:--|--:|\n| 1 | **2** |\n| `x\\|y` |\nno table")
    assert '<th class="" scope="col">a</th><th class="end" scope="col">b</th>'.replace(' class=""', "") in html
    assert '<td>1</td><td class="end"><strong>2</strong></td>' in html
    assert '<td><code>x|y</code></td><td class="end"></td>' in html
    assert html.endswith("<p>no table</p>")


def test_a_code_block(blank: Page) -> None:
    html = blank.evaluate(RENDER, "```html\n<b>*x*</b>\n\n```\nafter")
    assert "<span>html</span>" in html
    assert "<code>&lt;b&gt;*x*&lt;/b&gt;\n</code>" in html
    assert html.endswith("<p>after</p>")
    assert "<code>open</code>" in blank.evaluate(RENDER, "~~~\nopen")


HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "<script>window.hacked=1</script>",
    "[x](javascript:window.hacked=1)",
    "[x](JaVaScRiPt:window.hacked=1)",
    "[x](data:text/html,<script>window.hacked=1</script>)",
    "[x](vbscript:x) ![x](javascript:x)",
    '[x](https://a"onmouseover="window.hacked=1)',
    "[<img src=x onerror=window.hacked=1>](https://example.org)",
    "`<img src=x onerror=window.hacked=1>`",
    "```<img/src=x onerror=window.hacked=1>\n</code></pre><script>window.hacked=1</script>\n```",
    "| <svg onload=window.hacked=1> | b |\n|---|---|\n| <iframe src=javascript:window.hacked=1> | x |",
    "- <details open ontoggle=window.hacked=1>\n> <style>*{display:none}</style>",
    "$<img src=x onerror=window.hacked=1>$ $$<svg onload=window.hacked=1>$$",
    "<a href=javascript:window.hacked=1>x</a> <https://x.org/<script>>",
]


def test_hostile_text_stays_text(blank: Page) -> None:
    allowed = set(
        "A BLOCKQUOTE BR BUTTON CODE DIV EM H3 H4 H5 H6 HR LI OL P PRE S SPAN STRONG TABLE TBODY TD TH THEAD TR UL".split()
    )
    found = blank.evaluate(
        """async (texts) => {
            const { render } = await import("/web/chat-markdown.js");
            const target = document.createElement("div");
            document.body.append(target);
            render(target, texts.join("\\n\\n"));
            const all = [...target.querySelectorAll("*")];
            const names = all.flatMap((e) => e.getAttributeNames());
            const result = { tags: all.map((e) => e.tagName), links: all.map((e) => e.getAttribute("href")).filter((l) => l),
                handlers: names.filter((n) => n.startsWith("on") || n === "src" || n === "style") };
            await new Promise((next) => setTimeout(next, 50));
            target.remove();
            return result;
        }""",
        HOSTILE,
    )
    assert set(found["tags"]) <= allowed
    assert found["handlers"] == []
    assert all(link.startswith("https://") for link in found["links"]), found["links"]
    assert blank.evaluate("window.hacked") is None


def test_markup_cannot_be_made_at_all(blank: Page) -> None:
    """Even a defect of ours would be stopped by the policy: no string becomes markup on this page."""
    said = blank.evaluate(
        """() => {
            try { document.createElement("div").innerHTML = "<b>x</b>"; } catch (error) { return error.name; }
            return "done";
        }"""
    )
    assert said == "TypeError"


def test_a_stream_ends_like_the_whole(blank: Page) -> None:
    text = "\n\n".join(text for text, _ in CASES.values()) + "\n\n```py\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    assert blank.evaluate(SAME_IN_PIECES, text)


PIECES = (
    *("[", "![", "[a](", "](", "(((", "*a ", "**a *b _c ~~d ", "_a*", "`", "` `` ", "$a ", "\\(", "\\"),
    *("> ", "- ", "1. ", "|", "# ", " ", "\n", "h", "https://", "```", "<br", "- [ ] "),
)


def test_hostile_text_costs_no_more_than_long_text(blank: Page) -> None:
    """20,000 characters of each, in each of three surroundings, as against the same number of words."""
    costs = blank.evaluate(
        """async (pieces) => {
            const { render } = await import("/web/chat-markdown.js");
            const cost = (text) => {
                const start = performance.now();
                render(document.createElement("div"), text);
                return performance.now() - start;
            };
            const ends = ["", "x", "- x"], long = (piece) => piece.repeat(20000 / piece.length);
            return pieces.flatMap((piece) => ends.map((end) => [piece, cost(long(piece) + end)]));
        }""",
        list(PIECES),
    )
    assert [(piece, cost) for piece, cost in costs if cost > 400] == []
