"""Debian's headless Chromium, driven by Debian's Selenium."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from machine import lacking, require

try:
    from selenium.webdriver import Keys as Keys
except ImportError:  # chromium() skips the test, or fails it
    Keys: Any = None  # type: ignore[no-redef]

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

_CHROMIUM, _CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@contextlib.contextmanager
def chromium(width: int = 1280, height: int = 900, *, scripts: bool = True) -> Iterator[Chrome]:
    """A browser with a profile of its own, of which nothing is left afterwards."""
    require(_CHROMIUM)
    require(_CHROMEDRIVER)
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        lacking("there is no selenium. Run vagrant/provision.sh --tests.")
    with tempfile.TemporaryDirectory(prefix="phptrace-chromium.", ignore_cleanup_errors=True) as profile:
        options: Any = webdriver.ChromeOptions()
        options.binary_location = _CHROMIUM
        for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        if not scripts:
            options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
        options.set_capability("unhandledPromptBehavior", "ignore")  # so that a test sees an alert
        driver = webdriver.Chrome(options=options, service=Service(_CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def click(driver: Chrome, css: str) -> None:
    """Click the middle of the element with the mouse; raises if something else lies there."""
    driver.find_element("css selector", css).click()


def hover(driver: Chrome, css: str) -> None:
    """Move the mouse to the middle of the element."""
    _actions(driver).move_to_element(driver.find_element("css selector", css)).perform()


def press(driver: Chrome, *keys: str, hold: str | None = None) -> None:
    """Press keys one after the other, to what has the focus: press(driver, "f", hold=Keys.CONTROL)."""
    actions = _actions(driver)
    if hold is not None:
        actions.key_down(hold)
    for key in keys:
        actions.send_keys(key)
    if hold is not None:
        actions.key_up(hold)
    actions.perform()


def alert(driver: Chrome) -> str | None:
    """The text of an open alert() or prompt(); None if there is none."""
    from selenium.common.exceptions import NoAlertPresentException

    try:
        return str(driver.switch_to.alert.text)
    except NoAlertPresentException:
        return None


def _actions(driver: Chrome) -> Any:
    from selenium import webdriver

    chains: Any = webdriver.ActionChains
    return chains(driver, duration=0)
