"""Refining an identity: on tiny networks whose best answer is known, and on the command line."""

from collections.abc import Callable
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
from fid.trainer import cli, losses, personalize
from fid.trainer.networks.trained import Mapper
from fid.trainer.personalize import (
    Bank,
    Figures,
    Networks,
    PersonalizeConfig,
    Refinement,
    make_bank,
    odd_one_out,
    refine,
)
from fid.trainer.weights.from_bundle import appearance_size, load_graph
from tiny import TinyMapper, TinySynthesis
from torch import Tensor, nn

ADA, BEN = (FACES / f"identity-{name}.jpg" for name in ("ada", "ben"))
LOOKS = torch.zeros(512)  # the tiny mapper does not look at it
CONFIG = PersonalizeConfig(steps=30, batch=1, bank=3, held_out=3)


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

    return Networks(
        mapper,  # type: ignore[arg-type]
        synthesis,
        identity=identity,
        landmarks=lambda crop: 128 + (pooled(crop, 4) @ to_points).reshape(-1, 10, 2),
        attributes=lambda crop: pooled(crop, 4) @ to_attributes,
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


def bank_of(n: int) -> Bank:
    return Bank(torch.randn(n, 512), torch.rand(n, 10, 2) * 256, torch.rand(n, 3, 8, 8))


def test_it_starts_as_the_plain_mapper(networks: Networks, target: Tensor) -> None:
    refinement, attributes = Refinement(networks, target, LOOKS, CONFIG), torch.randn(3, 512)
    plain = networks.synthesis(networks.mapper(target.expand(3, -1), attributes))
    torch.testing.assert_close(refinement.image(attributes), plain)
    assert not refinement.w_offset.any()


def test_the_offset_counts_in_standard_deviations(networks: Networks, target: Tensor) -> None:
    refinement = Refinement(networks, target, LOOKS, CONFIG)
    with torch.no_grad():
        refinement.offset += 2
    torch.testing.assert_close(refinement.w_offset, 2 * networks.mapper.w_std)
    attributes = torch.randn(1, 512)
    w = networks.mapper(target[None], attributes) + 2 * networks.mapper.w_std
    torch.testing.assert_close(refinement.image(attributes), networks.synthesis(w))
    weightless = PersonalizeConfig(identity_weight=0, landmarks_weight=0, colour_weight=0, offset_weight=0.1)
    refinement.config = weightless
    terms = refinement.step(bank_of(2), 0.0)
    assert terms["offset"] == pytest.approx(0.1 * 4)
    assert terms["identity"] == terms["landmarks"] == terms["colour"] == 0


def test_the_pull_alone_brings_the_offset_back(networks: Networks, target: Tensor) -> None:
    config = PersonalizeConfig(identity_weight=0, landmarks_weight=0, colour_weight=0, offset_weight=1, rate=0.05)
    refinement = Refinement(networks, target, LOOKS, config)
    with torch.no_grad():
        refinement.offset += 0.5
    for _ in range(10):
        refinement.step(bank_of(1), 0.0)
    assert refinement.offset.abs().max() < 0.1


def test_only_the_offset_changes(networks: Networks, target: Tensor, crops: Tensor) -> None:
    before = fingerprint({name: value.numpy() for name, value in networks.mapper.state_dict().items()})
    refine(networks, target, crops, PersonalizeConfig(steps=3, batch=2, bank=2, held_out=1))
    assert fingerprint({name: value.numpy() for name, value in networks.mapper.state_dict().items()}) == before


def test_the_person_is_found_on_faces_that_were_not_optimised(
    networks: Networks, target: Tensor, crops: Tensor
) -> None:
    shown = []
    w_offset, before, after = refine(networks, target, crops, CONFIG, lambda step, terms: shown.append(step))
    assert after.identity > before.identity + 0.1
    assert after.loss(CONFIG) < before.loss(CONFIG)
    assert w_offset.shape == (512,)
    assert (w_offset / networks.mapper.w_std).square().mean().sqrt() < 1.5
    assert shown == list(range(1, 31))
    bank = make_bank(networks, crops, 6, CONFIG.psi, CONFIG.seed)
    with torch.no_grad():
        w = networks.mapper(target.expand(3, -1), bank.attributes[-3:]) + w_offset
        found = networks.identity(networks.synthesis(w).clamp(-1, 1)) @ target
    assert found.mean().item() == pytest.approx(after.identity, abs=1e-4)


def test_landmarks_hold_the_person_back(networks: Networks, target: Tensor, crops: Tensor) -> None:
    free, held = (
        refine(networks, target, crops, PersonalizeConfig(steps=20, bank=3, held_out=2, landmarks_weight=weight))
        for weight in (0.0, 1e6)
    )
    assert held[2].landmarks < free[2].landmarks


def test_the_same_seed_gives_the_same_person(networks: Networks, target: Tensor, crops: Tensor) -> None:
    config = PersonalizeConfig(steps=5, batch=2, bank=3, held_out=1)
    first, second = (refine(networks, target, crops, config) for _ in range(2))
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)


