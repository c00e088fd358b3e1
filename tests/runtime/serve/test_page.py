"""The page as a user has it: driven in a real Chromium, with a camera that plays a file. Skips where no Chromium is."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import axe_core_python
import cv2
import httpx
import numpy as np
import pytest
from axe_core_python.sync_playwright import Axe
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.labels.provenance import read_note
from fid.runtime.media.images import read_image
from fid.runtime.media.video import open_clip
from fid.runtime.read_labels import check_labels
from filming import write_camera
from firefox import firefox
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright
from serving import CHROMIUM, FIREFOX, running

from ..media.test_video import write_clip

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
TOKEN = "a-token-of-some-length"

expect.set_options(timeout=30_000)  # a busy machine is no failure

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")


@pytest.fixture(scope="module")
def address(toy_bundle: Path, fetched: Callable[[str], Path]) -> Iterator[str]:
    fetched("yunet")
    with running(toy_bundle, "--token", TOKEN) as address:
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    camera = write_camera(tmp_path_factory.mktemp("camera") / "camera.y4m")
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, f"--use-file-for-fake-video-capture={camera}"]
        )
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    """Both sizes, for the tests that do not name one."""
    return request.param


@pytest.fixture
def page(size: str, browser: Browser, address: str) -> Iterator[Page]:
    """The page, opened and with its first picture, at each size; errors in its console fail the test."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, permissions=["camera"])
    context.set_default_timeout(30_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.goto(address)
    expect(page.locator("#picture")).to_be_visible(timeout=30_000)
    assert page.url == address.partition("#")[0]  # the token is gone from what is shown and remembered
    yield page
    context.close()
    assert [said for said in complaints if "422" not in said and "415" not in said] == []


def shown(page: Page) -> str:
    """The address of the picture on show; every picture has another."""
    return page.locator("#picture").get_attribute("src") or ""


def wait_for_another(page: Page, former: str) -> str:
    expect(page.locator("#picture")).not_to_have_attribute("src", former, timeout=30_000)
    return shown(page)


def person(page: Page, kind: str, name: str) -> None:
    page.locator(f"[data-kind={kind}]").get_by_role("radio", name=name).check()


@pytest.mark.parametrize("size", ["desktop"])
def test_photos(page: Page, tmp_path: Path) -> None:
    first = shown(page)
    person(page, "identity", "eve")
    second = wait_for_another(page, first)
    page.keyboard.press("ArrowLeft")  # a group of radios is walked through with the arrows
    expect(page.locator("[data-kind=identity] input:checked")).to_have_value("dave")
    third = wait_for_another(page, second)
    page.get_by_label("How far toward the other photo").fill("40")
    expect(page.locator("#from-photo output")).to_have_text("40 %")
    fourth = wait_for_another(page, third)
    page.get_by_label("Follow the expression").fill("50")
    expect(page.locator("output[for=expression]")).to_have_text("50 %")
    fourth = wait_for_another(page, fourth)
    page.locator("[data-kind=identity] input[type=file]").set_input_files([FACES / "identity-ben.jpg"])
    expect(page.locator("[data-kind=identity] input:checked")).to_have_value("own 1")
    wait_for_another(page, fourth)
    with page.expect_download() as download:
        page.get_by_role("link", name="Save identity").click()
    download.value.save_as(tmp_path / "identity.npz")
    page.locator("[data-kind=identity] input[type=file]").set_input_files([tmp_path / "identity.npz"])
    expect(page.locator("[data-kind=identity] input:checked")).to_have_value("own 2")
    expect(page.locator("#figures")).to_have_text(re.compile(r"256 px in \d+ ms"))
    with page.expect_download() as download:
        page.get_by_role("link", name="Save picture").click()
    download.value.save_as(tmp_path / "picture.png")
    page.locator("#check").set_input_files([tmp_path / "picture.png"])
    expect(page.locator("#check-text")).to_contain_text("picture.png: made by fid.", timeout=30_000)
    assert read_image(tmp_path / "picture.png").shape == (256, 256, 3)
    expect(page.locator("#alert")).to_be_hidden()


@pytest.mark.parametrize("size", ["desktop"])
def test_a_photo_without_a_face_is_explained(page: Page, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "wall.jpg"), np.full((200, 200, 3), 127, np.uint8))
    page.locator("#from-photo input[type=file]").set_input_files([tmp_path / "wall.jpg"])
    expect(page.get_by_role("alert")).to_contain_text("no face was found")
    (tmp_path / "odd.tiff").write_text("no picture either")
    page.locator("#from-photo input[type=file]").set_input_files([tmp_path / "odd.tiff"])
    expect(page.get_by_role("alert")).to_contain_text("not a picture that this browser can read")
    assert page.locator("[data-kind=attributes] .tiles input[value^=own]").count() == 0  # neither became a choice


