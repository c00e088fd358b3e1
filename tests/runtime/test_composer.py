"""Set the identity once, compose many: against the toy bundle's arithmetic, with real photos and real detection."""

import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toy
from fid.runtime import Bundle, Composer, FidError, Identity, InputError
from fid.runtime.assets import FACES
from fid.runtime.composer import per_style
from fid.runtime.controls import Controls
from fid.runtime.identity import mapper_name
from fid.runtime.interpolate import interpolate
from fid.runtime.labels.provenance import Note
from fid.runtime.live.reenact import Reenactor
from fid.runtime.media.images import read_image, write_image
from fid.runtime.timing import collect_timings

ADA, BEN = (FACES / f"identity-{name}.jpg" for name in ("ada", "ben"))
LAUGHING = FACES / "attributes-laughing.jpg"
STAGES = {"read", "detect", "align", "identity", "attributes", "mapper", "synthesis"}


@pytest.fixture
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle, threads=1)


def test_the_picture_is_what_the_graphs_say(composer: Composer) -> None:
    with collect_timings() as timings:
        identity = composer.set_identity(ADA)
        image = composer.compose(LAUGHING)
    code = toy.expected_identity(composer.crop(ADA)[None])
    np.testing.assert_allclose(identity.code, code[0], atol=1e-5)
    attributes = toy.expected_attributes(composer.crop(LAUGHING)[None])
    expected = toy.expected_image(toy.expected_w(code, attributes))[0]
    assert image.shape == (256, 256, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 1
    assert timings.keys() == STAGES
    assert all(ms > 0 for ms in timings.values())
    assert composer.provider == "onnxruntime CPU"
    assert composer.fallbacks == []


def test_set_once_compose_many(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    composer.set_identity(ADA)
    first = composer.compose(LAUGHING)
    monkeypatch.setattr(composer, "identity_code", None)  # it is not needed again
    np.testing.assert_array_equal(composer.compose(LAUGHING), first)
    assert (composer.compose(BEN) != first).any()


def test_a_path_a_string_an_array_and_a_saved_identity_are_the_same(composer: Composer, tmp_path: Path) -> None:
    identity = composer.set_identity(ADA)
    identity.save(tmp_path / "ada.npz")
    pictures = []
    for photo in (ADA, str(ADA), read_image(ADA), identity, tmp_path / "ada.npz"):
        composer.set_identity(photo)
        pictures.append(composer.compose(str(LAUGHING)))
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


def test_several_photos_are_averaged(composer: Composer) -> None:
    codes = [composer.identify(photo).code for photo in (ADA, BEN)]
    both = composer.set_identity(ADA, BEN)
    np.testing.assert_allclose(both.code, sum(codes) / np.linalg.norm(sum(codes)), atol=1e-6)
    assert both.sources == 2


def test_an_offset_in_w_plus_is_added(composer: Composer, tmp_path: Path) -> None:
    identity = composer.set_identity(ADA)
    attributes = composer.attribute_code(composer.crop(LAUGHING))
    offset = np.linspace(-0.3, 0.3, toy.N_STYLES * 512, dtype=np.float32).reshape(toy.N_STYLES, 512)
    moved = Identity(identity.code, identity.encoder, 1, offset, mapper_name(composer.bundle))
    np.testing.assert_allclose(composer.w(moved, attributes), composer.w(identity, attributes) + offset, atol=1e-6)
    moved.save(tmp_path / "me.npz")
    composer.set_identity(tmp_path / "me.npz")
    w = toy.expected_w(identity.code[None], attributes[None]) + offset.mean(0)
    assert np.abs(composer.compose(LAUGHING).astype(int) - toy.expected_image(w)[0]).max() <= 1
    assert np.abs(composer.reenact(composer.crop(LAUGHING), moved).astype(int) - composer.compose(LAUGHING)).max() <= 1
    pictures = list(interpolate(composer, [identity, moved], [attributes], 3))
    np.testing.assert_array_equal(pictures[0], composer.image(composer.w(identity, attributes)))
    np.testing.assert_array_equal(pictures[-1], composer.compose(LAUGHING))
    for picture, again in zip(pictures, interpolate(composer, [identity, moved], [attributes], 3, "z"), strict=True):
        assert np.abs(picture.astype(int) - again).max() <= 1  # one code, and the toy's mapper is linear


def test_w_for_every_style() -> None:
    w = np.arange(4, dtype=np.float32)
    w_plus = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(per_style(w, 3), np.stack([w] * 3))
    np.testing.assert_array_equal(per_style(w[None], 2), np.stack([w] * 2))
    np.testing.assert_array_equal(per_style(w_plus, 3), w_plus)
    np.testing.assert_array_equal(per_style(w_plus, 5), w_plus[[0, 1, 2, 2, 2]])


def test_an_offset_for_another_bundle_is_refused(composer: Composer) -> None:
    identity = composer.set_identity(ADA)
    elsewhere = Identity(identity.code, identity.encoder, 1, np.zeros((1, 512), np.float32), "sha256:00")
    with pytest.raises(
        InputError, match=r"personalised for another bundle than toy 0\.0\.1; run fid-train personalize"
    ):
        composer.set_identity(elsewhere)
    mine = mapper_name(composer.bundle)
    own = Identity(identity.code, identity.encoder, 1, np.zeros((1, 512), np.float32), mine)
    with pytest.raises(InputError, match="make it again from photos"):  # of a generator with other styles
        composer.set_identity(Identity(identity.code, identity.encoder, 1, np.zeros((9, 512), np.float32), mine))
    with pytest.raises(InputError, match="personalise all photos together"):
        composer.set_identity(own, BEN)
    assert composer.set_identity(own, own).mapper == own.mapper


@pytest.fixture
def looking(tmp_path: Path, fetched: Callable[[str], Path]) -> Composer:
    """A composer whose mapper takes the identity photo's appearance, too."""
    fetched("yunet")
    return Composer(toy.write_bundle(tmp_path / "looking", appearance=True), threads=1)


def test_the_appearance_of_the_identity_photo_counts(looking: Composer, composer: Composer, tmp_path: Path) -> None:
    identity = looking.set_identity(ADA)
    looks = toy.expected_attributes(looking.crop(ADA)[None])
    assert identity.appearance is not None
    np.testing.assert_allclose(identity.appearance, looks[0], atol=1e-5)
    attributes = looking.attribute_code(looking.crop(LAUGHING))
    plain = toy.expected_w(identity.code[None], attributes[None])
    np.testing.assert_allclose(looking.w(identity, attributes), plain[0] + toy.LOOKS * looks[0], atol=1e-5)
    expected = toy.expected_image(plain + toy.LOOKS * looks)[0]
    assert np.abs(looking.compose(LAUGHING).astype(int) - expected).max() <= 1
    assert np.abs(looking.reenact(looking.crop(LAUGHING), identity).astype(int) - expected).max() <= 1
    identity.save(tmp_path / "ada.npz")
    assert looking.set_identity(tmp_path / "ada.npz").fingerprint == identity.fingerprint
    other = looking.set_identity(BEN)
    both = looking.set_identity(tmp_path / "ada.npz", BEN)
    assert other.appearance is not None
    assert both.appearance is not None
    np.testing.assert_allclose(both.appearance, (identity.appearance + other.appearance) / 2, atol=1e-6)
    *_, last = interpolate(looking, [identity, other], [attributes], 3, "z")
    looking.set_identity(other)
    np.testing.assert_array_equal(last, looking.compose(LAUGHING))
    assert composer.set_identity(identity).code is identity.code  # a mapper that does not ask for it


def test_an_identity_without_the_right_appearance_is_refused(looking: Composer, composer: Composer) -> None:
    elsewhere = Identity(np.eye(128, dtype=np.float32)[0], composer.set_identity(ADA).encoder)
    own = looking.set_identity(ADA)
    without = Identity(own.code, own.encoder)
    of_another = Identity(own.code, own.encoder, appearance=own.appearance, attributes="sha256:00")
    short = Identity(own.code, own.encoder, appearance=np.zeros(7, np.float32), attributes=own.attributes)
    for identity in (without, of_another, short):
        with pytest.raises(InputError, match=r"another bundle than toy 0\.0\.1.*make it again from photos"):
            looking.set_identity(identity)
    with pytest.raises(ValueError, match="wants identities with appearance"):
        looking.w(without, np.zeros(512, np.float32))
    with pytest.raises(InputError, match="appearances of different bundles"):
        composer.set_identity(
            elsewhere, Identity(elsewhere.code, elsewhere.encoder, 1, None, None, own.appearance, "a")
        )


def test_the_identity_encoder_can_be_closed_and_opens_again(composer: Composer) -> None:
    who = composer.identify(ADA)
    closed = weakref.ref(composer._sessions["identity"])
    composer.close_identity()
    composer.close_identity()  # twice does no harm
    assert "identity" not in composer._sessions
    composer.warm_up(who)
    assert closed() is None  # nothing else holds it, and what it held is given back
    assert "identity" not in composer._sessions  # a frame does without
    np.testing.assert_array_equal(composer.identify(ADA).code, who.code)


def test_sessions_opened_ahead_are_the_same_and_tell_their_failures_when_used(tmp_path: Path) -> None:
    bundle = toy.write_bundle(tmp_path / "ahead", light=True)
    ahead, plain = Composer(bundle, threads=1), Composer(bundle, threads=1)
    ahead.open_ahead(light=True)
    ahead.open_ahead(light=True)  # twice opens nothing twice
    pictures = []
    for composer in (ahead, plain):
        who = composer.identify(ADA)
        pictures.append(composer.image(composer.w(who, composer.attribute_code(composer.crop(LAUGHING))), light=True))
    np.testing.assert_array_equal(*pictures)
    broken = Composer(bundle, threads=1, require="cuda")
    broken.open_ahead()
    with pytest.raises(FidError):
        broken.attribute_code(np.zeros((256, 256, 3), np.uint8))


def test_live_pictures_come_from_the_light_generator(composer: Composer, tmp_path: Path) -> None:
    both = Composer(toy.write_bundle(tmp_path / "both", light=True), threads=1)
    who = both.set_identity(ADA)
    both.warm_up(who, light=True)
    crop = both.crop(LAUGHING)
    w = both.w(both.identity_of(both.crop(ADA)), both.attribute_code(crop))
    dim = toy.expected_image(toy.DIM * w[None])[0].astype(int)
    assert np.abs(both.image(w, light=True) - dim).max() <= 1
    assert np.abs(both.image(w) - toy.expected_image(w[None])[0].astype(int)).max() <= 1
    assert both.has_light
    assert both.wants_light
    sure = Composer(both.bundle, engine="onnxruntime", threads=1)
    assert sure.wants_light
    assert not sure._sessions  # nothing had to be opened for it
    for smooth in (0.0, 1.0):
        assert np.abs(Reenactor(both, light=None).compose(crop, 0.0, who, smooth)[0] - dim).max() <= 1
        np.testing.assert_array_equal(Reenactor(both).compose(crop, 0.0, who, smooth)[0], both.image(w))
    assert not composer.has_light
    assert not Reenactor(composer, light=None).light
    with pytest.raises(InputError, match="bundle toy has no light generator for 256 px"):
        Reenactor(composer, light=True)


def test_the_face_can_be_chosen(composer: Composer) -> None:
    both = np.hstack([read_image(ADA), np.kron(read_image(BEN), np.ones((2, 2, 1), np.uint8))[:256, 100:400]])
    composer.set_identity(ADA)
    with pytest.raises(InputError, match="face 7 was asked for"):
        composer.compose(both, face=7)


def test_pose_and_expression_are_scaled_where_the_bundle_can(composer: Composer, tmp_path: Path) -> None:
    steered = Composer(toy.write_bundle(tmp_path / "toy", controls=True), threads=1)
    who = steered.set_identity(ADA)
    crop = steered.crop(LAUGHING)
    code = toy.expected_attributes(crop[None])
    expected = toy.expected_image(toy.expected_w(who.code[None], 0.75 * code))[0]
    controls = Controls(pose=0.0, expression=1.5)
    image = steered.compose(LAUGHING, controls=controls)
    assert np.abs(image.astype(int) - expected).max() <= 1
    for smooth in (0.0, 1.0):  # without smoothing, one graph does everything unless there is something to scale
        composed, _ = Reenactor(steered).compose(crop, 0.0, who, smooth, controls)
        assert np.array_equal(composed, image)
    assert np.array_equal(steered.compose(LAUGHING, controls=Controls()), steered.compose(LAUGHING))
    composer.set_identity(ADA)
    with pytest.raises(InputError, match=r"toy cannot scale pose and expression.*fid-export --controls"):
        composer.compose(LAUGHING, controls=controls)
    for wrong in ({"pose": -0.1}, {"expression": 1.6}, {"pose": float("nan")}):
        with pytest.raises(InputError, match="outside 0"):
            Controls(**wrong)


def test_the_order_of_calls_is_explained(composer: Composer) -> None:
    with pytest.raises(InputError, match=r"call set_identity\(photo\) before compose\(photo\)"):
        composer.compose(LAUGHING)
    with pytest.raises(InputError, match="at least one photo"):
        composer.set_identity()


@pytest.mark.parametrize(
    "photo", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8), 7]
)
def test_what_is_no_photo(composer: Composer, photo: object) -> None:
    with pytest.raises(InputError, match="photo is a"):
        composer.crop(photo)  # type: ignore[arg-type]


