"""The page's JavaScript against the Python that it repeats: golden cases, computed here, checked in a real Chromium."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.engines.open import open_detector
from fid.runtime.face.align import Alignment, align, fit_similarity, transform, warp
from fid.runtime.face.detect import choose_face
from fid.runtime.face.paste import Paster
from fid.runtime.face.smooth import OneEuro
from fid.runtime.face.track import FLOW_SIDE, Tracker
from fid.runtime.media.images import read_image
from playwright.sync_api import Page

HELPERS = """
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const picture = ([text, width, height, channels]) => ({ data: bytes(text), width, height, channels });
const text = (data) => { let all = ''; for (const byte of data) all += String.fromCharCode(byte); return btoa(all); };
"""


def packed(image: np.ndarray) -> list[Any]:
    """A picture uint8 [height, width(, channels)] for the page."""
    height, width = image.shape[:2]
    return [base64.b64encode(image.tobytes()).decode(), width, height, 1 if image.ndim == 2 else image.shape[2]]


def unpacked(data: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(shape)


def in_page(page: Page, module: str, body: str, argument: Any) -> Any:
    """What the JavaScript `body` returns, with the module's exports as `m` and the argument as `x`."""
    return page.evaluate(f"async (x) => {{ {HELPERS} const m = await import('./{module}'); {body} }}", argument)