@pytest.mark.parametrize("size", ["phone"])
def test_many_large_photos_fit_into_one_request(page: Page, tmp_path: Path) -> None:
    """As from a phone: together more than the server takes, and more of them than it averages."""
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1400, 3), np.uint8)
    photos = [tmp_path / f"{number}.jpg" for number in range(10)]
    for photo in photos:
        cv2.imwrite(str(photo), noise, [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert 1.6e6 < photos[0].stat().st_size < 4e6  # eight are more than 12 MB, and each would be sent as it is
    sent: list[bytes] = []

    def answer(route: Route) -> None:
        sent.append(route.request.post_data_buffer or b"")
        route.fulfill(status=422, json={"error": "they have arrived."})

    page.route("**/api/identities", answer)
    page.locator("[data-kind=identity] input[type=file]").set_input_files(photos)
    expect(page.get_by_role("alert")).to_have_text("They have arrived.", timeout=30_000)
    assert sent[0].count(b'; name="photo"') == 8
    assert 1e6 < len(sent[0]) < 12e6


@pytest.mark.parametrize("size", ["desktop"])
def test_who_goes_back_to_photos_while_the_browser_asks_leaves_no_camera_on(page: Page) -> None:
    page.evaluate(
        "() => { const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        " navigator.mediaDevices.getUserMedia = async (wish) => {"
        " await new Promise((allow) => (window.allow = allow)); return (window.given = await ask(wish)); }; }"
    )
    page.route("**/api/live", lambda route: route.abort())
    page.get_by_role("radio", name="Camera").check()
    page.get_by_role("button", name="Start camera").click()
    page.wait_for_function("() => Boolean(window.allow)")
    page.get_by_role("radio", name="Photo", exact=True).check()
    page.evaluate("window.allow()")
    page.wait_for_function("() => window.given?.getTracks().every((track) => track.readyState === 'ended')")
    expect(page.locator("#alert")).to_be_hidden()
    assert page.evaluate("document.querySelector('#self').srcObject") is None


@pytest.mark.parametrize("size", ["phone"])
def test_a_dropped_photo_and_one_that_the_browser_has_to_convert(page: Page, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "face.bmp"), cv2.imread(str(FACES / "attributes-aside.jpg")))
    page.locator("#from-photo input[type=file]").set_input_files([tmp_path / "face.bmp"])
    expect(page.locator("[data-kind=attributes] .tiles input:checked")).to_have_value("own 1")
    data = list((FACES / "attributes-speaking.jpg").read_bytes())
    transfer = page.evaluate_handle(
        "data => { const all = new DataTransfer();"
        " all.items.add(new File([new Uint8Array(data)], 'face.jpg', {type: 'image/jpeg'})); return all; }",
        data,
    )
    page.dispatch_event("[data-kind=attributes]", "drop", {"dataTransfer": transfer})
    expect(page.locator("[data-kind=attributes] .tiles input:checked")).to_have_value("own 2")
    assert page.locator("[data-kind=attributes] .tiles input[value^=own]").count() == 2


def test_the_camera(page: Page, address: str) -> None:
    page.get_by_role("radio", name="Camera").check()
    page.get_by_role("button", name="Start camera").click()
    figures = page.locator("#figures")
    expect(figures).to_have_text(re.compile(r"[\d.]+ fps · delay \d+ ms · \d+ frames dropped"), timeout=30_000)
    playing = "([width, height]) => { const v = document.querySelector('#video');"
    playing += " return v.currentTime > 0 && v.videoWidth === width && v.videoHeight === height; }"
    page.wait_for_function(playing, arg=[320, 240])  # the head in the frame, as everywhere
    person(page, "identity", "carl")
    page.locator("[data-kind=identity] input[type=range]").fill("30")
    page.locator("#view").select_option("result-only")
    page.wait_for_function(playing, arg=[256, 256])
    page.locator("#view").select_option("side-by-side")
    page.wait_for_function(playing, arg=[560, 240])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    health = address.partition("#")[0] + "api/health"
    assert httpx.get(health).json()["live"]["sessions"] == 1
    page.get_by_role("button", name="Stop camera").click()
    expect(figures).to_have_text("The camera is off.")
    for _ in range(50):
        if httpx.get(health).json()["live"]["sessions"] == 0:
            break
        page.wait_for_timeout(100)
    assert httpx.get(health).json()["live"]["sessions"] == 0
    page.get_by_role("radio", name="Photo", exact=True).check()
    expect(page.locator("#picture")).to_be_visible()
    expect(page.locator("#alert")).to_be_hidden()


def test_it_fits_and_everything_has_a_name(page: Page) -> None:
    for source in ("Photo", "Camera"):
        page.get_by_role("radio", name=source, exact=True).check()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        nameless = page.evaluate(
            "[...document.querySelectorAll('input, select, button, video, a')].filter((one) => one.checkVisibility() &&"
            " !(one.ariaLabel || one.textContent.trim() || one.labels?.[0]?.textContent.trim()))"
            ".map((one) => one.outerHTML)"
        )
        assert nameless == []
    small = page.evaluate(
        "[...document.querySelectorAll('select, button, .button, .tiles label, .drop, input[type=range]')]"
        ".filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 32).map((one) => one.outerHTML)"
    )
    assert small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scheme: str) -> None:
    """The rules of axe-core, among them contrast, names, labels and landmarks, in each state of the page."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type] - one of the two

    def audit(state: str) -> None:
        page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")  # colours on their way
        found = Axe().run(page)["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found] == [], state

    for source in ("Photo", "Camera", "Video"):
        page.get_by_role("radio", name=source, exact=True).check()
        audit(source)
    page.evaluate("document.querySelector('#which .choices').innerHTML = '<button>Face 1</button>'")
    page.evaluate("document.querySelector('#which').showModal()")
    audit("which face")


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A photo of two people, and much wall."""
    photo = np.full((400, 1000, 3), 170, np.uint8)
    photo[100:356, 40:296] = read_image(FACES / "identity-ada.jpg")
    photo[130:330, 700:900] = cv2.resize(read_image(FACES / "identity-ben.jpg"), (200, 200))
    cv2.imwrite(str(tmp_path / "group.png"), photo[..., ::-1])
    return tmp_path / "group.png"


def test_a_group_photo_asks_which_face_and_own_tiles_can_be_removed(page: Page, group: Path) -> None:
    panel = page.locator("[data-kind=identity]")
    panel.locator("input[type=file]").set_input_files([group])
    dialog = page.get_by_role("dialog", name="Which face?")
    expect(dialog).to_be_visible(timeout=30_000)
    expect(dialog.get_by_role("button", name="Face 1")).to_be_focused()
    page.keyboard.press("Escape")  # turned away: nothing is added
    expect(dialog).to_be_hidden()
    expect(panel.locator("input:checked")).to_have_value("ada")
    panel.locator("input[type=file]").set_input_files([group])
    expect(dialog).to_be_visible(timeout=30_000)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(panel.locator("input:checked")).to_have_value("own 1", timeout=30_000)
    middle = page.evaluate(
        "async () => { const image = document.querySelector('[data-kind=identity] .tile:last-child img');"
        " await image.decode(); const canvas = document.createElement('canvas'); canvas.width = canvas.height = 3;"
        " const context = canvas.getContext('2d'); context.drawImage(image, 0, 0, 3, 3);"
        " return [image.naturalWidth, image.naturalHeight, ...context.getImageData(1, 1, 1, 1).data.slice(0, 3)]; }"
    )
    assert middle[:2] == [144, 144]
    ben = cv2.resize(read_image(FACES / "identity-ben.jpg")[60:220, 50:210], (3, 3), interpolation=cv2.INTER_AREA)[1, 1]
    np.testing.assert_allclose(middle[2:], ben, atol=40)  # cropped to the face, and to the second one
    page.get_by_role("button", name="Remove yours 1").click()
    expect(panel.locator(".tile")).to_have_count(5)
    expect(panel.get_by_role("radio", name="ada")).to_be_checked()
    expect(panel.get_by_role("radio", name="ada")).to_be_focused()


@pytest.mark.parametrize("size", ["desktop"])
def test_a_snapshot_and_a_clip_of_the_camera(page: Page, tmp_path: Path) -> None:
    page.get_by_role("radio", name="Camera").check()
    page.get_by_role("button", name="Start camera").click()
    page.wait_for_function("() => document.querySelector('#video').videoWidth === 320", timeout=30_000)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save snapshot").click()
    download.value.save_as(tmp_path / "snapshot.png")
    assert read_image(tmp_path / "snapshot.png").shape == (240, 320, 3)
    note = read_note(tmp_path / "snapshot.png")
    assert note is not None
    assert note.kind == "reenactment"
    page.locator("#check").set_input_files([tmp_path / "snapshot.png"])
    expect(page.locator("#check-text")).to_contain_text("the invisible mark", timeout=30_000)
    page.get_by_role("button", name="Record clip").click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop recording").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save clip").click()
    clip = tmp_path / download.value.suggested_filename
    download.value.save_as(clip)
    assert check_labels(clip, sizes=False).mark.marked
    page.get_by_role("button", name="Stop camera").click()


