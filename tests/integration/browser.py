"""A real headless Chromium for tests of pages."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, Request, Response, sync_playwright

from mf.local.tools import Package, default_cache, fetch

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
MISSING = (
    "no Chromium here, which the tests of pages need: install Debian's or Ubuntu's package chromium, or Google Chrome, "
    "or run `.venv/bin/playwright install chromium`"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium, started once a test module: ``page = browser.new_page()``, then ``seen = watch(page)``.

    Where there is none the test is skipped or, where the variable CI is set, fails. It ends with the module: until then
    Playwright's event loop counts as running in this thread, so that no test can call ``asyncio.run``.
    """
    with sync_playwright() as playwright:
        program = find_chromium(playwright)
        if program is None:
            if os.environ.get("CI"):
                pytest.fail(MISSING, pytrace=False)
            pytest.skip(MISSING)
        # Without its sandbox, which starts neither as root nor in some containers; the pages are our own.
        with playwright.chromium.launch(executable_path=program, chromium_sandbox=False) as browser:
            yield browser


def find_chromium(playwright: Playwright) -> str | None:
    """The machine's own, else the one that ``playwright install`` has fetched."""
    installed = [found for name in NAMES if (found := shutil.which(name))]
    places = [*installed, *APPLICATIONS, playwright.chromium.executable_path]
    return next((place for place in places if Path(place).is_file()), None)


AXE = Package(
    "axe", "axe-core", "4.10.3",
    "Xm7bpRXnDSX2YE2YFfBk2FnF0ep6tmG7xPh8iHee8MIcrgq762Nkce856dYtJYLkuIoYZvGfTs/PbZhideTcEg==",
    "axe.min.js", "put the package's axe.min.js into the cache folder",
)  # fmt: skip


def accessibility_faults(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is shown now: the rule and the elements."""
    script = default_cache() / f"axe-{AXE.version}.js"
    if not script.exists():
        fetch(AXE, script)
    # Not by a script element: the page's Content-Security-Policy allows its own only.
    page.evaluate(script.read_text())
    found = page.evaluate("axe.run()")["violations"]
    return [f"{fault['id']}: {node['html'][:200]}" for fault in found for node in fault["nodes"]]


def picture(page: Page, name: str, folder: Path) -> Path:
    """Saves what ``page`` shows as ``name.png`` in ``folder``, or in the folder that MF_PICTURES names.

    ``MF_PICTURES=docs/pictures`` renews the README's pictures.
    """
    path = Path(os.environ.get("MF_PICTURES", folder)) / f"{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as whole:  # with few colours, as pages have, a quarter of the bytes
        whole.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


@dataclass
class Seen:
    """What a page has done so far."""

    errors: list[str] = field(default_factory=list)  # errors of the console, and exceptions that nobody caught
    requests: list[str] = field(default_factory=list)  # URLs of all requests but those of data: and blob:
    failed: list[str] = field(default_factory=list)  # URLs of those without an answer, or with one of 400 and above

    def outside(self, *allowed: str) -> list[str]:
        """The requests whose URL begins with none of ``allowed``: ``seen.outside("http://127.0.0.1:8000/")``."""
        return [url for url in self.requests if not url.startswith(allowed)]


def watch(page: Page) -> Seen:
    """Notes what ``page`` does from now on, so that a test can assert what it has not done."""
    seen = Seen()

    def ask(request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            seen.requests.append(request.url)

    def answer(response: Response) -> None:
        if response.status >= 400:
            seen.failed.append(response.url)

    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", ask)
    page.on("requestfailed", lambda request: seen.failed.append(request.url))
    page.on("response", answer)
    return seen