@pytest.mark.parametrize(("cosines", "best"), [((0.5, 0.4, 0.3), 0), ((0.2, 0.9, 0.5), 1), ((0.2, 0.5, 0.9), 2)])
def test_the_best_on_the_held_out_faces_is_kept(
    networks: Networks,
    target: Tensor,
    crops: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    cosines: tuple[float, ...],
    best: int,
) -> None:
    def step(self: Refinement, faces: Bank, fraction: float) -> dict[str, float]:
        self.offset.data += 1
        return {}

    answers = [Figures(cosine, 1.0, 0.0) for cosine in cosines]
    said = iter(answers)
    monkeypatch.setattr(personalize, "MEASURE_EVERY", 2)
    monkeypatch.setattr(Refinement, "step", step)
    monkeypatch.setattr(Refinement, "measure", lambda self, faces: next(said))
    w_offset, before, after = refine(networks, target, crops, PersonalizeConfig(steps=4, batch=1, bank=1, held_out=1))
    assert (before, after) == (answers[0], answers[best])
    torch.testing.assert_close(w_offset, 2.0 * best * networks.mapper.w_std)


def test_drawn_faces_take_turns_with_the_photos_at_the_end(
    networks: Networks, target: Tensor, crops: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, seen = networks.attributes(crops), []

    def step(self: Refinement, faces: Bank, fraction: float) -> dict[str, float]:
        seen.append(torch.allclose(faces.attributes, own, atol=1e-4))
        return {}

    monkeypatch.setattr(Refinement, "step", step)
    refine(networks, target, crops, PersonalizeConfig(steps=10, alone=0.6, bank=2, held_out=1))
    assert seen == [True] * 6 + [True, False] * 2
    seen.clear()
    refine(networks, target, crops, PersonalizeConfig(steps=4, alone=1.0, bank=1, held_out=1))
    assert seen == [True] * 4


def test_drawn_faces_get_the_persons_skin(
    networks: Networks, target: Tensor, crops: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as dark on the photo, in linear light, as the mapper has it: so on every drawn face."""
    config = PersonalizeConfig(steps=2, alone=0.0, bank=1, held_out=1)
    bank = make_bank(networks, crops, 2, config.psi, config.seed)
    refinement = Refinement(networks, target, bank.attributes[0], config)
    with torch.no_grad():
        own, drawn = (refinement.image(bank.attributes[i : i + 1]).clamp(-1, 1) for i in range(2))
    dark = losses.with_skin(own, torch.full((1, 3), -0.7))
    monkeypatch.setattr(personalize, "make_bank", lambda *arguments: bank)
    colours = []

    def step(self: Refinement, faces: Bank, fraction: float) -> dict[str, float]:
        colours.append(faces.colour)
        return {}

    monkeypatch.setattr(Refinement, "step", step)
    refine(networks, target, dark, config)
    change = losses.skin_colour(dark) - losses.skin_colour(own)
    torch.testing.assert_close(colours[0], bank.colour[:1])
    torch.testing.assert_close(colours[1], F.adaptive_avg_pool2d(losses.with_skin(drawn, change), 8))


def test_the_bank_begins_with_the_photos(networks: Networks, crops: Tensor) -> None:
    bank = make_bank(networks, crops, 5, 0.8, seed=3)
    assert len(bank) == 6
    torch.testing.assert_close(bank.attributes[:1], networks.attributes(crops))
    torch.testing.assert_close(bank.landmarks[:1], networks.landmarks(crops))
    torch.testing.assert_close(bank.colour[:1], F.adaptive_avg_pool2d(crops, 8))
    mean_faces = make_bank(networks, crops, 2, 0.0, seed=3)  # no variety: the mean face twice
    torch.testing.assert_close(mean_faces.attributes[1], mean_faces.attributes[2])


def test_a_loss_that_is_not_finite_is_a_sentence(networks: Networks, target: Tensor) -> None:
    refinement = Refinement(networks, target, LOOKS, CONFIG)
    with pytest.raises(FidError, match="not finite"):
        refinement.step(Bank(torch.full((2, 512), torch.nan), torch.zeros(2, 10, 2), torch.zeros(2, 3, 8, 8)), 0.0)


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

    monkeypatch.setattr(Refinement, "step", interrupted)
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
    assert code == 1
    assert "does not hold the mapper network of this fid" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
