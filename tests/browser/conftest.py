"""One browser for all tests of the pages: Chromium with its driver, from the system, and axe-core, from npm or MMCL_AXE."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser")


class Browser:
    """A page in a headless Chromium, and what it said and asked for."""

    def __init__(self, driver: Any, axe: str):
        self.driver, self.axe = driver, axe

    def open(self, page: Path | str, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Opens a page, a file or an address, at a size, in light or dark colors."""
        media = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [media]})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.messages()
        self.requests()
        self.driver.get(page if isinstance(page, str) else page.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs JavaScript in the page; `return` returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str) -> None:
        """Waits until an expression of JavaScript is true. Raises AssertionError if that takes more than 20 seconds."""
        end = time.monotonic() + 20
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"not true within 20 seconds: {condition}"
            time.sleep(0.02)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def messages(self) -> list[str]:
        """What the page wrote to the console, errors and refused requests included, since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What the page asked for since the last call: addresses."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def violations(self) -> list[str]:
        """What axe-core finds wrong."""
        if not self.run("return 'axe' in window"):
            self.run(self.axe)
        found = self.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
        return [
            f"{one['id']}: {node['html'][:200]}: {node['failureSummary']}"
            for one in found["violations"]
            for node in one["nodes"]
        ]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver")
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    axe = Path(os.environ.get("MMCL_AXE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
    if binary is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    if not axe.is_file():
        pytest.skip("needs axe-core: npm install --no-save axe-core, or its axe.min.js in MMCL_AXE")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield Browser(started, axe.read_text(encoding="utf-8"))
    finally:
        started.quit()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Writes a page into a folder of its own."""

    def save(name: str, page: str) -> Path:
        path = tmp_path_factory.mktemp("page") / f"{name}.html"
        path.write_text(page, encoding="utf-8")
        return path

    return save
