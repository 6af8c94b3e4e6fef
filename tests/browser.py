"""A real, headless Chromium for pages; tests skip where there is none."""

import contextlib
import shutil
import time

import pytest


@contextlib.contextmanager
def chromium(width: int = 1100, height: int = 900, dark: bool = False):
    """A selenium driver of Debian's chromium, with a profile of its own and no network traffic."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("needs chromium and chromedriver (Debian: chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync",
        "disable-background-networking", "disable-component-update", "disable-quic",
        "use-fake-ui-for-media-stream", "use-fake-device-for-media-stream",
        "autoplay-policy=no-user-gesture-required", f"window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(driver, condition: str, seconds: float = 60):
    """Until a JavaScript expression is true -> its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = driver.execute_script(f"return {condition}")
        if value:
            return value
        time.sleep(0.2)
    status = driver.execute_script("return document.body.innerText.slice(0, 2000)")
    logs = driver.get_log("browser")
    raise AssertionError(f"never came true: {condition}\n{status}\n{logs}")
