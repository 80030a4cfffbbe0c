"""Pages in Chromium."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_WAIT_MS = 60_000


def launched() -> Iterator[Any]:
    """Chromium, until the generator goes on; skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


def opened(browser: Any, address: str, locale: str = "zh-CN", width: int = 1280) -> Any:
    """The page, in a context of its own; what goes wrong in its scripts fails the test."""
    context = browser.new_context(locale=locale, viewport={"width": width, "height": 800})
    context.set_default_timeout(_WAIT_MS)
    page = context.new_page()
    page.on("pageerror", lambda error: pytest.fail(f"the page's script failed: {error}"))
    page.goto(address)
    return page
