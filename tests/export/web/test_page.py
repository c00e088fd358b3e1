"""The static site as a visitor has it: in a real Chromium, with a camera that plays a file, and in Firefox."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.identity import Identity
from fid.runtime.labels.provenance import read_note
from fid.runtime.media.images import read_image
from fid.runtime.weights.bundle import Bundle
from firefox import firefox
from playwright.sync_api import Browser, Page, expect
from serving import FIREFOX

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    """Both sizes, for the tests that do not name one."""
    return request.param


@pytest.fixture
def page(size: str, browser: Browser, address: str) -> Iterator[Page]:
    """The page with its first picture; complaints in its console and requests to another origin fail the test."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, permissions=["camera"])
    context.set_default_timeout(60_000)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.goto(address)
    expect(page.locator("#picture")).to_be_visible(timeout=60_000)
    yield page
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith((address, f"blob:{address}"))] == []


def saved(page: Page, path: Path, link: str = "Save picture") -> Path:
    with page.expect_download() as download:
        page.get_by_role("link", name=link).click()
    download.value.save_as(path)
    return path


def change(page: Page, act: str, *arguments: object) -> None:
    """Do something to the page, and wait for another picture."""
    former = page.locator("#picture").get_attribute("src") or ""
    kind, _, what = act.partition(" ")
    panel = page.locator(f"[data-kind={kind}]")
    if kind == "full":
        page.locator("#full").check()
    elif what == "person":
        panel.get_by_role("radio", name=str(arguments[0])).check()
    elif what == "blend":
        panel.get_by_label("How far toward the other photo").fill(str(arguments[0]))
    else:
        panel.locator("input[accept^=image]").set_input_files(list(arguments))  # type: ignore[arg-type]
    expect(page.locator("#picture")).not_to_have_attribute("src", former, timeout=60_000)


@pytest.mark.parametrize("size", ["desktop"])
def test_a_picture_is_the_one_that_the_command_composes(page: Page, site_bundle: Bundle, tmp_path: Path) -> None:
    change(page, "full")
    change(page, "identity photo", FACES / "identity-ben.jpg")
    change(page, "attributes photo", FACES / "attributes-aside.jpg")
    found = saved(page, tmp_path / "found.png")
    composer = Composer(site_bundle, engine="onnxruntime")
    who = composer.set_identity(FACES / "identity-ben.jpg")
    off = np.abs(read_image(found).astype(int) - composer.compose(FACES / "attributes-aside.jpg"))
    assert off.mean() <= 2, (off.max(), off.mean())
    note = read_note(found)
    assert note is not None
    assert (note.kind, note.bundle, note.synthetic) == ("composition", site_bundle.name, True)
    own = Identity.load(saved(page, tmp_path / "identity.npz", "Save identity"))
    assert composer.identify(own).code @ who.code > 0.999
    page.locator("[data-kind=identity] input[type=file]").set_input_files([tmp_path / "identity.npz"])
    expect(page.locator("[data-kind=identity] input:checked")).to_have_value("own 2")
    who.save(tmp_path / "from-python.npz")
    page.locator("[data-kind=identity] input[type=file]").set_input_files([tmp_path / "from-python.npz"])
    expect(page.locator("[data-kind=identity] input:checked")).to_have_value("own 3")
    expect(page.locator("#alert")).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["phone"])
def test_it_says_what_computes_and_blends(page: Page, tmp_path: Path) -> None:
    expect(page.locator("#runs")).to_have_text(re.compile(r"fid .+ in this browser, on WASM, \d threads?\."))
    assert page.evaluate("crossOriginIsolated")  # by the service worker; a plain server sends no such headers
    expect(page.locator("#figures")).to_have_text(re.compile(r"256 px in \d+ ms · light generator on WASM"))
    change(page, "identity person", "eve")
    change(page, "attributes blend", 40)
    note = read_note(saved(page, tmp_path / "picture.png"))
    assert note is not None
    assert note.kind == "interpolation"


