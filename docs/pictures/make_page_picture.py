"""Draw the README's picture of `fid-run serve`, as a real Chromium shows the page with the shipped bundle and faces.

    python docs/pictures/make_page_picture.py             writes docs/serve.jpg
    python docs/pictures/make_page_picture.py -o DIR --all    photos and camera, desktop and phone, to look at

The camera plays a shipped face that turns a little. Needs Chromium and the packages of the dev extra.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import click
import cv2
import numpy as np
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.labels.provenance import PART_BY_ALGORITHM, Note, embed_note
from fid.runtime.media.images import read_image
from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).resolve().parents[1]


SIZES = {"desktop": (1280, 720), "phone": (390, 844)}
QUALITY = 82
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def write_camera(path: Path) -> None:
    """Write a face that sways, as uncompressed video: 480 x 480, 30 a second, one second to be played round and
    round."""
    photo = read_image(FACES / "attributes-outdoors.jpg")
    middle = (photo.shape[1] / 2, photo.shape[0] / 2)
    with path.open("wb") as file:
        file.write(b"YUV4MPEG2 W480 H480 F30:1 Ip A1:1 C420jpeg\n")
        for phase in np.linspace(0, 2 * np.pi, 30, endpoint=False):
            matrix = cv2.getRotationMatrix2D(middle, 3 * np.sin(phase), 1.06 * 480 / photo.shape[0])
            matrix[:, 2] += np.array([240, 240]) - middle
            frame = cv2.warpAffine(photo, matrix, (480, 480), borderMode=cv2.BORDER_REFLECT_101)
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())


def shoot(browser: Browser, address: str, size: str, camera: bool) -> bytes:
    """Return the page as JPEG, when it has settled."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, permissions=["camera"])
    page = context.new_page()
    page.goto(address)
    page.locator("#picture:not([hidden])").wait_for(timeout=60_000)
    page.locator("[data-kind=identity]").get_by_role("radio", name="Eve").check()
    page.locator("[data-kind=identity] input[type=range]").fill("20")
    if camera:
        page.get_by_role("radio", name="Camera").check()
        page.locator("#camera").click()
        page.wait_for_function("() => document.querySelector('#video').currentTime > 8", timeout=60_000)
    for way in () if camera else (10, 20, 30, 40):  # the last of them shows how long one takes, and not the start
        page.locator("#from-photo input[type=range]").fill(str(way))
        page.wait_for_timeout(1500)
    picture = page.screenshot(type="jpeg", quality=QUALITY)
    context.close()
    return picture


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=DOCS)
@click.option("--all", "everything", is_flag=True, help="All four pictures, and not the README's alone.")
def main(output: Path, everything: bool) -> None:
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise click.ClickException("no Chromium was found.")
    output = output.absolute()
    output.mkdir(exist_ok=True)
    bundle = Composer().bundle
    note = Note(bundle.name, bundle.version, "page", PART_BY_ALGORITHM)
    views = [(size, camera) for size in SIZES for camera in (False, True)] if everything else [("desktop", True)]
    command = ["fid-run", "serve", "--port", "0", "--json"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            write_camera(Path(folder) / "camera.y4m")
            address = json.loads(server.stdout.readline() if server.stdout else "")["address"]
            flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
            flags.append("--use-file-for-fake-video-capture=camera.y4m")  # the page shows this as the camera's name
            with contextlib.chdir(folder), sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=program, args=flags)
                for size, camera in views:
                    name = f"serve-{'camera' if camera else 'photos'}-{size}" if everything else "serve"
                    data = embed_note(shoot(browser, address, size, camera), note)
                    (output / f"{name}.jpg").write_bytes(data)
                    click.echo(f"{output / name}.jpg: {len(data) / 1000:.0f} kB")
                browser.close()
        finally:
            server.send_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
