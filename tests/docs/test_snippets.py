"""Holds the documentation to its word: its snippets run, and what it names exists.

The ``python`` blocks of a page run in order, in one namespace and in an empty folder. A ``text``
block right behind one is what it must print.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import rustgpt
from rustgpt.backend import backend_name
from rustgpt.reference import kernels

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
KERNEL = re.compile(r"`(\w+_(?:forward|backward|decode|step))`")
FILE = re.compile(r"`((?:rustgpt|tests|data|docs)/[\w./]+\.\w+)`")


def snippets(text: str) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, source, expected output or None) of each Python block."""
    blocks = [*FENCE.finditer(text)]
    for i, block in enumerate(blocks):
        if block[1] != "python":
            continue
        expected = None
        if i + 1 < len(blocks) and blocks[i + 1][1] == "text":
            between = text[block.end() : blocks[i + 1].start()]
            expected = None if between.strip() else blocks[i + 1][2]
        yield text.count("\n", 0, block.start(2)), block[2], expected


def anchors(text: str) -> set[str]:
    """Return the names that GitHub gives to the headings."""
    titles = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_snippet_and_its_output_are_found() -> None:
    text = "a\n```python\nb = 1\n```\n\n```text\nc\n```\nd\n```python\ne\n```\nf\n```text\ng\n```\n"
    assert [*snippets(text)] == [(2, "b = 1\n", "c\n"), (10, "e\n", None)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with restored_backend():
        run(page)


@contextlib.contextmanager
def restored_backend() -> Iterator[None]:
    """Undo what a page may have done to the choice of kernels."""
    before = backend_name()
    try:
        yield
    finally:
        rustgpt.use_backend(before)


def run(page: Path) -> None:
    """Run the snippets of a page and compare what they print."""
    namespace: dict[str, object] = {"__name__": "snippet"}
    for line, source, expected in snippets(page.read_text(encoding="utf-8")):
        printed = io.StringIO()
        # The empty lines in front let a traceback show the line of the page.
        code = compile("\n" * line + source, str(page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if expected is not None:
            assert printed.getvalue() == expected, f"{page}, snippet in line {line + 1}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for match in LINK.finditer(FENCE.sub("", text)):
        target, _, anchor = (match[1] or match[2]).partition("#")
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page}: there is no {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: no #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_kernels_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {*KERNEL.findall(text)} <= kernels().keys()
    assert [name for name in FILE.findall(text) if not (ROOT / name).exists()] == []
