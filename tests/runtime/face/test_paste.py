"""Paste-back: closed forms of the mask and the colour match, and a face that goes home without a seam or flicker."""

import cv2
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.face.align import Alignment, transform
from fid.runtime.face.paste import GRID, Paster, coarse, head_mask, match_border, put_back, smoothstep
from fid.runtime.media.images import read_image

FACE = read_image(FACES / "identity-ada.jpg")
WHOLE = np.ones((256, 256), np.float32)  # opaque everywhere
OTHER = read_image(FACES / "identity-ben.jpg")


def placed(scale: float = 0.8, degrees: float = 12.0, x: float = 320.0, y: float = 240.0) -> Alignment:
    """An alignment whose crop has its middle at (x, y) of the frame."""
    turn = scale * np.exp(1j * np.radians(degrees))
    offset = complex(127.5, 127.5) - turn * complex(x, y)
    return Alignment(np.array([[turn.real, -turn.imag, offset.real], [turn.imag, turn.real, offset.imag]]))


def test_the_mask_is_one_on_the_head_and_zero_at_the_edge() -> None:
    mask = head_mask(256)
    assert mask.dtype == np.float32
    assert mask[52:204, 52:204].min() == 1
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert edge.max() == 0
    assert np.abs(np.diff(mask, axis=0)).max() < 0.06  # feathered: no step anywhere
    assert np.array_equal(mask, mask[::-1])
    assert np.array_equal(mask, mask.T)
    assert not mask.flags.writeable
    np.testing.assert_allclose(smoothstep(np.array([-1, 0, 0.25, 0.5, 1, 2])), [0, 0, 0.15625, 0.5, 1, 1])


@pytest.mark.parametrize("side", [64, 256, 1024])
def test_a_resized_alignment_is_the_same_framing(side: int) -> None:
    alignment = placed()
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    own, resized = (transform(a.inverse, corners * a.size - 0.5) for a in (alignment, alignment.resized(side)))
    np.testing.assert_allclose(own, resized, atol=1e-9)
    assert alignment.resized(side).side_px == pytest.approx(alignment.side_px)


def test_equal_colours_need_no_match() -> None:
    assert np.array_equal(match_border(FACE, np.zeros((GRID, GRID, 3), np.float32)), FACE)


def test_one_difference_everywhere_is_added_in_full_at_the_border_and_not_in_the_face() -> None:
    picture = np.full((256, 256, 3), 100, np.uint8)
    picture[70:190, 80:176] = (200, 150, 120)
    change = match_border(picture, np.full((GRID, GRID, 3), (20, -10, 6), np.float32)).astype(int) - picture
    assert np.abs(change[128, 8] - (20, -10, 6)).max() <= 3
    assert np.abs(change[100:160, 100:160]).max() <= 1


def test_hair_against_a_wall_is_not_taken_for_a_shade() -> None:
    grey = np.full((256, 256, 3), 100, np.uint8)
    assert (
        np.abs(match_border(grey, np.full((GRID, GRID, 3), 150.0, np.float32)).astype(int) - 100).max() <= 15
    )  # a tenth


def test_what_was_cut_out_is_pasted_back_unchanged() -> None:
    rng = np.random.default_rng(1)
    frame = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    alignment = placed(scale=1.0)
    pasted = Paster().paste(frame, alignment.crop(frame), alignment)
    assert np.abs(pasted.astype(int) - frame).max() <= 6  # two cubic resamplings of a smooth picture
    assert np.abs(pasted.astype(int) - frame).mean() < 0.3


@pytest.mark.parametrize("side", [256, 512])
def test_the_head_changes_and_the_scene_does_not(side: int) -> None:
    frame = np.full((480, 640, 3), (170, 160, 150), np.uint8)
    alignment = placed(scale=0.9)
    pasted = Paster().paste(frame, cv2.resize(OTHER, (side, side)), alignment)
    back = alignment.crop(pasted)
    assert np.abs(back[90:190, 90:166].astype(int) - OTHER[90:190, 90:166]).mean() < 4  # the face keeps its colours
    far = np.ones((480, 640), bool)
    far[60:420, 140:500] = False
    assert np.array_equal(pasted[far], frame[far])


def test_the_seam_is_weaker_than_without_matching() -> None:
    """Around the head, the pasted picture changes less abruptly than with feathering alone."""
    alignment = placed(scale=1.0, degrees=0)
    frame = put_back(np.full((480, 640, 3), (90, 100, 120), np.uint8), FACE, alignment, WHOLE)
    frame = cv2.GaussianBlur(frame, (0, 0), 3)
    darker = (FACE * 0.75).astype(np.uint8)
    plain = put_back(frame, darker, alignment, head_mask(256))
    matched = Paster().paste(frame, darker, alignment)
    ring = (head_mask(256) > 0.02) & (head_mask(256) < 0.98)
    error = [np.abs(alignment.crop(p).astype(int) - alignment.crop(frame))[ring].mean() for p in (plain, matched)]
    assert error[1] < 0.6 * error[0]


