"""Refining an identity: on tiny networks whose best answer is known, and on the command line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fid.runtime import Bundle, Composer, Identity
from fid.runtime.assets import FACES
from fid.runtime.errors import FidError
from fid.runtime.identity import fingerprint, mapper_name
from fid.runtime.media.images import write_image
from fid.trainer import cli, personalize
from fid.trainer.head import HeadMask
from fid.trainer.networks.trained import Mapper
from fid.trainer.personalize import (
    FROM_NOTHING,
    Networks,
    PersonalizeConfig,
    Refinement,
    odd_one_out,
    refine,
    usual_config,
)
from fid.trainer.weights.from_bundle import appearance_size, load_graph
from tiny import N_STYLES, TinyMapper, TinySynthesis
from torch import Tensor, nn

ADA, BEN = (FACES / f"identity-{name}.jpg" for name in ("ada", "ben"))
CONFIG = PersonalizeConfig(steps=40, alone=0.3, bank=3, held_out=3, rate=0.05, perceptual_weight=0.0, pixel_weight=0.0)


def pooled(crop: Tensor, cells: int) -> Tensor:
    return F.adaptive_avg_pool2d(crop, cells).flatten(1)


def tiny(seed: int = 0) -> Networks:
    """Networks that take milliseconds; the identity code is a projection of the coarse picture, blind to mirroring."""
    torch.manual_seed(seed)
    mapper, synthesis = TinyMapper(), TinySynthesis()
    to_code, to_points, to_attributes = torch.randn(48, 128), torch.randn(48, 20), torch.randn(48, 512)
    for module in (mapper, synthesis):
        module.eval().requires_grad_(False)
    with torch.no_grad():
        usual = synthesis(mapper.w_mean[None])

    def identity(crop: Tensor) -> Tensor:
        return F.normalize(pooled(crop + crop.flip(3) - usual - usual.flip(3), 4) @ to_code, dim=1)

    def head(crop: Tensor) -> Tensor:
        mask = torch.zeros_like(crop[:, :1])
        mask[:, :, 64:192, 64:192] = 1.0
        return mask

    return Networks(
        mapper,  # type: ignore[arg-type]
        synthesis,
        identity=identity,
        second=None,
        landmarks=lambda crop: 128 + (pooled(crop, 4) @ to_points).reshape(-1, 10, 2),
        attributes=lambda crop: pooled(crop, 4) @ to_attributes,
        perceptual=lambda image, target: (image - target).square().mean((1, 2, 3)),
        head=head,
        mapping=nn.Identity(),
    )


@pytest.fixture
def networks() -> Networks:
    return tiny()


@pytest.fixture
def target(networks: Networks) -> Tensor:
    """The code of a picture that the generator can make, with other codes than it starts from."""
    w = networks.mapper.w_mean + 0.7 * networks.mapper.w_std * torch.randn(512)
    with torch.no_grad():
        return networks.identity(networks.synthesis(w[None]))[0]


@pytest.fixture
def crops() -> Tensor:
    return torch.rand(1, 3, 256, 256) * 2 - 1


def refinement_of(networks: Networks, code: Tensor, crops: Tensor, **changes: float) -> Refinement:
    return Refinement(networks, code, crops, replace(CONFIG, **changes))


WEIGHTLESS = {
    **{"perceptual_weight": 0.0, "pixel_weight": 0.0, "identity_weight": 0.0, "drawn_identity_weight": 0.0},
    **{"landmarks_weight": 0.0, "background_weight": 0.0, "offset_weight": 0.0},
}


def test_it_starts_as_the_plain_mapper(networks: Networks, target: Tensor, crops: Tensor) -> None:
    refinement, attributes = refinement_of(networks, target, crops), torch.randn(3, 512)
    plain = networks.synthesis(networks.mapper(target.expand(3, -1), attributes))
    torch.testing.assert_close(refinement.image(attributes), plain)
    assert refinement.w_plus_offset.shape == (N_STYLES, 512)
    assert not refinement.w_plus_offset.any()


def test_it_begins_with_what_looking_closer_finds(networks: Networks, target: Tensor, crops: Tensor) -> None:
    found = torch.randn(2, N_STYLES, 512)
    closer = {float(crop.mean()): offset for crop, offset in zip((crops[0], -crops[0]), found, strict=True)}
    looking = replace(networks, closer=lambda crop: closer[float(crop.mean())])
    refinement = refinement_of(looking, target, torch.cat((crops, -crops)))
    torch.testing.assert_close(refinement.w_plus_offset, found.mean(0))
    (drawn,) = refinement.draw(1)
    torch.testing.assert_close(drawn.picture, refinement.image(drawn.attributes).clamp(-1, 1))


def test_the_usual_settings_follow_from_whether_it_looks_closer_first(toy_bundle: Path) -> None:
    assert usual_config(None, None) == PersonalizeConfig()
    assert usual_config(toy_bundle, None) == FROM_NOTHING
    assert usual_config(None, Path("run")) == FROM_NOTHING


def test_the_offset_counts_in_standard_deviations_for_every_style(
    networks: Networks, target: Tensor, crops: Tensor
) -> None:
    refinement = refinement_of(networks, target, crops, **WEIGHTLESS | {"offset_weight": 0.1})
    with torch.no_grad():
        refinement.offset[1] += 2
    moved = torch.stack((torch.zeros(512), 2 * networks.mapper.w_std))
    torch.testing.assert_close(refinement.w_plus_offset, moved)
    attributes = torch.randn(1, 512)
    w_plus = networks.mapper(target[None], attributes)[:, None] + moved
    torch.testing.assert_close(refinement.image(attributes), networks.synthesis(w_plus))
    terms = refinement.step(refinement.photos[0], 0.0)
    assert terms.pop("offset") == pytest.approx(0.1 * 4 / 2)
    assert set(terms.values()) == {0.0}


def test_the_pull_alone_brings_the_offset_back(networks: Networks, target: Tensor, crops: Tensor) -> None:
    refinement = refinement_of(networks, target, crops, **WEIGHTLESS | {"offset_weight": 1.0})
    with torch.no_grad():
        refinement.offset += 0.5
    for _ in range(10):
        refinement.step(refinement.photos[0], 0.0)
    assert refinement.offset.abs().max() < 0.1


def test_only_the_offset_changes(networks: Networks, target: Tensor, crops: Tensor) -> None:
    before = fingerprint({name: value.numpy() for name, value in networks.mapper.state_dict().items()})
    refine(networks, target, crops, replace(CONFIG, steps=3, bank=2, held_out=1))
    assert fingerprint({name: value.numpy() for name, value in networks.mapper.state_dict().items()}) == before


def test_the_person_is_found_on_faces_that_were_not_optimised(
    networks: Networks, target: Tensor, crops: Tensor
) -> None:
    shown = []
    found = refine(networks, target, crops, CONFIG, lambda step, terms: shown.append(step))
    assert found.after.identity > found.before.identity + 0.1
    assert found.w_plus_offset.shape == (N_STYLES, 512)
    assert (found.w_plus_offset / networks.mapper.w_std).square().mean().sqrt() < 1.5
    assert (shown, found.steps, found.stopped) == (list(range(1, 41)), 40, False)


def test_the_photo_is_found_on_the_head_alone(networks: Networks, target: Tensor) -> None:
    with torch.no_grad():
        w = networks.mapper.w_mean + 0.7 * networks.mapper.w_std * torch.randn(1, 512)
        photo = networks.synthesis(w).clamp(-1, 1)
    around = photo.clone()
    around[:, :, :64] = 1.0
    weights = {**WEIGHTLESS, "pixel_weight": 1.0, "perceptual_weight": 1.0, "rate": 0.05}
    plain, masked = (refinement_of(networks, target, crop, **weights) for crop in (photo, around))
    for refinement in (plain, masked):
        before = refinement.step(refinement.photos[0], 0.0)["pixel"]
        for _ in range(20):
            after = refinement.step(refinement.photos[0], 0.5)["pixel"]
        assert after < 0.5 * before
    # the attributes see the painted photo, the loss does not
    with torch.no_grad():
        images = [one.image(one.photos[0].attributes)[:, :, 64:192, 64:192] for one in (plain, masked)]
    assert (images[0] - images[1]).abs().mean() < 0.1


def test_landmarks_hold_the_person_back(networks: Networks, target: Tensor, crops: Tensor) -> None:
    free, held = (
        refine(networks, target, crops, replace(CONFIG, steps=20, landmarks_weight=weight)) for weight in (0.0, 1e6)
    )
    assert held.after.landmarks_px < free.after.landmarks_px


def test_around_the_head_of_a_drawn_face_nothing_changes(networks: Networks, target: Tensor, crops: Tensor) -> None:
    moved = []
    for weight in (0.0, 1e3):
        refinement = refinement_of(networks, target, crops, background_weight=weight)
        (face,) = refinement.draw(1)
        for _ in range(15):
            refinement.step(face, 0.2)
        with torch.no_grad():
            around = (1 - face.head) * (refinement.image(face.attributes) - face.picture)
        moved.append(around.abs().mean().item())
    assert moved[1] < 0.5 * moved[0]


def test_the_same_seed_gives_the_same_person(networks: Networks, target: Tensor, crops: Tensor) -> None:
    config = replace(CONFIG, steps=5, held_out=1)
    first, second = (refine(networks, target, crops, config) for _ in range(2))
    torch.testing.assert_close(first.w_plus_offset, second.w_plus_offset, rtol=0, atol=0)


def test_drawn_faces_take_turns_with_the_photos_at_the_end(
    networks: Networks, target: Tensor, crops: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(Refinement, "step", lambda self, face, fraction: seen.append(face.own) or {})
    refine(networks, target, crops, replace(CONFIG, steps=10, alone=0.6))
    assert seen == [True] * 6 + [True, False] * 2
    seen.clear()
    refine(networks, target, crops, replace(CONFIG, steps=4, alone=0.0, bank=0))
    assert seen == [True] * 4


def test_a_second_recogniser_looks_on(networks: Networks, target: Tensor, crops: Tensor) -> None:
    sides = torch.randn(3 * 256 * 2, 8)
    second = lambda crop: F.normalize(crop[..., ::128].flatten(1) @ sides, dim=1)  # noqa: E731
    alone = refinement_of(networks, target, crops)
    both = refinement_of(replace(networks, second=second), target, crops)
    terms, more = alone.step(alone.photos[0], 0.0), both.step(both.photos[0], 0.0)
    assert more.keys() - terms.keys() == {"second"}
    for _ in range(10):
        last = both.step(both.photos[0], 0.2)
    assert last["second"] < more["second"]


def test_the_time_that_is_given_is_kept(
    networks: Networks, target: Tensor, crops: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 6))  # seconds, at every look
    monkeypatch.setattr(personalize.time, "monotonic", lambda: float(next(clock)))
    fractions = []
    monkeypatch.setattr(Refinement, "step", lambda self, face, fraction: fractions.append(fraction) or {})
    found = refine(networks, target, crops, replace(CONFIG, steps=100, max_minutes=1.0))
    assert fractions == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert (found.steps, found.stopped) == (9, False)


def test_ctrl_c_keeps_what_was_found(networks: Networks, target: Tensor, crops: Tensor) -> None:
    def show(step: int, terms: dict[str, float]) -> None:
        if step == 6:
            raise KeyboardInterrupt

    found = refine(networks, target, crops, CONFIG, show)
    assert (found.steps, found.stopped) == (6, True)
    assert found.w_plus_offset.abs().max() > 0


def test_a_loss_that_is_not_finite_is_a_sentence(networks: Networks, target: Tensor, crops: Tensor) -> None:
    refinement = refinement_of(networks, target, crops)
    face = replace(refinement.photos[0], attributes=torch.full((1, 512), torch.nan))
    with pytest.raises(FidError, match="not finite"):
        refinement.step(face, 0.0)


def test_the_head_is_a_person_near_the_middle() -> None:
    mask = HeadMask(lambda picture: (torch.ones(len(picture), 1, 256, 256),))  # type: ignore[arg-type]
    for side in (128, 256):
        head = mask(torch.zeros(1, 3, side, side))
        assert head.shape == (1, 1, side, side)
        assert head[0, 0, side // 2, side // 2] > 0.95
        assert head[0, 0, -1, 0] < 0.01
    nobody = HeadMask(lambda picture: (torch.zeros(len(picture), 1, 256, 256),))  # type: ignore[arg-type]
    assert not nobody(torch.zeros(1, 3, 256, 256)).any()


def test_a_stranger_among_the_photos() -> None:
    me, other = np.eye(128, dtype=np.float32)[:2]
    assert odd_one_out(np.stack([me])) is None
    assert odd_one_out(np.stack([me, me, me])) is None
    assert odd_one_out(np.stack([me, me, other])) == 2
    assert odd_one_out(np.stack([me, other])) is not None


def test_a_checkpoint_and_its_bundle_name_the_same_mapper() -> None:
    bundle = Bundle.load()
    mapper = Mapper(appearance=appearance_size(bundle))
    load_graph(mapper, bundle, "mapper")
    assert fingerprint({name: value.numpy() for name, value in mapper.state_dict().items()}) == mapper_name(bundle)
    with pytest.raises(FidError, match="does not hold the synthesis network of this fid"):
        load_graph(nn.Linear(3, 3), bundle, "synthesis")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fid-train personalize`."""
    try:
        cli.main(["personalize", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def toy_networks(monkeypatch: pytest.MonkeyPatch, fetched: Callable[[str], Path]) -> None:
    """The toy bundle's place is taken by tiny networks, since it holds no mapper of ours."""
    fetched("yunet")
    networks = tiny()
    networks.synthesis.n_styles = 3  # the toy bundle's
    monkeypatch.setattr(personalize, "bundle_networks", lambda composer, device: networks)


def test_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, ADA, "-o", tmp_path / "me.npz", "--steps", "7", "--dry-run")
    assert code == 0
    assert "steps                7\n" in out
    assert not list(tmp_path.iterdir())


def test_a_file_that_the_runtime_composes_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, toy_bundle: Path, toy_networks: None
) -> None:
    output = tmp_path / "me.npz"
    code, out, err = run(capsys, ADA, "-o", output, "--bundle", toy_bundle, "--steps", "12")
    assert (code, err) == (0, "")
    assert "identity cosine" in out
    assert f"saved {output}" in out
    assert [path.name for path in tmp_path.iterdir()] == ["me.npz"]
    person, composer = Identity.load(output), Composer(toy_bundle)
    assert person.sources == 1
    assert person.mapper is not None
    assert person.w_plus_offset is not None
    composer.set_identity(output)
    assert composer.compose(BEN).shape == (256, 256, 3)


