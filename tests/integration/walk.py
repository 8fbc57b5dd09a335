"""Run the code blocks of a page of docs/ as they stand, in their order, in one database."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Browser
from playwright.sync_api import Page as Tab

from mf.local import LocalSupabase
from mf.local.gateway import Page
from mf.local.place import packaged_programs
from mf.local.tools import Package, default_cache, fetch, supabase_js

ROOT = Path(__file__).parents[2]
# What a reader replaces.
URL, KEY = "https://PROJECT.supabase.co", "sb_publishable_…"
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NPM = {
    "/react.js": Package(
        "React",
        "react",
        "18.3.1",
        "wS+hAgJShR0KhEvPJArfuPVN1+Hz1t0Y6n5jLrGQbkb4urgPE/0Rve+1kMB1v/oWgHgm4WIcV+i7F2pTVj+2iQ==",
        "umd/react.development.js",
        "try again",
    ),
    "/react-dom.js": Package(
        "React",
        "react-dom",
        "18.3.1",
        "5m4nQKp+rZRb09LNH59GM4BxTh9251/ylbKIbpe7TpGxfJ+9kv6BLkLBXIjjspbgbnIBNqlI23tRnTWT0snUIw==",
        "umd/react-dom.development.js",
        "try again",
    ),
    "/babel.js": Package(
        "Babel",
        "@babel/standalone",
        "7.28.5",
        "1DViPYJpRU50irpGMfLBQ9B4kyfQuL6X7SS7pwTeWeZX0mNkjzPi0XFqxCjSdddZXUQy4AhnQnnesA/ZHnvAdw==",
        "babel.min.js",
        "try again",
    ),
}
MODULES = {
    "@supabase/supabase-js": "export const { createClient } = window.supabase",
    "react": "export default window.React; export const { useState, useEffect, useCallback } = window.React",
    "react-dom/client": "export const { createRoot } = window.ReactDOM",
}
HTML = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><div id="root"></div>
<script src="/supabase.js"></script>{libraries}
<script type="importmap">{{"imports": {{{imports}}}}}</script>
"""


class Block(NamedTuple):
    """A code block of a page."""

    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        indent = match[1]
        code = "".join(line.removeprefix(indent) for line in match[3].splitlines(keepends=True))
        found.append(Block(text.count("\n", 0, match.start()) + 1, match[2], code))
    return found


class Walk:
    """A reader who runs one block after the other: one shell, one Python, one database.

    Attributes:
        pages: walked so far.
        rows: of the last statement in SQL.
        names: variables of Python.
        look: called with the page of the browser after a block of React.
        output: of the last block in the shell or the browser; of console.log a JSON list of its arguments.
    """

    def __init__(self, database: LocalSupabase, folder: Path, browser: Browser) -> None:
        self.database, self.folder, self._browser = database, folder, browser
        self.pages: list[str] = []
        self.rows: list[Any] = []
        self.output = ""
        self.look: Callable[[Tab], None] = lambda tab: None
        self.names: dict[str, Any] = {}
        programs = f"{Path(sys.executable).parent}:{packaged_programs() / 'bin'}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SUPABASE")}
        self.environment = kept | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def walk(self, page: str) -> Iterator[Block]:
        """Run the blocks of ``docs/<page>``; yields after each one.

        Raises:
            AssertionError: a block failed, with its line.
        """
        self.pages.append(page)
        for block in blocks(ROOT / "docs" / page):
            try:
                self._run(block)
            except Exception as error:
                raise AssertionError(f"docs/{page}, line {block.line}: {error}") from error
            yield block

    def _run(self, block: Block) -> None:
        text = block.text.replace(URL, self.database.url).replace(KEY, self.database.publishable_key)
        getattr(self, f"_{block.language}")(text)

    def _sql(self, text: str) -> None:
        with self.database.connect() as connection:
            result = connection.execute(text.encode())
            while True:
                self.rows = result.fetchall() if result.description else []
                assert self.rows or not result.description, f"no rows: {text}"
                if not result.nextset():
                    break
        self.database.migrate("select 1")  # the API serves the new schema

    def _sh(self, text: str) -> None:
        secrets = {"SUPABASE_KEY": self.database.secret_key, "SUPABASE_DB_URL": self.database.db_url}
        typed = "".join(f"{secrets[name]}\n" for name in re.findall(r"read -rs (\w+)", text))
        script = f"set -e\n{text}\nexport -p > .shell\n"
        before = "source ./.shell\n" if (self.folder / ".shell").exists() else ""
        done = subprocess.run(
            ["bash", "-c", before + script], cwd=self.folder, env=self.environment, input=typed, capture_output=True,
            text=True,
        )  # fmt: skip
        self.output = done.stdout + done.stderr
        assert done.returncode == 0, self.output
        for name, value in secrets.items():
            assert value not in self.output, name

    def _python(self, text: str) -> None:
        url = {"SUPABASE_URL": self.database.url, "SUPABASE_KEY": self.database.secret_key}
        with _environment(url):
            exec(compile(text, "block", "exec"), self.names)

    def _js(self, text: str) -> None:
        with self.tab(libraries=()) as (tab, told):
            self._module(tab, text)
            self.output = "\n".join(told)

    def _jsx(self, text: str) -> None:
        with self.tab() as (tab, _):
            self._module(tab, tab.evaluate("text => Babel.transform(text, { presets: ['react'] }).code", text))
            self.look(tab)

    @contextmanager
    def tab(self, libraries: tuple[str, ...] = tuple(NPM)) -> Iterator[tuple[Tab, list[str]]]:
        """A page of the browser, and what its console says; an error fails."""
        pages, cache = self.database.gateway.pages, default_cache()
        pages["/supabase.js"] = Page("text/javascript", supabase_js(cache).read_bytes)
        for path in libraries:
            package = NPM[path]
            target = cache / f"{package.name.rpartition('/')[2]}-{package.version}.js"
            if not target.exists():
                fetch(package, target)
            pages[path] = Page("text/javascript", target.read_bytes)
        for name, text in MODULES.items():
            pages[f"/{name}.mjs"] = Page("text/javascript", lambda text=text: text.encode())
        imports = ", ".join(f'"{name}": "/{name}.mjs"' for name in MODULES)
        scripts = "".join(f'<script src="{path}"></script>' for path in libraries)
        html = HTML.format(libraries=scripts, imports=imports).encode()
        pages["/walk"] = Page("text/html", lambda: html)
        tab, told, errors = self._browser.new_page(), list[str](), list[str]()
        tab.on("console", lambda message: (errors if message.type == "error" else told).append(message.text))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.add_init_script("const log = console.log; console.log = (...all) => log(JSON.stringify(all))")
        try:
            tab.goto(f"{self.database.url}/walk")
            yield tab, told
            assert errors == []
        finally:
            tab.close()

    def _module(self, tab: Tab, text: str) -> None:
        """Run a module of JavaScript to its end."""
        tab.evaluate(
            """text => new Promise((done, fail) => {
                const say = error => fail(Error(error?.message ?? JSON.stringify(error)))
                window.moduleDone = done
                window.addEventListener('error', event => say(event.error ?? event))
                window.addEventListener('unhandledrejection', event => say(event.reason))
                const script = document.createElement('script')
                script.type = 'module'
                script.textContent = text + '\\n;window.moduleDone()'
                document.body.append(script)
            })""",
            text,
        )


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
