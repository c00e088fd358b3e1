"""Heads pasted without the driver's own: mathematics of the filling first, then what is seen, with parts that are known
and with the shipped network."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from fid.runtime.assets import PARTS as GRAPH
from fid.runtime.assets import shipped_faces
from fid.runtime.engines.open import open_session
from fid.runtime.face.align import Alignment
from fid.runtime.face.head import HeadPaster, spread
from fid.runtime.face.parts import BACKGROUND, BODY, FACE, HAIR, NECK, OCCLUDER, PARTS, PARTS_SIDE, WIDER
from fid.runtime.face.paste import head_mask
from fid.runtime.media.images import read_image
from fid.runtime.media.state import flatten, unflatten

WALL, SKIN, BLACK, CLOTH, NEW = (150, 160, 170), (200, 150, 120), (20, 15, 10), (40, 60, 160), (120, 70, 40)
ALIGNMENT = Alignment(np.array([[1.0, 0, -192], [0, 1.0, -100]]))  # crop of 256 px within a frame of 640 x 480


def ellipse(centre: tuple[int, int], axes: tuple[int, int]) -> np.ndarray:
    """A filled ellipse, 0 or 1, float32 [256, 256]."""
    return cv2.ellipse(np.zeros((256, 256), np.float32), centre, axes, 0, 0, 360, 1.0, cv2.FILLED)


def driver(hand: bool = False) -> dict[int, np.ndarray]:
    """Masks float32 [256, 256] of a head with long hair, in the aligned crop."""
    face = ellipse((128, 135), (48, 65))
    hair = np.maximum(ellipse((128, 110), (75, 80)), 0)
    hair[110:230, 53:75] = hair[110:230, 181:203] = 1
    neck, body = np.zeros((256, 256), np.float32), np.zeros((256, 256), np.float32)
    neck[190:235, 105:151], body[235:, 40:216] = 1, 1
    before = ellipse((128, 180), (14, 14)) if hand else 0 * face
    face, hair = face * (1 - before), hair * (1 - face) * (1 - before)
    neck = neck * (1 - face) * (1 - before)
    return {FACE: face, HAIR: hair, NECK: neck, BODY: body, OCCLUDER: before}


def composed() -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """A bald head on green, and its masks."""
    face = ellipse((128, 132), (50, 68))
    neck = np.zeros((256, 256), np.float32)
    neck[185:256, 100:156] = 1
    neck *= 1 - face
    picture = np.full((256, 256, 3), (20, 200, 20), np.uint8)
    picture[(face + neck) > 0.5] = NEW
    return picture, {FACE: face, NECK: neck}


def maps(masks: dict[int, np.ndarray], wide: bool = False) -> np.ndarray:
    """Parts float32 [6, 128, 128] of masks; in the wide view or in the crop."""
    parts = np.zeros((256, 256, 6), np.float32)
    for part, mask in masks.items():
        parts[..., part] = mask
    if wide:
        middle = 127.5
        matrix = np.array([[1, 0, middle * (WIDER - 1)], [0, 1, middle * (WIDER - 1)]]) / WIDER
        parts = np.dstack([cv2.warpAffine(parts[..., i], matrix, (256, 256)) for i in range(6)])
    parts[..., BACKGROUND] = 1 - parts[..., 1:].sum(-1)
    return cv2.resize(parts[..., :3], (128, 128), interpolation=cv2.INTER_AREA).transpose(2, 0, 1), cv2.resize(
        parts[..., 3:], (128, 128), interpolation=cv2.INTER_AREA
    ).transpose(2, 0, 1)


def finder(masks: dict[int, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """In the place of the network: knows."""
    found = np.stack([np.concatenate(maps(masks, True)), np.concatenate(maps(composed()[1]))])
    return lambda crops: found


def frame_of(masks: dict[int, np.ndarray], shade: int = 0) -> np.ndarray:
    """The frame, uint8 [480, 640, 3]."""
    frame = np.full((480, 640, 3), WALL, np.uint8) + np.uint8(shade)
    region = frame[100:356, 192:448]
    for part, colour in ((BODY, CLOTH), (NECK, SKIN), (HAIR, BLACK), (FACE, SKIN), (OCCLUDER, (250, 0, 250))):
        region[masks[part] > 0.5] = colour
    return frame


def test_what_is_known_spreads_to_where_nothing_is_known() -> None:
    values = np.full((PARTS_SIDE, PARTS_SIDE, 3), 7.0, np.float32)
    trust = np.zeros((PARTS_SIDE, PARTS_SIDE), np.float32)
    trust[3, 4] = 1
    np.testing.assert_allclose(spread(values, trust), 7.0, rtol=1e-5)  # one place that is known fills all
    values[:, 64:] = 90
    whole = spread(values, np.ones_like(trust))
    np.testing.assert_allclose(whole, values, rtol=1e-5)  # all known: as it was
    hole = np.ones_like(trust)
    hole[40:80, 10:30] = 0  # amid the left half
    np.testing.assert_allclose(spread(values, hole)[50:70, 12:28], 7.0, atol=8.0)  # of what is around it


def test_no_hair_of_the_driver_is_left_and_the_rest_of_the_frame_is_as_it_was() -> None:
    masks = driver()
    frame = frame_of(masks)
    pasted = HeadPaster(finder(masks)).paste(frame, composed()[0], ALIGNMENT)
    assert pasted.shape == frame.shape
    far = np.ones((480, 640), bool)
    far[60:396, 152:488] = False  # beyond the hair and its edge
    np.testing.assert_array_equal(pasted[far], frame[far])
    region = pasted[100:356, 192:448].astype(int)
    hair = cv2.erode(masks[HAIR] * (1 - composed()[1][FACE]), np.ones((5, 5))) > 0.5
    assert (np.abs(region - np.array(BLACK)).max(-1)[hair] < 60).mean() < 0.01
    above = region[40:60, 100:156]  # where hair was on top there is the wall now
    assert np.abs(above - np.array(WALL)).max() < 25
    assert np.abs(region[110:150, 110:146] - np.array(NEW)).max() <= 2  # the new face
    assert (np.abs(region - np.array((20, 200, 20))).max(-1) < 60).sum() == 0  # nothing of what it stood before


def test_the_neck_takes_the_colour_of_the_new_skin_and_goes_over_into_the_frames() -> None:
    masks = driver()
    region = HeadPaster(finder(masks)).paste(frame_of(masks), composed()[0], ALIGNMENT)[100:356, 192:448].astype(int)
    assert np.abs(region[205, 128] - np.array(NEW)).max() < 12
    assert np.abs(region[252, 128] - np.array(CLOTH)).max() < 12


def test_what_stands_before_the_face_stays_there() -> None:
    masks = driver(hand=True)
    region = HeadPaster(finder(masks)).paste(frame_of(masks), composed()[0], ALIGNMENT)[100:356, 192:448]
    assert np.abs(region[180, 128].astype(int) - (250, 0, 250)).max() < 8


def test_the_face_alone_leaves_the_hair() -> None:
    masks = driver()
    frame = frame_of(masks)
    pasted = HeadPaster(finder(masks), face_only=True).paste(frame, composed()[0], ALIGNMENT)
    outside = cv2.dilate(masks[FACE], np.ones((17, 17))) < 0.5
    np.testing.assert_array_equal(pasted[100:356, 192:448][outside], frame[100:356, 192:448][outside])
    assert np.abs(pasted[100:356, 192:448].astype(int) - frame[100:356, 192:448])[masks[FACE] > 0.5].mean() < 12


def test_what_was_seen_behind_the_head_before_is_remembered() -> None:
    """The head moves aside from a stripe on the wall and back: the stripe is put where it was."""
    masks = driver()
    here, aside = frame_of(masks), frame_of({part: 0 * mask for part, mask in masks.items()})
    aside[:, 262:278], here_striped = (90, 20, 20), here.copy()
    wall = (here == np.array(WALL, np.uint8)).all(-1)
    here_striped[:, 262:278][wall[:, 262:278]] = (90, 20, 20)
    none = finder({part: 0 * mask for part, mask in masks.items()})
    where = [none]
    paster = HeadPaster(lambda crops: where[0](crops))
    for _ in range(4):
        paster.paste(aside, composed()[0], ALIGNMENT)
    where[0] = finder(masks)
    paster.state = unflatten(type(paster.state), flatten(paster.state))  # a file may lie between
    filled = paster.paste(here_striped, composed()[0], ALIGNMENT)[170, 262:278].astype(int)
    fresh = HeadPaster(finder(masks)).paste(here_striped, composed()[0], ALIGNMENT)[170, 262:278].astype(int)
    truth = np.array((90, 20, 20))
    assert np.abs(filled[4:12] - truth).mean() < 25 < np.abs(fresh[4:12] - truth).mean()


def test_single_pictures_have_no_memory_and_any_resolution() -> None:
    masks = driver()
    frame, paster = frame_of(masks), HeadPaster(finder(masks), still=True)
    large = cv2.resize(composed()[0], (512, 512), interpolation=cv2.INTER_CUBIC)
    first, again = paster.paste(frame, large, ALIGNMENT), paster.paste(frame, large, ALIGNMENT)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[230, 320].astype(int) - np.array(NEW)).max() <= 3


def test_the_shipped_network_tells_hair_from_face_and_background() -> None:
    find = open_session(GRAPH, engine="onnxruntime")
    crops = np.stack([read_image(path) for path in shipped_faces("identity").values()])
    parts = find.run(crop=crops)["parts"]
    assert parts.shape == (len(crops), len(PARTS), PARTS_SIDE, PARTS_SIDE)
    np.testing.assert_allclose(parts.sum(1), 1, atol=1e-3)
    assert parts[:, FACE, 60:90, 50:78].mean() > 0.9  # around the nose
    assert parts[:, OCCLUDER].mean() < 0.02  # nothing stands before these
    assert parts[:, [HAIR, FACE]].sum(1)[:, 20:30, 54:74].mean() > 0.9  # the top of the head
    alone = find.run(crop=crops[1:2])["parts"]
    np.testing.assert_allclose(alone, parts[1:2], atol=1e-3)


def test_the_paste_is_inside_the_mask_of_the_crop() -> None:
    assert head_mask(256)[0].max() == 0


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0])
def test_a_wider_framing_has_the_same_middle(factor: float) -> None:
    turned = Alignment(np.array([[0.6, -0.3, 12.0], [0.3, 0.6, -7.0]]))
    wide = turned.widened(factor)
    assert wide.side_px == pytest.approx(factor * turned.side_px)
    assert wide.roll_degrees == pytest.approx(turned.roll_degrees)
    np.testing.assert_allclose(wide.inverse @ (127.5, 127.5, 1), turned.inverse @ (127.5, 127.5, 1))


def test_a_photo_that_shows_more_than_the_head() -> None:
    own = Alignment(np.array([[1.0, 0, 0], [0, 1.0, 0]]))
    assert not own.is_part_of(np.zeros((256, 256, 3), np.uint8))
    assert not own.is_part_of(np.zeros((280, 280, 3), np.uint8))
    assert own.is_part_of(np.zeros((256, 400, 3), np.uint8))
    assert Alignment(np.array([[2.0, 0, -900], [0, 2.0, -900]])).is_part_of(np.zeros((256, 256, 3), np.uint8))