@pytest.mark.slow
@pytest.mark.parametrize("size", ["desktop"])
def test_photos_that_cannot_be_used_are_explained(page: Page, tmp_path: Path) -> None:
    (tmp_path / "odd.jpg").write_text("no picture")
    page.locator("#from-photo input[type=file]").set_input_files([tmp_path / "odd.jpg"])
    expect(page.get_by_role("alert")).to_contain_text("odd.jpg is not a picture that this browser can read")
    (tmp_path / "wrong.npz").write_bytes(b"PK" + bytes(100))
    page.locator("[data-kind=identity] input[type=file]").set_input_files([tmp_path / "wrong.npz"])
    expect(page.get_by_role("alert")).to_contain_text("wrong.npz is not an identity file")
    assert page.locator("[data-kind=identity] .tiles input[value^=own]").count() == 0  # neither became a choice
    assert page.locator("[data-kind=attributes] .tiles input[value^=own]").count() == 0


@pytest.mark.parametrize("size", ["phone", pytest.param("desktop", marks=pytest.mark.slow)])
def test_the_camera_and_a_clip(page: Page, tmp_path: Path) -> None:
    page.get_by_role("radio", name="Camera").check()
    page.get_by_role("button", name="Start camera").click()
    expect(page.locator("#figures")).to_have_text(
        re.compile(r"[\d.]+ fps · delay \d+ ms · \d+ frames dropped · WASM"), timeout=60_000
    )
    expect(page.locator("#hint")).to_be_hidden()
    playing = "([width, height]) => { const v = document.querySelector('#video');"
    playing += " return v.currentTime > 0 && v.videoWidth === width && v.videoHeight === height; }"
    page.wait_for_function(playing, arg=[320, 240])
    for view, shape in (("result-only", [256, 256]), ("side-by-side", [560, 240])):
        page.locator("#view").select_option(view)
        page.wait_for_function(playing, arg=shape)
    page.get_by_role("button", name="Record clip").click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop recording").click()
    clip = saved(page, tmp_path / "clip", "Save clip").read_bytes()
    assert len(clip) > 1000
    assert clip[:4] == b"\x1aE\xdf\xa3" or clip[4:8] == b"ftyp"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Stop camera").click()
    expect(page.locator("#figures")).to_have_text("The camera is off.")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["desktop"])
def test_without_a_network_it_works_from_what_it_kept(page: Page) -> None:
    page.context.set_offline(True)
    page.reload()
    expect(page.locator("#picture")).to_be_visible(timeout=60_000)
    change(page, "identity person", "eve")
    expect(page.locator("#alert")).to_be_hidden()
    page.locator("#full").check()  # was never fetched
    expect(page.get_by_role("alert")).to_contain_text("cannot be fetched; is there a network?")
    kept = "caches.keys().then((names) => Promise.all(names.map((name) => caches.open(name))))"
    listed = f"{kept}.then((all) => Promise.all(all.map((one) => one.keys()))).then((all) => all.flat())"
    held = page.evaluate(f"{listed}.then((requests) => requests.map((one) => one.url))")
    assert sum("/sha256/" in address for address in held) >= 5, held  # files by what is in them: graphs and weights
    page.context.set_offline(False)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["desktop"])
def test_nothing_can_be_sent_elsewhere(browser: Browser, address: str, size: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#picture")).to_be_visible(timeout=60_000)
    sent = "fetch('http://127.0.0.1:9/', { mode: 'no-cors' }).then(() => 'sent', (error) => error.message)"
    assert page.evaluate(sent) == "Failed to fetch"
    policies = "fetch('worker.js').then((answer) => answer.headers.get('content-security-policy'))"
    assert "connect-src 'self'" in page.evaluate(policies)  # a worker obeys the policy of its own file
    context.close()


@pytest.mark.slow
@pytest.mark.skipif(FIREFOX is None, reason="no Firefox is installed here")
@pytest.mark.parametrize("size", SIZES)
def test_firefox(address: str, tmp_path: Path, size: str) -> None:
    with firefox(tmp_path / "profile") as browser:
        browser.open(address, *SIZES[size])
        browser.wait("document.querySelector('#picture').naturalWidth === 256")
        assert browser.evaluate("crossOriginIsolated")
        assert re.search(r"on WASM, \d threads?", browser.evaluate("document.querySelector('#runs').textContent"))
        browser.evaluate("document.querySelector('input[value=camera]').click()")
        browser.evaluate("document.querySelector('#camera').click()")  # it shows a pattern, so nobody is seen
        browser.wait("!document.querySelector('#hint').hidden")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browser.evaluate("document.querySelector('#alert').hidden")
        own = (address, f"blob:{address}", "data:", "about:", "chrome:", "resource:")
        assert [url for url in browser.asked if not url.startswith(own)] == []
