"""Directions of expressions in W, faces that are moved along them, and what is learnt from those."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.trainer.data.dataset import UNWATCHED, FrozenNetworks, write_dataset
from fid.trainer.evaluate.measures import RIGID_POINTS
from fid.trainer.expressions import directions
from fid.trainer.expressions import run as expressions
from fid.trainer.expressions.directions import (
    EXPRESSIONS,
    EYES,
    LIPS,
    Expression,
    ExpressionsConfig,
    Gradients,
    direction,
    edits,
    gradients,
    readout,
    scaled_regions,
)
from fid.trainer.expressions.run import ExpressionsLoop, kept_config, teach
from fid.trainer.expressions.views import Edited, Photos, Taught, amounts_of, as_seen, kept, write_lacks
from fid.trainer.networks.trained import AttributeEncoder
from fid.trainer.pixels import to_float
from fid.trainer.presets import FitConfig
from fid.trainer.weights import checkpoint
from fid.trainer.weights.trained import Trainable, load_trained
from rich.console import Console
from tiny_frozen import tiny_frozen
from torch import Tensor, nn

FEW = ExpressionsConfig(sampled=3, codes=2, views=1, steps=6, batch=6, photo_batch=2)


@pytest.fixture(autouse=True)
def _narrow_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AttributeEncoder, "widths", (8, 16, 24, 32, 48))


class Mesh(nn.Module):
    """Crop [N, 3, S, S] -> 468 points: a face that the picture moves a little."""

    def __init__(self) -> None:
        super().__init__()
        face = 20 * torch.randn(468, 3, generator=torch.Generator().manual_seed(1))
        face[list(RIGID_POINTS)] = torch.tensor(list(RIGID_POINTS.values()), dtype=torch.float32)
        self.face = nn.Buffer(face + torch.tensor([128.0, 120.0, 0.0]))
        self.points = nn.Linear(3 * 8 * 8, 468 * 3).requires_grad_(False)
        self.inner_face = nn.Buffer(torch.arange(5))

    def forward(self, crop: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(crop, 8).flatten(1)
        return self.face + 3 * self.points(pooled).unflatten(1, (468, 3))


@pytest.fixture(scope="module")
def frozen() -> FrozenNetworks:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return replace(tiny_frozen(256), landmarks=Mesh())  # type: ignore[arg-type]


@pytest.fixture
def given() -> Gradients:
    """Gradients of forty faces, all around means of their own."""
    random = torch.Generator().manual_seed(2)

    def some(count: int) -> Tensor:
        mean = torch.randn(1, count, 512, generator=random)
        return mean + 0.3 * torch.randn(40, count, 512, generator=random)

    return Gradients(some(9), some(3), some(4), torch.ones(9))


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_direction_moves_its_expression_by_one_and_holds_the_rest(given: Gradients, name: str) -> None:
    expression = EXPRESSIONS[name]
    found = direction(expression, given, ExpressionsConfig())
    moved = given.numbers.mean(0) @ found
    assert sum(share * moved[k] for k, share in expression.wanted.items()) == pytest.approx(1, abs=1e-4)
    wanted = sum(share * given.numbers[:, k].mean(0) for k, share in expression.wanted.items())
    steepest = wanted / (wanted @ wanted)  # what moves it by as much in the shortest way
    for kind in ("codes", "colours"):
        rows = getattr(given, kind)
        assert (rows @ found).square().mean() < 0.5 * (rows @ steepest).square().mean(), kind
    held = [k for k in range(9) if k not in (*expression.wanted, *expression.free)]
    assert (given.numbers[:, held] @ found).square().mean() < (given.numbers[:, held] @ steepest).square().mean()


def test_a_direction_is_the_least_of_all_that_move_as_much(given: Gradients) -> None:
    config, expression = ExpressionsConfig(), Expression({EYES: 1.0})
    found, wanted = direction(expression, given, config), given.numbers[:, EYES].mean(0)
    held = [k for k in range(9) if k != EYES]
    weights = {"codes": 1 / 3, "colours": config.colour, "numbers": config.held}

    def cost(d: Tensor) -> Tensor:
        rows = {"codes": given.codes, "colours": given.colours, "numbers": given.numbers[:, held]}
        sums = {name: (rows[name] @ d).square().sum(1).mean() for name in rows}
        mean = sum(weights[name] * rows[name].square().sum((1, 2)).mean() for name in rows) / 512
        return sum(weights[name] * value for name, value in sums.items()) + config.ridge * mean * d.square().sum()

    random = torch.Generator().manual_seed(3)
    for _ in range(5):
        aside = torch.randn(512, generator=random)
        aside -= wanted * (aside @ wanted) / wanted.square().sum()
        assert cost(found) < cost(found + 0.01 * aside * found.norm() / aside.norm())


def test_gradients_are_those_of_small_steps(frozen: FrozenNetworks) -> None:
    w = frozen.draw_w(9, 0.9, torch.Generator().manual_seed(5))
    found = gradients(frozen, w, FEW)
    assert [tuple(part.shape) for part in found] == [(3, 9, 512), (3, 2, 512), (3, 12, 512), (9,)]
    step = torch.randn(512, generator=torch.Generator().manual_seed(6))

    def colours(code: Tensor) -> Tensor:
        image = frozen.synthesis(code[None])[0]
        return torch.cat([image[:, a:b, c:d].mean((1, 2)) for a, b, c, d in scaled_regions(256)])

    meshes = frozen.landmarks(frozen.synthesis(w)).double().numpy()
    torch.testing.assert_close(found.spread.numpy(), directions.numbers_of(meshes).std(0), check_dtype=False)
    reading = torch.from_numpy(readout(meshes)).float()

    def numbers(code: Tensor) -> Tensor:
        return frozen.landmarks(frozen.synthesis(code[None])).reshape(-1) @ reading

    for kind, measure in ((found.colours, colours), (found.numbers, numbers)):
        ahead, behind = (measure(w[1] + sign * 1e-2 * step * frozen.w_std) for sign in (1, -1))
        torch.testing.assert_close(kind[1] @ step, (ahead - behind) / 2e-2, rtol=0.05, atol=2e-2)


def test_what_is_read_off_a_mesh_are_its_numbers(frozen: FrozenNetworks) -> None:
    w = frozen.draw_w(200, 0.9, torch.Generator().manual_seed(7))
    meshes = frozen.landmarks(frozen.synthesis(w)).double().numpy()
    numbers = directions.numbers_of(meshes)
    read = meshes.reshape(200, -1) @ readout(meshes)
    agree = [np.corrcoef(read[:, k], numbers[:, k])[0, 1] for k in range(numbers.shape[1])]
    assert min(agree) > 0.8, np.round(agree, 3)


def test_edits_close_eyes_and_open_mouths() -> None:
    amounts = edits(4000, torch.Generator().manual_seed(1))
    assert amounts.shape == (4000, len(EXPRESSIONS))
    assert (amounts == 0).float().mean() == pytest.approx(0.3, abs=0.02)
    eyes, lips, *others = amounts.T
    assert eyes.mean() < -0.5
    assert lips.mean() > 0.2
    assert all(abs(other.mean()) < 0.1 for other in others)
    assert torch.equal(amounts, edits(4000, torch.Generator().manual_seed(1)))
    assert list(EXPRESSIONS)[:2] == ["eyes", "lips"]


def toy_taught() -> Taught:
    random = torch.Generator().manual_seed(12)
    root = torch.randn(512, 512, generator=random) / 512
    moves, numbers = torch.randn(4, 512, generator=random) / 8, torch.randn(9, 512, generator=random) / 512**0.5
    return Taught(moves, numbers, root @ root.T, torch.ones(9))


def toy(frozen: FrozenNetworks, config: ExpressionsConfig = FEW, photos: int = 0) -> ExpressionsLoop:
    random = torch.Generator().manual_seed(8)
    faces = frozen.draw(8, 0.8, random)
    taught = toy_taught()
    amounts = torch.stack([torch.zeros(8, 4), edits(8, random)], 1)
    w = faces.w[:, None] + amounts @ taught.moves * frozen.w_std
    crops = torch.stack([as_seen(frozen.synthesis(code)) for code in w])
    with torch.random.fork_rng():
        torch.manual_seed(9)
        networks = Trainable(FitConfig())
        networks.mapper.w_mean.copy_(frozen.w_mean)
        networks.mapper.w_std.copy_(frozen.w_std)
    known = None
    if photos:
        crop = torch.randint(0, 256, (photos, 3, 128, 128), dtype=torch.uint8, generator=random)
        known = Photos(crop, torch.randn(photos, 4, generator=random))
    return ExpressionsLoop(config, networks, faces, Edited(crops, amounts), taught, frozen, known)


def test_networks_that_are_as_before_miss_exactly_the_edits(
    frozen: FrozenNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expressions, "augment", lambda crop, random: crop)
    loop = toy(frozen)
    loop.edited = Edited(loop.edited.crops[:, :1].expand(-1, 2, -1, -1, -1), loop.edited.amounts)  # unmoved pictures
    random = torch.Generator().manual_seed(loop.config.seed * 1_000_003)
    shown, view = (torch.randint(below, (loop.config.batch,), generator=random) for below in (8, 2))
    move = loop.config.gain * loop.edited.amounts[shown, view] @ loop.moves
    figures = loop.step()
    assert figures["w"] == pytest.approx(move.square().mean().item(), rel=1e-3)
    assert figures["numbers"] == pytest.approx((move @ loop.numbers.T).square().mean().item(), rel=1e-3)
    assert figures["codes"] == pytest.approx(((move @ loop.codes_square) * move).sum(1).mean().item(), rel=1e-3)
    plain = toy_taught().numbers
    factors = (loop.numbers / plain).mean(1)
    torch.testing.assert_close(factors[[LIPS, EYES, 0]], torch.tensor([FEW.lips, FEW.eyes, 1.0]))


def test_an_error_of_w_counts_as_the_codes_that_it_moves(given: Gradients) -> None:
    codes = given.codes.flatten(0, 1)
    error = torch.randn(512, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(error @ (codes.T @ codes / len(codes)) @ error, (given.codes @ error).square().mean())


@torch.no_grad()
def test_photographs_move_answers_by_what_compositions_lack(frozen: FrozenNetworks, tmp_path: Path) -> None:
    loop, taught, config = toy(frozen), toy_taught(), replace(FEW, lacking=0.5)
    photos, person = frozen.draw(5, 0.9, torch.Generator().manual_seed(11)), loop.faces[torch.tensor([3])]
    given = photos, person, taught, loop.before, frozen, config, UNWATCHED
    found = write_lacks(tmp_path / "lacks", *given)

    def numbers(image: Tensor) -> Tensor:
        return torch.from_numpy(directions.numbers_of(frozen.landmarks(image).numpy())).float()

    codes = loop.before.attributes(to_float(found.crops))
    portrait = loop.before.attributes(to_float(as_seen(person.crop)))
    w = loop.before.mapper(person.identity.expand(5, -1), codes, portrait.expand(5, -1))
    lacks = numbers(photos.crop) - numbers(frozen.synthesis(w))
    torch.testing.assert_close(kept(tmp_path / "lacks" / "lacks_00000.npz", dict)["lacks"], lacks, atol=1e-3, rtol=1e-3)
    expected = 0.5 * amounts_of(lacks - lacks.median(0).values, taught)
    torch.testing.assert_close(found.amounts, expected, atol=1e-3, rtol=1e-3)
    frozen = replace(frozen, synthesis=None)  # type: ignore[arg-type] - what is kept is read, not drawn
    again = write_lacks(tmp_path / "lacks", *given[:4], frozen, config, UNWATCHED)
    assert torch.equal(again.amounts, found.amounts)


def test_lacks_are_made_up_along_their_directions() -> None:
    taught = toy_taught()
    numbers = torch.linalg.pinv(taught.moves).T[:4]  # every direction moves one number by one
    taught = taught._replace(numbers=torch.cat((torch.zeros(2, 512), numbers, torch.zeros(3, 512))))
    lacks = torch.tensor([[5.0, 5, 1, 0, -2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 100, 0, 0, 0]])
    expected = torch.tensor([[0.8, 0, -1.6, 0], [0, 0, 0, 4]])  # drawn to 0 by a fifth, at most four; pose counts not
    torch.testing.assert_close(amounts_of(lacks, taught), expected, atol=1e-5, rtol=0)


def test_it_learns_what_it_is_shown(frozen: FrozenNetworks) -> None:
    loop = toy(frozen, replace(FEW, steps=400, rate_attributes=1e-3, rate_mapper=1e-3))
    loop.done = 100  # past the warm-up of the rate
    figures = [loop.step() for _ in range(24)]
    first, last = (np.mean([one["numbers"] for one in part]) for part in (figures[:6], figures[-6:]))
    assert last < 0.8 * first
    assert not any(module.training for module in loop.networks.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_resumed_run_is_bit_equal(frozen: FrozenNetworks, tmp_path: Path) -> None:
    straight, stopped = toy(frozen, photos=3), toy(frozen, photos=3)
    figures = [straight.step() for _ in range(4)]
    for _ in range(2):
        stopped.step()
    resumed = toy(frozen, photos=3)
    resumed.restore(stopped.save(tmp_path, {"w": 1.0}))
    assert [resumed.step() for _ in range(2)] == figures[2:]
    for name, value in straight.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name
    kept = load_trained(resumed.save(tmp_path, {}))
    assert torch.equal(kept.mapper.layers[0].weight, resumed.average.mapper.layers[0].weight)


def test_a_loss_that_is_not_finite_leaves_the_weights(frozen: FrozenNetworks) -> None:
    loop = toy(frozen)
    loop.moves = loop.moves * torch.inf
    before = loop.networks.mapper.layers[0].weight.clone()
    with pytest.raises(FidError, match="not finite at step 0"):
        loop.step()
    assert torch.equal(before, loop.networks.mapper.layers[0].weight)


@pytest.fixture
def given_run(frozen: FrozenNetworks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """What the command needs, with small networks in the place of those that ship."""
    monkeypatch.setattr(expressions, "load_generator", lambda source, resolution: frozen.synthesis)
    monkeypatch.setattr(expressions, "load_mapping", lambda source: frozen.mapping)
    monkeypatch.setattr(FrozenNetworks, "load", classmethod(lambda cls, *args, **kwargs: frozen))
    photos = frozen.draw(3, 0.9, torch.Generator().manual_seed(13))
    monkeypatch.setattr(expressions, "read_photos", lambda folder, frozen, log, preparing: photos)
    write_dataset(tmp_path / "faces", 9, frozen, psi=0.8, seed=1, stop=lambda: False, log=lambda line: None)
    networks = toy(frozen).before
    weights = {**checkpoint.tensors_of("attributes", networks.attributes)}
    weights |= checkpoint.tensors_of("mapper", networks.mapper)
    checkpoint.save(tmp_path / "begun", 1, weights, {}, {"kind": "fit", "configuration": {}})
    return {"init": tmp_path / "begun", "dataset": tmp_path / "faces", "photos": tmp_path / "photos"}


def test_the_whole_run_can_be_stopped_and_goes_on(given_run: dict[str, Path], tmp_path: Path) -> None:
    console, lines = Console(quiet=True), []
    console.print = lines.append  # type: ignore[method-assign]
    assert teach(tmp_path / "run", FEW, **given_run, max_minutes=1e-9, console=console) is None
    assert lines[-1] == "stopped while drawing faces, after 0 of 2. --resume goes on from there."
    done = teach(tmp_path / "run", replace(FEW, steps=2), **given_run, resume=True, console=console)
    assert done is not None
    assert done.name == "step_000002"
    drawn, lacks = tmp_path / "run" / "views" / "views_00000.npz", tmp_path / "run" / "lacks" / "lacks_00000.npz"
    before = [path.stat().st_mtime_ns for path in (drawn, lacks)]
    done = teach(tmp_path / "run", FEW, **given_run, resume=True, console=console)
    assert done is not None
    assert done.name == "step_000006"
    assert [path.stat().st_mtime_ns for path in (drawn, lacks)] == before
    assert kept_config(tmp_path / "run") == FEW
    with pytest.raises(InputError, match=r"has drawn its pictures with seed=77 and is to go on with 5: give the same"):
        teach(tmp_path / "run", replace(FEW, seed=5), **given_run, resume=True, console=console)
    with pytest.raises(InputError, match=r"faces holds 9 faces and the directions come from 10: make a larger dataset"):
        teach(tmp_path / "more", replace(FEW, sampled=10), **given_run, console=console)
    drawn.write_bytes(drawn.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"views_00000\.npz is broken \(.*\); delete it and go on with --resume\.$"):
        teach(tmp_path / "run", FEW, **given_run, resume=True, console=console)
    other = (tmp_path / "faces").rename(tmp_path / "other")
    with pytest.raises(InputError, match="has learnt with --dataset faces and is to go on with other"):
        teach(tmp_path / "run", FEW, **(given_run | {"dataset": other}), resume=True, console=console)


def test_identity_codes_of_another_size_are_refused(given_run: dict[str, Path], tmp_path: Path) -> None:
    networks = Trainable(FitConfig(), 64)
    weights = {**checkpoint.tensors_of("attributes", networks.attributes)}
    weights |= checkpoint.tensors_of("mapper", networks.mapper)
    checkpoint.save(tmp_path / "other", 1, weights, {}, {"kind": "fit", "configuration": {}})
    with pytest.raises(InputError, match=r"have identity codes of 128 numbers and .*other takes 64: make a"):
        teach(tmp_path / "run", FEW, **(given_run | {"init": tmp_path / "other"}), console=Console(quiet=True))


def test_a_mapper_into_w_plus_is_refused(frozen: FrozenNetworks, tmp_path: Path) -> None:
    networks = Trainable(FitConfig(w_plus=True), n_styles=14)
    weights = {**checkpoint.tensors_of("attributes", networks.attributes)}
    weights |= checkpoint.tensors_of("mapper", networks.mapper)
    record = {"kind": "fit", "configuration": {"w_plus": True}}
    checkpoint.save(tmp_path / "begun", 1, weights, {}, record)
    with pytest.raises(InputError, match="mapper into W"):
        teach(tmp_path / "run", FEW, init=tmp_path / "begun", dataset=tmp_path, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_lips_and_eyes_are_where_the_controls_have_them() -> None:
    meshes = np.zeros((1, 468, 3))
    meshes[0, list(RIGID_POINTS)] = list(RIGID_POINTS.values())
    meshes[0, [13, 14, 61, 291, 33, 133, 263, 362]] = np.arange(24).reshape(8, 3)
    opened = meshes.copy()
    opened[0, 14, 1] += 30
    moved = np.abs(directions.numbers_of(opened) - directions.numbers_of(meshes))[0]
    assert moved.argmax() == LIPS
    raised = meshes.copy()
    raised[0, [159, 386], 1] -= 30
    moved = np.abs(directions.numbers_of(raised) - directions.numbers_of(meshes))[0]
    assert moved.argmax() == EYES
