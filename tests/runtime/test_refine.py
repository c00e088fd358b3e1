"""Identity photos get rounds of the bundle's graph `refine`; the toy's lead every w half of the way to one number."""

from dataclasses import replace

import numpy as np
import pytest
import toy
from fid.runtime.assets import FACES
from fid.runtime.commands.cli import main
from fid.runtime.composer import Composer
from fid.runtime.errors import InputError
from fid.runtime.face.parts import BACKGROUND, BODY, FACE, HAIR, NECK, OCCLUDER
from fid.runtime.identity import Identity
from fid.runtime.looks import look_at_identity
from fid.runtime.refine import ROUNDS, View, own_share, w_plus_offset
from fid.runtime.tensor import Tensor

ADA = FACES / "identity-ada.jpg"
BEN = FACES / "identity-ben.jpg"
OWN = np.ones((128, 128), np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return toy.write_bundle(tmp_path_factory.mktemp("toy") / "refining", refine=True)


@pytest.fixture
def crop():
    return np.random.default_rng(3).integers(0, 256, (256, 256, 3), np.uint8)


def expected_offset(crop: np.ndarray, rounds: int) -> np.ndarray:
    """Of the photo and its mirror image in turns."""
    code, offset = toy.expected_identity(crop[None]), np.zeros(512)
    for number in range(rounds):
        seen = crop[:, ::-1] if number % 2 else crop
        w = toy.expected_w(code, toy.expected_attributes(seen[None]))[0]
        offset = offset + 0.5 * (toy.GOAL - w - offset)
    return np.repeat(offset[None], toy.N_STYLES, axis=0)


def view(crop: np.ndarray, own: np.ndarray = OWN) -> View:
    return View(crop, own, np.zeros(512, np.float32))


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_go_on_from_the_one_before_on_the_photo_and_its_mirror_image_in_turns(bundle, crop, rounds):
    composer = Composer(bundle, refine=rounds)
    identity = composer.identity_of(crop, refine=True)
    np.testing.assert_allclose(identity.w_plus_offset, expected_offset(crop, rounds), atol=1e-5)


class Recorder:
    """A session that keeps what it was asked."""

    inputs = toy.REFINE[0]

    def __init__(self) -> None:
        self.asked, self.owns, self.crops, self.dropped = [], [], [], []

    def run(self, **arrays):
        self.owns += [arrays["own"]] if "own" in arrays else []
        self.crops.append(int(arrays["crop"].flat[0]))
        self.dropped.append(float(arrays["state"][:, :, -1].max()))
        self.asked.append((float(arrays["round"][0]), float(arrays["rounds"][0]), float(arrays["state"].max())))
        return {"next_state": arrays["state"] + 1, "w_plus_offset": arrays["state"][:, 0, :-1] + 1}


def test_rounds_know_their_number_and_begin_with_nothing(crop):
    session = Recorder()
    offset = w_plus_offset(session, [view(crop)], 3)
    assert session.asked == [(0, 3, 0), (1, 3, 1), (2, 3, 2)]
    assert offset.shape == (toy.N_STYLES, 512)
    assert (offset == 3).all()


def test_views_take_turns_and_what_each_has_for_itself_stays_with_it():
    session = Recorder()
    views = [view(np.full((256, 256, 3), value, np.uint8)) for value in (10, 20)]
    offset = w_plus_offset(session, views, 5)
    assert session.crops == [10, 20, 10, 20, 10]
    assert session.dropped == [0, 0, 1, 1, 2]
    assert (offset == 5).all()


def test_a_graph_that_takes_it_is_told_what_is_the_persons_own(crop):
    session = Recorder()
    session.inputs = (*toy.REFINE[0], Tensor("own", (1, 128, 128), "float32"))
    w_plus_offset(session, [view(crop)], 2)
    assert [own.shape for own in session.owns] == [(1, 128, 128)] * 2


def test_face_hair_and_half_of_the_neck_are_ones_own():
    parts = np.zeros((6, 128, 128), np.float32)
    for part, rows in zip((BODY, HAIR, FACE, NECK, OCCLUDER), np.split(np.arange(125), 5), strict=True):
        parts[part, rows] = 1
    parts[BACKGROUND, 125:] = 1
    own = own_share(parts)
    assert own.dtype == np.float32
    assert [own[row].mean() for row in (0, 30, 60, 80, 110, 127)] == [0, 1, 1, 0.5, 0, 0]


def test_where_no_head_is_seen_all_of_the_photo_counts():
    parts = np.zeros((6, 128, 128), np.float32)
    parts[BACKGROUND], parts[FACE, :8] = 1, 1
    assert (own_share(parts) == 1).all()


def test_photos_are_looked_at_closer_unless_there_are_no_rounds(bundle):
    plain, closer = Composer(bundle, refine=0), Composer(bundle)
    assert closer.rounds == ROUNDS
    assert plain.identify(ADA).w_plus_offset is None
    offset = closer.identify(ADA).w_plus_offset
    assert offset is not None
    np.testing.assert_array_equal(look_at_identity(closer, ADA).identity.w_plus_offset, offset)
    np.testing.assert_array_equal(closer.identify(ADA).code, plain.identify(ADA).code)
    assert closer.identity_of(closer.crop(ADA)).w_plus_offset is None


def test_the_picture_of_the_photo_itself_gets_nearer(bundle, crop):
    crop = np.concatenate((crop[:, :128], crop[:, 127::-1]), 1)  # its own mirror image
    composer = Composer(bundle, refine=20)
    identity = composer.identity_of(crop, refine=True)
    image = composer.image(composer.w(identity, composer.attribute_code(crop)))
    assert abs(image.astype(int) - round((toy.GOAL + 1) * 127.5)).max() <= 1


def test_several_photos_share_the_mean_of_their_offsets(bundle):
    composer = Composer(bundle, refine=2)
    both = composer.set_identity(ADA, BEN)
    each = [composer.identify(photo).w_plus_offset for photo in (ADA, BEN)]
    np.testing.assert_allclose(both.w_plus_offset, np.mean(each, axis=0), atol=1e-6)


def test_a_refined_identity_survives_its_file_and_fits_its_own_bundle_only(bundle, tmp_path):
    composer = Composer(bundle, refine=2)
    identity = composer.identify(ADA)
    identity.save(tmp_path / "ada.npz")
    again = composer.identify(tmp_path / "ada.npz")
    np.testing.assert_array_equal(again.w_plus_offset, identity.w_plus_offset)
    with pytest.raises(InputError, match="personalised for another bundle"):
        composer.identify(replace(identity, mapper="sha256:0"))
    assert isinstance(again, Identity)


def test_a_bundle_without_the_graph_does_without(tmp_path, crop):
    composer = Composer(toy.write_bundle(tmp_path / "plain"))
    assert composer.rounds == 0
    assert composer.identity_of(crop, refine=True).w_plus_offset is None


def test_less_than_no_rounds_are_refused(bundle):
    with pytest.raises(InputError, match="-1 rounds cannot be"):
        Composer(bundle, refine=-1)


def test_personalised_identities_and_refined_photos_are_not_averaged(bundle):
    composer = Composer(bundle, refine=1)
    photo = composer.identify(ADA)
    with pytest.raises(InputError, match="cannot be averaged"):
        composer.set_identity(ADA, replace(photo, mapper=composer._mapper_name()))


def test_a_frame_does_without_the_session_of_refine_and_the_next_photo_opens_it_again(bundle):
    composer = Composer(bundle, refine=2)
    identity = composer.identify(ADA)
    composer.close_identity()
    assert "refine" not in composer._sessions
    np.testing.assert_array_equal(composer.identify(ADA).w_plus_offset, identity.w_plus_offset)


def test_the_graph_is_opened_while_the_face_is_found_and_let_go_without_one(bundle):
    composer = Composer(bundle)
    with pytest.raises(InputError, match="no face"):
        composer.identify(np.zeros((300, 300, 3), np.uint8))
    assert "refine" in composer._ahead
    composer.close_identity()
    assert "refine" not in composer._ahead
    plain = Composer(bundle, refine=0)
    plain.identify(ADA)
    assert not plain._ahead


def test_the_help_tells_how_many_rounds_there_are():
    (option,) = [param for param in main.commands["compose"].params if param.name == "refine"]
    assert f"[default: {ROUNDS}]" in option.help
