"""What tests of the chat page do with it over and over.

Knows nothing about what is tested.
"""

import re
from typing import Any

from playwright.sync_api import Page, expect

THOUGHT = "\nTwo digits, a 3 and a 7.\n</think>\n\nThe sum is 10."


def ask(page: Page, text: str) -> Any:
    """Send a text; the article that will hold the answer."""
    answers = page.get_by_role("article", name="Answer")
    number = answers.count()
    page.fill("#question", text)
    page.press("#question", "Enter")
    expect(answers).to_have_count(number + 1)
    return answers.last


def done(answer: Any) -> None:
    """Wait until the answer has ended."""
    expect(answer.get_by_role("button", name="Retry")).to_be_visible()


def asked_and_done(page: Page, text: str) -> Any:
    """Both."""
    answer = ask(page, text)
    done(answer)
    return answer


def titles(page: Page) -> list[str]:
    """Of the chats in the list, from its top."""
    return page.locator("#chats .open span").all_inner_texts()


def set_field(page: Page, name: str, value: str) -> None:
    """Write a setting; the dialog must be open."""
    field = page.locator(f"#set-{name}")
    if field.evaluate("e => e.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)


def open_settings(page: Page, **values: str) -> None:
    """Open the settings, write some, close them."""
    page.get_by_role("button", name=re.compile("^Settings")).click()
    for name, value in values.items():
        set_field(page, name, value)
    page.keyboard.press("Escape")