def flat(matrix: np.ndarray) -> list[float]:
    return [float(value) for value in matrix.ravel()]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A face on a photo of 600 x 520 px, off the middle, with noise."""
    face = cv2.resize(read_image(FACES / "identity-ben.jpg"), (420, 420), interpolation=cv2.INTER_CUBIC)
    photo = cv2.copyMakeBorder(face, 30, 70, 150, 30, cv2.BORDER_REFLECT)
    noise = np.random.default_rng(3).integers(-6, 7, photo.shape)
    return np.clip(photo.astype(int) + noise, 0, 255).astype(np.uint8)


def test_five_points_give_the_same_matrix(module_page: Page, rng: np.random.Generator) -> None:
    mean = np.array([(96, 120), (160, 120), (128, 160), (98, 186), (158, 186)], float)
    cases = [3 * mean + rng.normal(0, 12, (5, 2)) + rng.uniform(-200, 200, 2) for _ in range(20)]
    found = in_page(module_page, "geometry.js", "return x.map((p) => m.align(p).matrix)", [c.tolist() for c in cases])
    for points, matrix in zip(cases, found, strict=True):
        assert np.abs(align(points).matrix - np.reshape(matrix, (2, 3))).max() < 1e-9


def test_points_that_are_no_face_are_refused_in_the_same_words(module_page: Page) -> None:
    said = in_page(module_page, "geometry.js", "try { m.align(x) } catch (e) { return e.message }", [[1, 1]] * 5)
    assert said == "The five points of the face do not make a face."


CROPS = {"inside": (0.9, 0.1, 330, 240), "smaller": (0.35, -0.2, 300, 250), "larger": (1.7, 0.0, 330, 240)} | {
    "over two edges": (0.6, 0.3, 80, 90),
    "mostly outside": (0.5, 0.0, 590, 500),
}


@pytest.mark.parametrize("case", CROPS)
def test_a_crop_has_the_same_pixels(module_page: Page, photo: np.ndarray, case: str) -> None:
    scale, turn, x, y = CROPS[case]
    rotation = scale * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    matrix = np.column_stack([rotation, np.array([127.5, 127.5]) - rotation @ (x, y)])
    expected = Alignment(matrix).crop(photo)
    body = "return text(new m.Alignment(x.matrix).crop(picture(x.photo)).data)"
    found = unpacked(
        in_page(module_page, "geometry.js", body, {"matrix": flat(matrix), "photo": packed(photo)}), expected.shape
    )
    off = np.abs(found.astype(int) - expected)
    inside = case in ("inside", "smaller", "larger")
    assert off.max() <= (1 if inside else 2), (off.max(), off.mean())  # OpenCV blurs in 8 bits, before the fade
    assert off.mean() < (0.05 if inside else 0.4), (off.max(), off.mean())  # the one colour outside may end in .5


def test_smoothing_is_the_same(module_page: Page, rng: np.random.Generator) -> None:
    times = np.cumsum(rng.choice([0.0, 0.03, 0.1], 40))
    values = np.cumsum(rng.normal(0, 1, (40, 6)), axis=0)
    smooth = OneEuro(0.5, 14.0)
    expected = [smooth.filter(value, time) for value, time in zip(values, times, strict=True)]
    body = "const f = new m.OneEuro(0.5, 14); return x.map(([v, t]) => [...f.filter(v, t)])"
    found = in_page(
        module_page, "smooth.js", body, [[v.tolist(), float(t)] for v, t in zip(values, times, strict=True)]
    )
    assert np.abs(np.array(found) - expected).max() < 1e-9


def test_pasting_gives_the_same_frames(module_page: Page, photo: np.ndarray) -> None:
    composed = [read_image(FACES / f"identity-{name}.jpg") for name in ("eve", "eve", "carl")]
    composed = [cv2.resize(one, (256, 256), interpolation=cv2.INTER_AREA) for one in composed]
    alignments = [Alignment(np.array([[0.6, 0.1, -70 - i], [-0.1, 0.6, -20 + 2 * i]], float)) for i in range(3)]
    crops = [alignment.crop(photo) for alignment in alignments]
    paster, expected = Paster(exact=True), []  # the page resamples as for photos
    for one, alignment, crop in zip(composed, alignments, crops, strict=True):
        expected.append(paster.paste(photo, one, alignment, step_s=0.04, crop=crop))
    body = (
        "const g = await import('./geometry.js'); const paster = new m.Paster(); const frame = picture(x.photo);"
        "return x.steps.map(([made, matrix, crop]) =>"
        " text(paster.paste(frame, picture(made), new g.Alignment(matrix), picture(crop), 0.04).data))"
    )
    steps = [[packed(c), flat(a.matrix), packed(o)] for c, a, o in zip(composed, alignments, crops, strict=True)]
    for found, right in zip(
        in_page(module_page, "paste.js", body, {"photo": packed(photo), "steps": steps}), expected, strict=True
    ):
        off = np.abs(unpacked(found, right.shape).astype(int) - right)
        assert off.max() <= 2, (off.max(), off.mean())  # two roundings, of the match and of the blend
        assert off.mean() < 0.05, (off.max(), off.mean())


def test_the_common_motion_is_found_as_opencv_finds_it(module_page: Page, photo: np.ndarray) -> None:
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    view = Alignment(np.array([[0.4, 0, -40], [0, 0.4, -10]], float), FLOW_SIDE)
    old = warp(grey, view.matrix, FLOW_SIDE, FLOW_SIDE)
    turn, grow = 0.03, 1.02
    true = grow * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    true = np.column_stack([true, np.array([82.5, 78.0]) - true @ (80, 80)])
    new = cv2.warpAffine(old, true, (FLOW_SIDE, FLOW_SIDE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    corners = np.array([[40, 40], [120, 40], [80, 80], [50, 120], [110, 120]], float)
    body = (
        "const [old, now] = x.map(picture); const seen = m.corners(old, 70, new Uint8Array(old.data.length).fill(1));"
        "const moved = m.follow(old, now, seen); const kept = seen.filter((_, i) => moved[i]);"
        "const motion = m.commonMotion(kept, moved.filter(Boolean), 1.5);"
        "return [motion.matrix, motion.agree, seen.length];"
    )
    matrix, agree, number = in_page(module_page, "flow.js", body, [packed(old), packed(new)])
    off = np.abs(transform(np.reshape(matrix, (2, 3)), corners) - transform(true, corners)).max()
    assert off < 0.25, off  # px of 160; the Python tracker's own distance from the truth is of that size
    assert agree > 0.7 * number > 20


def test_least_squares_give_the_same_similarity(module_page: Page, rng: np.random.Generator) -> None:
    source, target = rng.normal(0, 50, (2, 9, 2))
    found = in_page(module_page, "flow.js", "return m.fitSimilarity(...x)", [source.tolist(), target.tolist()])
    assert np.abs(np.reshape(found, (2, 3)) - fit_similarity(source, target)).max() < 1e-9


DETECT = """
const ort = await import('./ort/ort.wasm.min.mjs');
ort.env.wasm.wasmPaths = new URL('./ort/', location.href).href;
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create('graphs/detect.onnx', { executionProviders: ['wasm'] });
const detector = new m.Detector(async ({ data, width, height }) => {
  const found = await session.run({ input: new ort.Tensor('float32', data, [1, 3, height, width]) });
  return Object.fromEntries(Object.entries(found).map(([name, tensor]) => [name, tensor.data]));
});
"""


def test_faces_are_found_and_followed_where_the_runtime_finds_them(
    module_page: Page, photo: np.ndarray, fetched: Callable[[str], Path]
) -> None:
    detector = open_detector()
    faces = detector.faces(photo)
    points = detector.refine(photo, choose_face(faces, None, "the photo")).points
    frames = [np.roll(photo, (3 * i, 2 * i), (1, 0)) for i in range(6)]
    tracker = Tracker(detector)
    followed = [tracker.follow(frame, i / 25) for i, frame in enumerate(frames)]
    body = DETECT + (
        "const t = await import('./track.js'); const frames = x.map(picture);"
        "const faces = await detector.faces(frames[0]);"
        "const points = await detector.refine(frames[0], m.chooseFace(faces, 'it'));"
        "const tracker = new t.Tracker(detector); const followed = [];"
        "for (const [i, f] of frames.entries()) followed.push((await tracker.next(f, i / 25)).matrix);"
        "return { faces: faces.map((f) => [f.box, f.score]), points, followed };"
    )
    found = in_page(module_page, "detect.js", body, [packed(frame) for frame in frames])
    assert len(found["faces"]) == len(faces)
    assert np.abs(np.array(found["faces"][0][0]) - faces[0].box).max() < 1.5  # px; the detector sees rounded pixels
    assert abs(found["faces"][0][1] - faces[0].score) < 0.01
    assert np.abs(np.array(found["points"]) - points).max() < 0.5  # px of 600
    corners = np.array([[0, 0], [255, 0], [0, 255], [255, 255]], float)
    for alignment, matrix in zip(followed, found["followed"], strict=True):
        assert alignment is not None
        back = Alignment(np.reshape(matrix, (2, 3))).inverse
        assert np.abs(transform(back, corners) - transform(alignment.inverse, corners)).max() < 2  # px of the photo
