"""The README and the pages under docs/: their code blocks and commands, for the tests that check and run them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
}
SHELL = ("sh", "bash", "console")


def blocks(page: str, *languages: str) -> list[str]:
    """The contents of a page's fenced code blocks in one of `languages`."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return [body for language, body in fenced if language in languages]


def lines(page: str) -> Iterator[str]:
    """Each command line of a page's shell blocks, in order, without its comment."""
    for block in blocks(page, *SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            code = re.sub(r"(?:^|\s+)#.*$", "", line)
            if code.strip():
                yield code.strip()


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of all shell blocks as (page, its words); `a && b` gives two."""
    for page in PAGES:
        for line in lines(page):
            words: list[str] = []
            for word in [*shlex.split(line), "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    yield page, words
                    words = []
