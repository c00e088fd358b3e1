"""The page of a gallery: one HTML file that holds its pictures and needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from string import Template

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}

PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1d2326; --ground: #f6f5f2; --quiet: #59646a; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #eceae5; --ground: #14181a; --quiet: #a3adb1; --card: #1d2326; } }
body { margin: 0 auto; max-width: 1100px; padding: 24px 16px 48px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
section { margin: 32px 0; padding: 16px; border-radius: 14px; background: var(--card); }
h1, h2 { margin: 0 0 8px; line-height: 1.2; }
p { margin: 8px 0; }
.quiet { color: var(--quiet); font-size: 0.9rem; }
img { display: block; max-width: 100%; height: auto; margin: 12px auto 4px; border-radius: 8px; }
pre { padding: 8px 12px; border-radius: 8px; background: var(--ground); font-size: 0.85rem; white-space: pre-wrap; }
</style>
<header>
<h1>$title</h1>
<p class="quiet">$introduction</p>
</header>
<main>
$sections
</main>
</html>
""")


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    title: str
    text: str  # a sentence or two for the reader
    command: str  # of fid-run, that does this
    pictures: Sequence[tuple[bytes, str, str]] = field(repr=False)  # bytes of a file, its ending, what it shows

    def html(self) -> str:
        """Return the section as HTML."""
        images = "\n".join(
            f'<img src="data:{MEDIA[suffix]};base64,{base64.b64encode(data).decode()}" alt="{escape(shows)}">'
            for data, suffix, shows in self.pictures
        )
        return (
            f"<section>\n<h2>{escape(self.title)}</h2>\n<p>{escape(self.text)}</p>\n{images}\n"
            f"<pre>{escape(self.command)}</pre>\n</section>"
        )


def page(title: str, introduction: str, sections: Sequence[Section]) -> str:
    """Return the whole page, one HTML file."""
    body = "\n".join(section.html() for section in sections)
    return PAGE.substitute(title=escape(title), introduction=escape(introduction), sections=body)
