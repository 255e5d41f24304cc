"""A headless Chromium for tests that open pages from the disk.

    with open_browser(390, 844, dark=True) as browser:
        browser.get((site / "index.html").as_uri())
        assert console_errors(browser) == []

Selenium drives the system's chromium through its chromedriver; nothing is downloaded. Where one of
them is not installed, `open_browser` skips the test with the reason.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@contextmanager
def open_browser(
    width: int = 1400, height: int = 900, *, dark: bool = False, trace: str = ""
) -> Iterator[Chrome]:
    """A browser with pages of `width` x `height` CSS pixels, set to light or dark.

    `trace` names categories of events that its log "performance" keeps. It is closed at the end,
    also after a failed test.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for name in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "hide-scrollbars",
        "disable-background-networking",
        "no-first-run",
        # WebGL2 drawn by the processor where there is no graphics card
        "use-angle=swiftshader",
        "enable-unsafe-swiftshader",
    ):
        options.add_argument(f"--{name}")
    logs = {"browser": "ALL"}
    if trace:
        logs["performance"] = "ALL"
        options.add_experimental_option("perfLoggingPrefs", {"traceCategories": trace})
    options.set_capability("goog:loggingPrefs", logs)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        resize(browser, width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield browser
    finally:
        browser.quit()


def resize(browser: Chrome, width: int, height: int) -> None:
    """Give pages another size; below 500 pixels a window cannot go, but this can."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def console_errors(browser: Chrome) -> list[str]:
    """What the pages have complained of since the last call: script errors and files not found."""
    entries: list[dict[str, Any]] = browser.get_log("browser")
    return [
        entry["message"]
        for entry in entries
        # A driver's remarks on speed are not the page's.
        if entry["level"] in {"SEVERE", "WARNING"} and "GL Driver Message" not in entry["message"]
    ]
