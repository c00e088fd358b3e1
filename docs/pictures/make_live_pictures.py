"""Draw the README's pictures of `fid-run video` and of the window of `fid-run webcam`, with shipped bundle and faces.

    python docs/pictures/make_live_pictures.py        writes docs/video.jpg and docs/webcam.jpg

The clip that drives both shows a person who does not exist, drawn by fid: it goes from one attribute photo to the next.
The window is a real one, on a screen of Xvfb; `import` of ImageMagick takes its picture and xdotool presses its keys.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path

import click
import cv2
import numpy as np
from fid.runtime import Composer
from fid.runtime.assets import FACES
from fid.runtime.interpolate import interpolate
from fid.runtime.labels.provenance import PART_BY_ALGORITHM, Note
from fid.runtime.media.images import write_image
from fid.runtime.media.video import open_clip, read_frames

DOCS = Path(__file__).resolve().parents[1]


DRIVER, WAY = "carl", ("speaking", "laughing", "aside", "outdoors", "speaking")
STEPS = 12  # pictures from one attribute photo to the next
SIZE, FPS = (480, 480), 15.0
WINDOW = (960, 480)  # px, of the side-by-side view of a clip of that size
SCREEN = (1200, 600)  # px; the window takes at most 90 % of it, in the middle
SHOWN = 4  # frames of the clip in the picture
TOOLS = ("Xvfb", "import", "xdotool")


def write_clip(composer: Composer, path: Path, seconds: float) -> None:
    """Write the driving clip, played as often as the seconds need."""
    person = composer.identify(FACES / f"identity-{DRIVER}.jpg")
    codes = [composer.attribute_code(composer.crop(FACES / f"attributes-{name}.jpg")) for name in WAY]
    faces = [face for pair in pairwise(codes) for face in list(interpolate(composer, [person], pair, STEPS + 1))[:-1]]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), FPS, SIZE)
    for number in range(round(seconds * FPS)):
        face = cv2.resize(faces[number % len(faces)], SIZE, interpolation=cv2.INTER_CUBIC)
        writer.write(face[..., ::-1])
    writer.release()


def frames_at(path: Path, numbers: np.ndarray) -> list[np.ndarray]:
    """Return some frames of a video, RGB uint8."""
    with closing(read_frames(open_clip(path))) as frames:
        first = islice(frames, int(numbers.max()) + 1)
        return [image for number, (_, image) in enumerate(first) if number in numbers]


def two_rows(clip: Path, made: Path) -> np.ndarray:
    """Return frames of the driving clip above those of the video that fid made of it."""
    numbers = np.arange(SHOWN) * STEPS + STEPS // 3
    rows = [
        np.hstack([cv2.resize(f, (192, 192), interpolation=cv2.INTER_AREA) for f in frames_at(path, numbers)])
        for path in (clip, made)
    ]
    return np.vstack([rows[0], np.full((6, rows[0].shape[1], 3), 255, np.uint8), rows[1]])


@contextlib.contextmanager
def screen() -> Iterator[dict[str, str]]:
    """Open a screen of its own; yields the environment of programs that are to use it."""
    number = f":{90 + os.getpid() % 100}"
    server = subprocess.Popen(
        ["Xvfb", number, "-screen", "0", f"{SCREEN[0]}x{SCREEN[1]}x24"], stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(2)
        yield os.environ | {"DISPLAY": number, "SDL_VIDEODRIVER": "x11"}
    finally:
        server.terminate()
        server.wait()


def window(clip: Path, folder: Path) -> np.ndarray:
    """Return a picture of the window of `fid-run webcam`, side by side, after the second identity was chosen by its
    key."""
    people = [f"--identity={FACES / f'identity-{name}.jpg'}" for name in ("ben", "ada")]
    command = ["fid-run", "webcam", *people, "--camera", str(clip), "--side-by-side"]
    with screen() as environment, subprocess.Popen(command, env=environment) as program:
        try:
            time.sleep(12)
            subprocess.run(["xdotool", "key", "2"], env=environment, check=True)
            time.sleep(6)
            cut = ["-gravity", "center", "-crop", f"{WINDOW[0]}x{WINDOW[1]}+0+0", "+repage"]
            subprocess.run(["import", "-window", "root", *cut, str(folder / "window.png")], env=environment, check=True)
        finally:
            program.send_signal(signal.SIGINT)
    image = cv2.imread(str(folder / "window.png"))
    assert image is not None
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=DOCS)
def main(output: Path) -> None:
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise click.ClickException(f"{', '.join(missing)} is not installed.")
    composer = Composer()
    output.mkdir(exist_ok=True)
    note = Note(composer.bundle.name, composer.bundle.version, "reenactment", PART_BY_ALGORITHM)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short, long, made = folder / "clip.mp4", folder / "camera.mp4", folder / "out.mp4"
        write_clip(composer, short, (len(WAY) - 1) * STEPS / FPS)
        write_clip(composer, long, 60)
        subprocess.run(
            [
                "fid-run",
                "video",
                "--identity",
                str(FACES / "identity-ada.jpg"),
                "--driving",
                str(short),
                "-o",
                str(made),
            ],
            check=True,
        )
        for title, picture in (("video", two_rows(short, made)), ("webcam", window(long, folder))):
            path = output / f"{title}.jpg"
            write_image(path, picture, note)
            click.echo(f"{path}: {picture.shape[1]} x {picture.shape[0]}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
