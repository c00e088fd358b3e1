"""Turn decoded frames into pictures: fields joined, colours of a screen, on white, square pixels, upright."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import FidError
from .tone import cube_file, needs_table

MISSING = "PyAV is not installed, which reads and writes videos: `pip install 'fid-face[video]'`."
MAX_STRETCH = 4  # wide pixels are made square up to this; what says more is no picture for anybody
EXACT = 4 | 0x2000 | 0x4000 | 0x40000  # swscale: bicubic, colour of every pixel, rounded; else all turns 1 to 2 darker
FAST = 4  # the same without
UNSAID, BT709 = 2, 1  # FFmpeg's numbers of colour matrices
HD = (1280, 576)  # px; wider or higher pictures that do not say their matrix have that of HD, as players assume


def pyav() -> Any:
    """Return the package `av`; `FidError` with the pip line when it is missing."""
    try:
        import av
    except ImportError as error:
        raise FidError(MISSING) from error
    return av


def pyav_ahead() -> None:
    """Begin to import PyAV on a thread of its own; where it is missing, `pyav` will say so."""
    thread = ThreadPoolExecutor(1, "import PyAV")
    thread.submit(pyav)
    thread.shutdown(wait=False)


class FrameReader:
    """Turns the decoded frames of one stream into pictures, with what one frame needs of the one before."""

    def __init__(self, exact: bool = True) -> None:
        """`exact`: colours to the level; without, a live picture of 720p costs 1 ms in place of 10."""
        self._flags = EXACT if exact else FAST
        self._reformatter = pyav().video.reformatter.VideoReformatter()  # a frame's own one is built anew every time
        self._tables: dict[tuple[int, ...], Any] = {}

    def picture(self, frame: Any, stretch: Any = None) -> np.ndarray:
        """Return a frame as RGB uint8 [height, width, 3], BT.709, upright, on white.

        `stretch` is the stream's sample aspect ratio, for frames that say none: pixels are made square, because a face
        that is squeezed is another face.
        """
        stretch = stretch or 1
        width = round(frame.width * stretch) if 1 / MAX_STRETCH <= stretch <= MAX_STRETCH else frame.width
        transparent = any(component.is_alpha for component in frame.format.components)
        if needs_table(frame.color_primaries, frame.color_trc):
            frame = self._toned(frame)
        matrix = BT709 if _untagged_hd(frame) else None
        form = "rgba" if transparent else "rgb24"
        options = {"format": form, "src_colorspace": matrix, "interpolation": self._flags, "threads": 1}
        image = self._reformatter.reformat(frame, width=width, **options).to_ndarray()
        return upright(_on_white(image) if transparent else image, display_matrix(frame))

    def _toned(self, frame: Any) -> Any:
        """The frame with the colours of a screen, by a table."""
        key = (frame.color_primaries, frame.color_trc, frame.width, frame.height)
        if key not in self._tables:
            self._tables = {key: _graph(frame, "rgb48le", [("lut3d", f"file={_cube(*key[:2])}:interp=tetrahedral")])}
        graph = self._tables[key]
        flat = frame.reformat(format="rgb48le", interpolation=EXACT)
        flat.pts, flat.time_base = frame.pts, frame.time_base
        graph.push(flat)
        return graph.pull()


def deinterlaced(frames: Iterator[Any]) -> Iterator[Any]:
    """Yield the frames of a stream; from the first interlaced one on, each joined from its fields and its neighbours'.

    FFmpeg's `bwdif`, one frame for one frame, at the same times; frames that are not interlaced stay as they are.
    """
    graph, layout = None, None
    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        base, now = frame.time_base, (frame.width, frame.height, frame.format.name)
        if graph is None or now != layout:
            yield from _rest(graph, base)
            graph, layout = _graph(frame, now[2], [("bwdif", "mode=send_frame:deint=interlaced")]), now
        graph.push(frame)
        yield from _pulled(graph, base)
    if graph is not None:
        yield from _rest(graph, base)


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c, d of how a frame is shown, each -1, 0 or 1: x' = a x + c y, y' = b x + d y, y down.

    One of the eight ways to turn and mirror a rectangle; an angle between them is rounded to the nearest.
    """
    from av.sidedata.sidedata import SideDataContainer

    for data in SideDataContainer(frame):  # pyright: ignore[reportCallIssue] - `frame.side_data` keeps the frame alive
        if data.type.name == "DISPLAYMATRIX" and data.buffer_size >= 36:
            a, b, _, c, d = struct.unpack("=9i", bytes(data)[:36])[:5]
            if abs(b) + abs(c) > abs(a) + abs(d):
                return (0, 1 if b > 0 else -1, 1 if c > 0 else -1, 0)
            return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (1, 0, 0, 1)


def upright(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Return a picture [height, width, 3] turned and mirrored by a matrix of `display_matrix`."""
    a, b, c, d = matrix
    if not a:
        image, a, d = image.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(image[:: d or 1, :: a or 1])


def fitted(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a picture RGB uint8 in one of another shape [height, width, 3]: all of it, in the middle, on black."""
    if image.shape == shape:
        return image
    factor = min(shape[0] / image.shape[0], shape[1] / image.shape[1])
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    whole = np.zeros(shape, np.uint8)
    whole[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return whole


def _untagged_hd(frame: Any) -> bool:
    return frame.colorspace == UNSAID and not frame.format.is_rgb and (frame.width >= HD[0] or frame.height > HD[1])


def _on_white(image: np.ndarray) -> np.ndarray:
    """RGBA uint8 -> RGB uint8."""
    opacity = image[..., 3:].astype(np.uint16)
    return ((image[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _graph(frame: Any, form: str, filters: list[tuple[str, str]]) -> Any:
    """FFmpeg's filters one after another, for frames like this one in the pixel format `form`."""
    av = pyav()
    graph = av.filter.Graph()
    base = frame.time_base
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=av.VideoFormat(form), time_base=base)]
    nodes += [graph.add(name, options) for name, options in filters]
    nodes.append(graph.add("buffersink"))
    for one, other in pairwise(nodes):
        one.link_to(other)
    graph.configure()
    return graph


def _pulled(graph: Any, base: Any) -> Iterator[Any]:
    """What a graph has ready, with time stamps in units of `base` again; `bwdif` halves the unit."""
    av = pyav()
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        if frame.pts is not None:
            frame.pts = round(frame.pts * frame.time_base / base)
        frame.duration = round(frame.duration * frame.time_base / base)
        frame.time_base = base
        yield frame


def _rest(graph: Any, base: Any) -> Iterator[Any]:
    if graph is not None:
        graph.push(None)
        yield from _pulled(graph, base)


@cache
def _cube(primaries: int, transfer: int) -> Path:
    """The file of a colour table, made once in a process; the folder goes with it."""
    folder = tempfile.TemporaryDirectory(prefix="fid-colour-")
    _FOLDERS.append(folder)
    path = Path(folder.name) / "table.cube"
    path.write_text(cube_file(primaries, transfer))
    return path


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # kept, and so removed at the end of the process