def test_an_identity_of_another_encoder_is_refused(composer: Composer) -> None:
    code = composer.set_identity(ADA).code
    with pytest.raises(InputError, match="made by the identity encoder sface, and the bundle toy uses sha256:"):
        composer.set_identity(Identity(code, "sface"))
    encoder = composer.set_identity(ADA).encoder
    for broken in (Identity(code[:64], encoder), Identity(code, encoder, 1, np.zeros(7, np.float32))):
        with pytest.raises(InputError, match="make it again from photos"):
            composer.set_identity(broken)


def test_bundles_are_taken_loaded_as_a_folder_and_packed(toy_bundle: Path, tmp_path: Path, empty_cache: Path) -> None:
    bundle = Bundle.load(toy_bundle)
    packed = bundle.pack(tmp_path / "toy.fid")
    for given in (bundle, toy_bundle, str(toy_bundle), packed):
        assert Composer(given).bundle.name == "toy"
    with pytest.raises(FidError, match="there is no bundle at"):
        Composer(tmp_path / "nothing")


def test_another_resolution_is_refused(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="no resolution 512; this bundle composes at 256 or 1024"):
        Composer(toy_bundle, resolution=512)


def test_full_resolution_comes_from_the_prepared_generator(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def prepared(graph: str) -> Path:
        asked.append(graph)
        return toy_bundle / "synthesis.onnx"

    monkeypatch.setattr("fid.runtime.weights.prepare.prepared", prepared)
    composer = Composer(toy_bundle, resolution=1024)
    composer.image(np.zeros(512, np.float32))
    composer.image(np.zeros(512, np.float32))
    assert asked == ["synthesis-1024"]


def test_what_is_required_must_run(toy_bundle: Path) -> None:
    composer = Composer(toy_bundle, require="tensorrt")
    with pytest.raises(FidError, match="TensorRT is not installed"):
        composer.image(np.zeros(512, np.float32))


def test_a_damaged_bundle_is_refused(toy_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_bundle, tmp_path / "broken")
    (tmp_path / "broken" / "mapper.onnx").write_bytes(b"x")
    with pytest.raises(FidError, match=r"mapper\.onnx does not have the SHA-256"):
        Composer(tmp_path / "broken")


def test_the_note(composer: Composer, tmp_path: Path) -> None:
    note = composer.note("composition")
    assert note == Note("toy", "0.0.1", "composition")
    assert note.synthetic
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8), note)


def test_public_names_are_there_and_importing_them_is_cheap() -> None:
    import fid.runtime

    for name in fid.runtime.__all__:
        assert getattr(fid.runtime, name).__name__ == name
    assert set(fid.runtime.__all__) <= set(dir(fid.runtime))
    with pytest.raises(AttributeError, match="no attribute 'Swapper'"):
        fid.runtime.Swapper  # noqa: B018
    code = "import sys, fid.runtime; print([m for m in ('numpy', 'cv2', 'onnxruntime', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
