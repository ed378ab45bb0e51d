"""A headless Chromium, driven over WebDriver's wire protocol (https://www.w3.org/TR/webdriver/)."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

CHROMIUM = "/usr/bin/chromium"
CHROMEDRIVER = "/usr/bin/chromedriver"

# Section 17.4.2 of the specification: keys that are not characters.
KEYS = {
    "Tab": "\ue004", "Enter": "\ue007", "Control": "\ue009", "Escape": "\ue00c",
    "ArrowLeft": "\ue012", "ArrowUp": "\ue013", "ArrowRight": "\ue014", "ArrowDown": "\ue015",
}  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_TIMEOUT_S = 60.0


class WebDriverError(Exception):
    """What chromedriver answered instead: `no such element: …`."""


class Browser:
    """Chromium from entering to leaving, with a profile of its own that nothing is left of."""

    def __init__(self, width: int = 1280, height: int = 900, *, scripts: bool = True, dark: bool = False) -> None:
        self._size = (width, height)
        self._scripts = scripts
        self._dark = dark

    def __enter__(self) -> Browser:
        with contextlib.ExitStack() as stack:
            self._profile = tempfile.mkdtemp(prefix="phptrace-chromium.")
            stack.callback(shutil.rmtree, self._profile, ignore_errors=True)
            # It listens on the loopback addresses only, on a port that the kernel picked.
            driver = subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
            stack.callback(_end, driver)
            self._driver = f"http://127.0.0.1:{_port(driver)}"
            self._session = ""
            answer = self._call("POST", "", {"capabilities": {"alwaysMatch": self._wishes()}})
            self._session = f"/{answer['sessionId']}"
            stack.callback(self._call, "DELETE", "")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def execute(self, js: str, *args: object) -> Any:
        """What the body of a function returns: execute("return arguments[0] + 1", 2)."""
        return self._call("POST", "/execute/sync", {"script": js, "args": list(args)})

    def click(self, css: str) -> None:
        """With the mouse, in the middle of the element; WebDriverError if that is not what lies there."""
        self._call("POST", f"/element/{self._element(css)}/click", {})

    def hover(self, css: str) -> None:
        origin = {_ELEMENT: self._element(css)}
        move = {"type": "pointerMove", "duration": 0, "origin": origin, "x": 0, "y": 0}
        self._call("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})

    def press(self, *keys: str, hold: str | None = None) -> None:
        """Keys by name or character, one after the other, to what has the focus: press("f", hold="Control")."""
        held = [{"type": "keyDown", "value": KEYS[hold]}] if hold else []
        pressed = [{"type": kind, "value": KEYS.get(key, key)} for key in keys for kind in ("keyDown", "keyUp")]
        freed = [{"type": "keyUp", "value": KEYS[hold]}] if hold else []
        actions = [{"type": "key", "id": "keyboard", "actions": [*held, *pressed, *freed]}]
        self._call("POST", "/actions", {"actions": actions})

    def alert(self) -> str | None:
        """The text of an open alert() or prompt(); None if there is none."""
        try:
            return str(self._call("GET", "/alert/text"))
        except WebDriverError:
            return None

    def screenshot(self, path: Path) -> None:
        """What the window shows, as a PNG."""
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def _element(self, css: str) -> str:
        found: str = self._call("POST", "/element", {"using": "css selector", "value": css})[_ELEMENT]
        return found

    def _wishes(self) -> dict[str, object]:
        flags = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            f"--user-data-dir={self._profile}", f"--window-size={self._size[0]},{self._size[1]}",
        ]  # fmt: skip
        if self._dark:
            flags.append("--blink-settings=preferredColorScheme=0")
        options: dict[str, object] = {"binary": CHROMIUM, "args": flags}
        if not self._scripts:
            options["prefs"] = {"profile.managed_default_content_settings.javascript": 2}
        # An alert stays open, so that alert() can see it.
        return {"browserName": "chrome", "unhandledPromptBehavior": "ignore", "goog:chromeOptions": options}

    def _call(self, method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"{self._driver}/session{self._session}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        # Without this, a proxy from the environment would be asked for a loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as exc:
            with exc:
                value = json.load(exc)["value"]
            raise WebDriverError(f"{value['error']}: {value['message']}") from exc


def available() -> bool:
    """Whether Debian's chromium and chromium-driver are here."""
    return Path(CHROMIUM).exists() and Path(CHROMEDRIVER).exists()


def _port(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if match := re.search(r"started successfully on port (\d+)", line):
            return int(match[1])
    raise WebDriverError(f"{CHROMEDRIVER} ended before it listened")


def _end(driver: subprocess.Popen[str]) -> None:
    driver.terminate()
    try:
        driver.wait(10)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
    if driver.stdout is not None:
        driver.stdout.close()
