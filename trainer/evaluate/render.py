"""A page of measurements: tables, plots and pictures in one HTML file that needs no other."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jinja2 import Environment, StrictUndefined

from ...runtime.media.images import encode_image
from .tables import Table

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class Section:
    """A heading and what there is to know about what follows."""

    kind: ClassVar[str] = "section"
    title: str
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plots:
    """Plots side by side: (caption, SVG) of each."""

    kind: ClassVar[str] = "plots"
    plots: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """One picture and its caption."""

    kind: ClassVar[str] = "picture"
    title: str
    caption: str
    width: int  # px
    source: str  # `data_url`


@dataclass(frozen=True)
class Row:
    """Pictures in a row: (label, `data_url`) of each."""

    kind: ClassVar[str] = "row"
    title: str
    images: Sequence[tuple[str, str]]


def render(title: str, setting: Sequence[str], parts: Sequence[Table | Section | Plots | Picture | Row]) -> str:
    """Return the page: its title, the lines of what was measured on what, and its parts one below the other."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE.read_text()).render(title=title, setting=setting, parts=parts)


def data_url(image: np.ndarray, suffix: str) -> str:
    """Return a picture RGB uint8 [H, W, 3] as a data URL; `suffix` is the format's, .jpg or .webp."""
    data = base64.b64encode(encode_image(image, suffix)).decode()
    return f"data:image/{suffix.removeprefix('.').replace('jpg', 'jpeg')};base64,{data}"