def test_two_people_are_a_warning(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_bundle: Path,
    toy_networks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(personalize, "odd_one_out", lambda codes: 1)
    code, out, _ = run(capsys, ADA, BEN, "-o", tmp_path / "us.npz", "--bundle", toy_bundle, "--steps", "1")
    assert code == 0
    assert f"warning: {BEN} seems to show another person than the other photos" in out
    assert Identity.load(tmp_path / "us.npz").sources == 2


def test_ctrl_c_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_bundle: Path,
    toy_networks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Refinement, "draw", interrupted)  # before the search; Ctrl-C in it keeps what it has
    code, _, err = run(capsys, ADA, "-o", tmp_path / "me.npz", "--bundle", toy_bundle)
    assert (code, err.strip()) == (130, "fid-train: stopped.")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("photos", "output", "more", "sentence"),
    [
        ([], "me.npz", [], "Missing argument"),
        ([ADA], "me.png", [], "must end in .npz"),
        ([ADA], "nowhere/me.npz", [], "does not exist; create it first"),
        ([ADA], "taken.npz", [], "exists already"),
        (["nobody.jpg"], "me.npz", [], "does not exist"),
        (["text.jpg"], "me.npz", [], "is not a picture"),
        (["black.png"], "me.npz", [], "no face was found"),
        ([ADA, "black.png"], "me.npz", [], "no face was found"),
        ([ADA], "me.npz", ["--checkpoint", "."], "give either --bundle, or --checkpoint and --generator"),
    ],
)
def test_bad_usage_and_bad_input_are_exit_2_and_one_sentence(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    toy_bundle: Path,
    toy_networks: None,
    monkeypatch: pytest.MonkeyPatch,
    photos: list[str | Path],
    output: str,
    more: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image("black.png", np.zeros((300, 300, 3), np.uint8))
    Path("text.jpg").write_text("no picture")
    Path("taken.npz").write_bytes(b"mine")
    code, _, err = run(capsys, *photos, "-o", output, *(more or ["--bundle", toy_bundle]))
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["black.png", "taken.npz", "text.jpg"]
    assert Path("taken.npz").read_bytes() == b"mine"


def test_a_bundle_of_other_networks_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, toy_bundle: Path, fetched: Callable[[str], Path]
) -> None:
    fetched("yunet")
    code, _, err = run(capsys, ADA, "-o", tmp_path / "me.npz", "--bundle", toy_bundle)
    assert code == 2
    assert "has an identity encoder of its own" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