@pytest.mark.parametrize("size", ["phone"])
def test_a_video_is_uploaded_composed_and_kept(page: Page, tmp_path: Path) -> None:
    frames = made_frames(read_image(FACES / "identity-eve.jpg"), 5)
    write_clip(tmp_path / "clip.mp4", [22500 * number for number in range(5)], pictures=frames.__getitem__)
    (tmp_path / "no.mp4").write_bytes(b"no video" * 100)
    page.get_by_role("radio", name="Video").check()
    field = page.locator("#from-video input[type=file]")
    field.set_input_files([tmp_path / "no.mp4"])
    expect(page.get_by_role("alert")).to_contain_text("not a video that can be read", timeout=30_000)
    field.set_input_files([tmp_path / "clip.mp4"])
    expect(page.locator("#video-text")).to_contain_text("Done: 5 frames", timeout=60_000)
    expect(page.locator("#alert")).to_be_hidden()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save video").click()
    download.value.save_as(tmp_path / "out.mp4")
    clip = open_clip(tmp_path / "out.mp4")
    assert (clip.frames, clip.width, clip.height, clip.sound) == (5, 640, 480, 1)
    page.get_by_role("radio", name="Photo", exact=True).check()
    expect(page.locator("#picture")).to_be_visible()


@pytest.mark.skipif(FIREFOX is None, reason="no Firefox is installed here")
def test_firefox_has_the_same_page(address: str, size: str, tmp_path: Path) -> None:
    drop = """(async () => {
        const canvas = Object.assign(document.createElement('canvas'), { width: 800, height: 300 });
        const context = canvas.getContext('2d');
        for (const [name, x] of [['ada', 20], ['ben', 500]]) {
            const image = Object.assign(new Image(), { src: `faces/identity-${name}.jpg` });
            await image.decode();
            context.drawImage(image, x, 20, name === 'ada' ? 256 : 220, name === 'ada' ? 256 : 220);
        }
        const photo = await new Promise((done) => canvas.toBlob(done, 'image/png'));
        const all = new DataTransfer();
        all.items.add(new File([photo], 'group.png', { type: 'image/png' }));
        document.querySelector('[data-kind=identity]').dispatchEvent(new DragEvent('drop', { dataTransfer: all }));
    })()"""
    axe = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
    audit = "axe.run().then((found) => found.violations.map((one) => one.id + ': ' + one.nodes[0].html).join())"
    with firefox(tmp_path / "profile") as browser:
        browser.open(address, *SIZES[size])
        browser.wait("document.querySelector('#picture').naturalWidth === 256")
        browser.evaluate(f"{axe}; 1")
        browser.evaluate(drop)
        browser.wait("document.querySelectorAll('#which[open] .choices button').length === 2")
        assert browser.evaluate(audit) == ""
        browser.evaluate("document.querySelectorAll('#which .choices button')[1].click()")
        browser.wait("document.querySelector('[data-kind=identity] input:checked').value === 'own 1'")
        browser.evaluate("document.querySelector('.remove').click()")
        for source in ("camera", "video", "photo"):
            browser.evaluate(f"document.querySelector('input[value={source}]').click()")
            assert browser.evaluate(audit) == "", source
            assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.evaluate("document.querySelector('input[value=camera]').click()")
        browser.evaluate("document.querySelector('#camera').click()")  # it shows a pattern, so nobody is seen
        browser.wait("!document.querySelector('#hint').hidden && document.querySelector('#video').videoWidth > 0")
        assert browser.evaluate(
            "!document.querySelector('#snapshot').hidden && !document.querySelector('#record').hidden"
        )
        assert browser.evaluate("document.querySelector('#alert').hidden")
        assert browser.evaluate(audit) == ""


def test_the_token(browser: Browser, address: str) -> None:
    plain, _, hidden = address.partition("#")
    assert hidden == f"token={TOKEN}"
    context = browser.new_context()
    page = context.new_page()
    page.goto(plain)
    field = page.get_by_label("This server asks for its token")
    field.fill("wrong-token-of-some-length")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_contain_text("asks for its token")
    field.fill(TOKEN)
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("#picture")).to_be_visible(timeout=30_000)
    context.close()
