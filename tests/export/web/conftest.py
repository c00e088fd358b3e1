"""A site of the toy bundle, served as a plain web server does, and the browsers that are on this machine."""

import http.server
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import toy
from fid.export.web.onnxruntime_web import onnxruntime_web
from fid.export.web.site import write_site
from fid.runtime.weights.bundle import Bundle
from filming import write_camera
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving import CHROMIUM


class Plain(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` runs, silent."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Silent about browsers that hang up in the middle of a file."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Report anything else than a connection that the browser closed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def site_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy bundle with a light generator and a mapper that takes the appearance, as the shipped one."""
    return toy.write_bundle(tmp_path_factory.mktemp("bundle") / "toy", appearance=True, light=True)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, site_bundle: Bundle, fetched: Callable[[str], Path]) -> Path:
    """The folder of a site; skips where there is no npm and nothing fetched."""
    fetched("yunet")
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed here, and ONNX Runtime Web comes from it")
    onnxruntime_web()
    return write_site(site_bundle, tmp_path_factory.mktemp("web") / "site").folder


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""
    server = Server(("127.0.0.1", 0), partial(Plain, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")  # no longer: while it lasts, nothing else in the process may run an event loop
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium with a camera that plays a face."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    camera = write_camera(tmp_path_factory.mktemp("camera") / "camera.y4m")
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, f"--use-file-for-fake-video-capture={camera}"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def module_page(browser: Browser, address: str) -> Iterator[Page]:
    """The page with its first picture, for tests that only call its modules."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#picture")).to_be_visible(timeout=60_000)
    yield page
    context.close()