def test_noise_at_the_border_does_not_make_the_head_pulse() -> None:
    rng = np.random.default_rng(2)
    alignment, paster = placed(scale=1.0, degrees=0), Paster()
    shades, fields = rng.normal(0, 12, 40), []
    for shade in shades:  # a light that flickers as a whole, frame by frame
        frame = np.full((480, 640, 3), np.clip(140 + shade, 0, 255), np.uint8)
        paster.paste(frame, FACE, alignment, step_s=1 / 25)
        assert paster.state.difference is not None
        fields.append(paster.state.difference.mean())
    assert np.std(fields[10:]) < 0.45 * np.std(shades[10:])


def test_a_cut_is_followed_at_once_and_reset_forgets() -> None:
    alignment, paster = placed(), Paster()
    dark, bright = (np.full((480, 640, 3), value, np.uint8) for value in (20, 220))
    paster.paste(dark, FACE, alignment)
    after_cut = paster.paste(bright, FACE, alignment)
    fresh = Paster().paste(bright, FACE, alignment)
    assert np.array_equal(after_cut, fresh)
    paster.paste(np.full((480, 640, 3), 190, np.uint8), FACE, alignment)
    paster.reset()
    assert np.array_equal(paster.paste(bright, FACE, alignment), fresh)


def test_a_face_half_outside_of_the_frame() -> None:
    frame = np.full((200, 200, 3), 128, np.uint8)
    for x, y in ((0, 0), (200, 100), (-900, 50)):
        alignment = placed(scale=1.0, x=x, y=y)
        pasted = Paster().paste(frame, FACE, alignment)
        assert pasted.shape == frame.shape
        assert pasted.dtype == np.uint8
    assert np.array_equal(pasted, frame)  # the last one lies outside altogether


def test_coarse_is_the_mean_of_cells() -> None:
    image = (np.arange(240 * 240 * 3).reshape(240, 240, 3) % 251).astype(np.uint8)
    np.testing.assert_allclose(coarse(image), image.reshape(GRID, 10, GRID, 10, 3).mean((1, 3)), atol=1e-3)


def test_the_wall_is_matched_up_to_the_hair_and_the_hair_keeps_its_colour() -> None:
    composed = np.full((256, 256, 3), 240, np.uint8)
    composed[64:, 64:192] = (40, 30, 25)
    difference = np.zeros((GRID, GRID, 3), np.float32)
    difference[:] = -60.0  # a real wall of 180
    difference[18:, 6:18] = 0.0
    matched = match_border(composed, difference).astype(int)
    assert np.abs(matched[40, 100] - 180).max() < 12
    assert np.abs(matched[150, 128] - (40, 30, 25)).max() < 4


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0.0), (2.0, 20.0), (0.6, -35.0), (0.3, 10.0)])
def test_crop_then_put_back_gives_the_frame_back(scale: float, degrees: float) -> None:
    """Inside the mask within resampling error, outside the mask bit for bit."""
    frame = cv2.resize(FACE, (960, 960), interpolation=cv2.INTER_CUBIC)
    frame = cv2.GaussianBlur(frame, (0, 0), 2 / min(scale, 1))
    alignment = placed(scale, degrees, 480, 480)
    mask = head_mask(256)
    crop = alignment.crop(frame)
    back = put_back(frame, crop, alignment, mask)
    assert np.abs(back.astype(int) - frame).max() <= 6
    assert np.abs(back.astype(int) - frame)[back != frame].mean() < 1.6
    painted = put_back(frame, np.zeros_like(crop), alignment, mask)
    changed = np.argwhere((painted != frame).any(axis=2))[:, ::-1]
    places = transform(alignment.matrix, changed)
    assert (places > -1).all()
    assert (places < 256).all()
    assert (painted[480, 480] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_the_head_is_as_sharp_as_by_cubic_interpolation(scale: float) -> None:
    alignment = placed(scale, 7)
    grey = np.full((480, 640, 3), 128, np.uint8)
    pasted = put_back(grey, FACE, alignment, head_mask(256))
    cubic = alignment.paste(grey, FACE, head_mask(256))
    inside = cv2.warpAffine(head_mask(256), alignment.inverse, (640, 480)) > 0.999
    sharp = [float(np.abs(cv2.Laplacian(p.mean(2), cv2.CV_64F))[inside].mean()) for p in (pasted, cubic)]
    assert sharp[0] == pytest.approx(sharp[1], rel=0.08)
    assert cv2.PSNR(pasted[inside], cubic[inside]) > 44
    np.testing.assert_array_equal(Paster(exact=True).paste(grey, FACE, alignment, crop=FACE), cubic)


def test_a_crop_beyond_the_frame_can_be_put_back() -> None:
    frame = cv2.resize(FACE, (200, 200), interpolation=cv2.INTER_AREA)
    for shift in (-100.0, 100.0, 5000.0):
        alignment = Alignment(np.array([[1.0, 0, shift], [0, 1.0, shift]]))
        pasted = put_back(frame, alignment.crop(frame), alignment, WHOLE)
        assert pasted.shape == frame.shape
        assert np.abs(pasted.astype(int) - frame).mean() <= 1.5
