"""The verdict: what it counts as still there, and what it does not claim."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.deidentify.hide import middle_difference, mosaic
from fid.runtime.deidentify.judges import MATCH, STRICT, Codes, likeness, recognisable
from fid.runtime.deidentify.places import Place, Track
from fid.runtime.deidentify.verdict import UNCHANGED, Evidence, Verdict, ranges
from fid.runtime.engines.open import open_detector
from fid.runtime.face.detect import Detector
from fid.runtime.media.images import read_image


def codes(x: float, y: float, dlib: float | None = None) -> Codes:
    """Codes at an angle, and a second one at that distance from 0."""
    unit = np.array([x, y], np.float32) / np.hypot(x, y)
    return Codes(unit.astype(np.float32), None if dlib is None else np.array([dlib, 0], np.float32))


def evidence(originals: list[Codes], after: list[Codes], score: float = 0.9) -> Evidence:
    track = Track(0, {frame: Place((0, 0, 50, 50), None, score, True) for frame in range(len(after))})
    return Evidence(track, list(range(len(after))), originals, after)


SAME, OTHER = codes(1, 0, 0.0), codes(0, 1, 2.0)


def test_both_recognisers_must_agree() -> None:
    assert likeness([SAME], SAME).matches
    assert not likeness([SAME], codes(1, 0, 0.9)).matches
    assert not likeness([SAME], codes(0, 1, 0.1)).matches
    assert likeness([codes(1, 0)], codes(1, 0)).matches  # SFace alone, where there is no other
    assert likeness([SAME, codes(1, 1, 0.4)], SAME).cosine == pytest.approx(np.cos(np.pi / 8))


def test_a_face_that_still_matches_is_told_with_its_frames() -> None:
    report = evidence([SAME, SAME], [OTHER, SAME, SAME, OTHER]).report(0)
    assert report["verdict"] == "matches"
    assert report["still_matching_frames"] == [[1, 2]]
    assert report["accepted_strictly"] == 0.5
    assert report["cosine_after_worst"] == 1 >= MATCH
    assert report["distance_after_worst"] == 0
    assert evidence([SAME, SAME], [OTHER]).report(0)["verdict"] == "gone"


def test_where_the_original_is_not_known_again_nothing_is_claimed() -> None:
    assert not recognisable([SAME])
    assert not recognisable([SAME, OTHER])
    assert evidence([SAME, OTHER], [OTHER]).report(0)["verdict"] == "unknown"
    assert evidence([SAME, SAME], [SAME], score=0.6).report(0)["verdict"] == "unknown"  # perhaps no face at all


def test_whom_recognisers_know_in_one_plain_colour_they_do_not_know() -> None:
    """A soft patch of a wall is like itself without any detail; SFace alone says so of some faces, too."""
    for plain, said in ((SAME, "unknown"), (OTHER, "matches"), (codes(1, 0), "matches")):
        own = evidence([SAME, SAME], [SAME])
        own.plain = plain
        assert own.report(None)["verdict"] == said
    own.plain, own.unchanged = SAME, [0]
    assert own.report(None)["verdict"] == "matches"


def test_pixels_tell_where_recognisers_cannot() -> None:
    own = evidence([SAME, OTHER], [OTHER])
    own.unchanged = [0]
    assert own.report(None)["verdict"] == "matches"


def test_of_less_than_half_a_face_pixels_alone_tell() -> None:
    """Its crop is more border than picture, and would be like itself whatever was put into the picture."""
    frame, box = np.full((100, 100, 3), 90, np.uint8), (-42.0, 20.0, 60.0, 60.0)
    place = Place(box, np.array([[-24.0, 40], [0, 40], [-12, 52], [-22, 64], [-2, 64]]), 0.9, True)
    track = Track(0, {0: place})
    judges = SimpleNamespace(look=lambda crop, both=True: SAME, names=["toy"], absent="")
    for output, said in ((np.full_like(frame, 140), "unknown"), (frame, "matches")):
        verdict = Verdict(None, judges, lambda number: [(track, place)], 9, 1)  # type: ignore[arg-type]
        verdict.add(frame, output)
        assert verdict.report({})["faces"][0]["verdict"] == said


def test_a_face_at_the_border_is_no_second_view_of_itself() -> None:
    """Its crop has its mirror image in it: the recognisers would know that again in anything."""
    frame = np.full((100, 100, 3), 90, np.uint8)
    points = np.array([[0.0, 40], [30, 40], [15, 52], [3, 64], [27, 64]])
    for left, said in ((-20.0, "unknown"), (20.0, "matches")):  # two thirds of it in the picture, and all of it
        place = Place((left, 20.0, 60.0, 60.0), np.add(points, (left + 15, 0)), 0.9, True)
        track = Track(0, {0: place})
        shown = iter([SAME, OTHER, SAME, SAME])  # the original, in one plain colour, in the mirror; then the output
        judges = SimpleNamespace(look=lambda crop, both=True, s=shown: next(s), names=["toy"], absent="")
        verdict = Verdict(None, judges, lambda number, t=track, p=place: [(t, p)], 9, 1)  # type: ignore[arg-type]
        verdict.add(frame, np.full_like(frame, 140))
        assert verdict.report({})["faces"][0]["verdict"] == said


def test_the_second_recogniser_is_asked_wherever_it_could_make_a_match() -> None:
    frame = np.full((100, 100, 3), 90, np.uint8)
    place = Place((20.0, 20, 60, 60), np.array([[35.0, 40], [65, 40], [50, 52], [38, 64], [62, 64]]), 0.9, True)
    track = Track(0, dict.fromkeys(range(4), place))
    shown = iter([SAME, OTHER, SAME, OTHER, SAME, OTHER, OTHER])  # original, plain, mirrored; then the output's
    asked: list[bool] = []

    def look(crop: np.ndarray, both: bool = True) -> Codes:
        asked.append(both)
        own = next(shown)
        return own if both else Codes(own.sface, None)

    judges = SimpleNamespace(look=look, names=["toy"], absent="")
    verdict = Verdict(None, judges, lambda number: [(track, place)], 9, 8)  # type: ignore[arg-type]
    for output in (40, 40, 40):
        verdict.add(frame, np.full_like(frame, output))
    # originals, first frame; second frame: near, so once more; third: SFace alone
    assert asked == [True, True, True, True, False, True, False]


@pytest.mark.parametrize(("contrast", "light"), [(0.06, 6), (0.06, 190), (0.02, 120)])
@pytest.mark.parametrize("box", [(75.0, 75.0, 105.0, 130.0), (-30.0, 75.0, 105.0, 130.0), (90.0, 90.0, 24.0, 30.0)])
def test_a_faint_face_is_there_until_its_place_is_plain(
    contrast: float, light: float, box: tuple[float, float, float, float], rng: np.random.Generator
) -> None:
    """It hardly changes in either case. Noise as of a mark and an encoder is on what comes out."""
    photo = read_image(FACES / "identity-ada.jpg").astype(np.float32)
    frame = np.rint((photo - photo.mean()) * contrast + light).clip(0, 255).astype(np.uint8)
    points = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]]) * box[2:] + box[:2]
    track = Track(0, {0: Place(box, points, 0.6, True)})
    judges = SimpleNamespace(look=lambda crop, both=True: OTHER, names=["toy"], absent="")
    for output, said in ((frame, "matches"), (mosaic(frame, box, (1,)), "unknown")):
        noisy = np.rint(output + rng.normal(0, 1.0, output.shape)).clip(0, 255).astype(np.uint8)
        assert middle_difference(frame, noisy, box) < UNCHANGED
        verdict = Verdict(None, judges, lambda number: [(track, track.places[0])], 9, 1)  # type: ignore[arg-type]
        verdict.add(frame, noisy)
        assert verdict.report({})["faces"][0]["verdict"] == said


def test_one_pair_of_strangers_in_a_thousand_is_accepted_strictly(rng: np.random.Generator) -> None:
    """Codes drawn with mean and covariance of those of 4,281 people."""
    with np.load(Path(__file__).parents[3] / "trainer" / "data" / "sface_real_codes.npz", allow_pickle=False) as known:
        codes = rng.multivariate_normal(known["mean"], known["covariance"], 4000)
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    assert np.quantile(codes[:2000] @ codes[2000:].T, 0.999) == pytest.approx(STRICT, abs=0.01)


def test_frames_as_ranges() -> None:
    assert ranges([5, 3, 4, 9, 9]) == [[3, 5], [9, 9]]


@pytest.fixture(scope="module")
def detector(fetched: Callable[[str], Path]) -> Detector:
    fetched("yunet")
    return open_detector()


def test_an_original_face_in_the_output_is_found_whether_anybody_knew_of_it_or_not(detector: Detector) -> None:
    frame = made_frames(read_image(FACES / "identity-ada.jpg"), 1)[0]
    face = detector.faces(frame)[0]
    judges = SimpleNamespace(look=lambda crop, both=True: SAME, names=["toy"], absent="")
    track = Track(0, {0: Place(face.box, face.points, face.score, True)})
    known = Verdict(detector, judges, lambda number: [(track, track.places[0])], 1)  # type: ignore[arg-type]
    known.add(frame, frame)
    report = known.report({0: 0})
    assert (report["still_matching"], report["faces"][0]["unchanged_frames"]) == (1, [[0, 0]])
    blind = Verdict(detector, judges, lambda number: [], 1)  # type: ignore[arg-type]
    blind.add(frame, frame)
    assert blind.report({})["missed_frames"] == [[0, 0]]
    assert blind.report({})["still_matching"] == 1
    gone = Verdict(detector, judges, lambda number: [], 1)  # type: ignore[arg-type]
    gone.add(frame, np.full_like(frame, 90))
    assert gone.report({})["still_matching"] == 0
