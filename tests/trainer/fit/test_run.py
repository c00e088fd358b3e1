"""The training loop: losses fall, a resumed run equals one that never stopped, interruptions save."""

import faulthandler
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.trainer import presets
from fid.trainer.data import dataset as data
from fid.trainer.data.dataset import FrozenNetworks
from fid.trainer.evaluate.compose import EvaluateConfig, evaluate
from fid.trainer.fit import run as fit
from fid.trainer.fit.draw import Draws, Stream
from fid.trainer.fit.loop import FitLoop, _kept
from fid.trainer.fit.processes import Processes
from fid.trainer.loop import Budget, Preparing, best_device, move_average
from fid.trainer.weights import checkpoint, trained
from rich.console import Console
from tiny_frozen import tiny_frozen
from tiny_stylegan2 import random_weights, write_rosinality

FEW = {"probe_steps": 2, "probe_faces": 32, "probe_turns": 1}
TINY = presets.FitConfig(resolution=128, steps=4, warm_steps=1, self_batch=4, cross_batch=2, cross_every=1, **FEW)
CPU = torch.device("cpu")
LIVE = {"w", "transfer", "probe identity", "probe landmarks", "probe skin"}  # losses between two cross steps


@pytest.fixture
def generator(frozen, tmp_path):
    run = tmp_path / "g128"
    checkpoint.save(run, 1, checkpoint.tensors_of("synthesis", frozen.synthesis), {}, {"kind": "distill"})
    return run


def quiet() -> Console:
    return Console(quiet=True)


def said(lines: list[str]) -> Console:
    """A console that keeps its lines."""
    console = quiet()
    console.print = lines.append  # type: ignore[method-assign]
    return console


def test_the_warm_start_learns_one_batch():
    frozen = tiny_frozen()
    faces = frozen.draw(4, 0.8, torch.Generator().manual_seed(3))
    config = replace(TINY, steps=40, warm_steps=40, self_batch=4)
    loop = FitLoop(config, frozen, faces, torch.device("cpu"))
    values = [loop.step()["w"] for _ in range(25)]
    assert sum(values[-5:]) < 0.7 * sum(values[:5])


def small(preset: str) -> presets.FitConfig:
    """A preset at 128 px that starts its cross pairs at once."""
    chosen = presets.PRESETS[preset]
    return replace(chosen, resolution=128, warm_steps=min(chosen.warm_steps, 1), **FEW)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, w_plus=True, probe_weight=0.0),
        replace(TINY, train_attributes=False, transfer_weight=0.0, probe_weight=0.0, skin_weight=0.0),
        replace(small("paper"), cross_batch=2, attribute_encoder="light"),
    ],
    ids=["live", "w-plus", "kept-codes", "paper"],
)
def test_a_resumed_run_is_bit_equal(config, tmp_path):
    frozen = tiny_frozen()
    faces = frozen.draw(6, 0.8, torch.Generator().manual_seed(3))

    def loop():
        return fit.FitLoop(config, frozen, faces, CPU, photos=faces)

    straight, stopped = loop(), loop()
    straight.start()
    stopped.start()
    figures = [straight.step() for _ in range(4)]
    stopped.step()
    stopped.step()
    saved = stopped.save(tmp_path, {})
    resumed = loop()
    resumed.restore(saved)
    resumed.start()
    assert [resumed.step() for _ in range(2)] == figures[2:]
    for name, module in straight.modules.items():
        mine, theirs = resumed.modules[name].state_dict(), module.state_dict()
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs), name
    crop = faces.crop[:2]
    w = trained.load_trained(saved)(faces.identity[:2], crop, crop)
    assert w.shape == ((2, 14, 512) if config.w_plus else (2, 512))


def test_another_configuration_cannot_resume(tmp_path):
    frozen = tiny_frozen()
    saved = fit.FitLoop(TINY, frozen, None, CPU).save(tmp_path, {})
    other = fit.FitLoop(replace(TINY, attribute_encoder="inception"), frozen, None, CPU)
    with pytest.raises(FidError, match="other networks than this configuration's"):
        other.restore(saved)


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("live", {*LIVE, "identity", "landmarks", "colour", "adversarial"}),
        ("paper", {"identity", "landmarks", "adversarial"}),
        ("no-landmarks", {"identity", "adversarial"}),
        ("no-discriminator", {"identity", "landmarks"}),
    ],
)
def test_the_losses_of_every_preset(preset, names):
    loop = FitLoop(replace(small(preset), attribute_encoder="light"), tiny_frozen(), None, CPU)
    loop.start()
    figures = [loop.step() for _ in range(4)]
    if preset != "no-discriminator":
        names = names | {"discriminator"}
    assert set(figures[3]) == names  # the fourth step is a cross pair
    between = LIVE if preset == "live" else names | {"reconstruction"}
    assert set(figures[2]) == between


def test_the_paper_is_quoted_exactly():
    paper = presets.PRESETS["paper"]
    assert (paper.cross_batch, paper.rate, paper.adversarial_rate, paper.d_rate) == (6, 5e-5, 5e-6, 2e-5)
    assert (paper.adversarial_weight, paper.reconstruction_weight) == (1, 0.02)
    assert (paper.r1_gamma, paper.beta2, paper.cross_every, paper.resolution) == (10, 0.999, 3, 256)
    large = presets.PRESETS["paper-1024"]
    rates = (large.rate, large.cross_rate, large.adversarial_rate, large.d_rate)
    assert rates == pytest.approx((5e-6, 5e-6, 5e-7, 2e-6))
    assert (large.cross_batch, large.resolution) == (2, 1024)


def test_the_paper_is_weighted_in_its_own_units():
    frozen = tiny_frozen()
    loop = FitLoop(small("paper"), frozen, None, CPU)
    code, other = torch.nn.functional.normalize(
        torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(1)), dim=2
    )
    torch.testing.assert_close(loop.identity_loss(code, other), (code - other).abs().mean())
    points, others = torch.rand(2, 3, 51, 2, generator=torch.Generator().manual_seed(2))
    px = 160 * (points - others)
    torch.testing.assert_close(loop.landmarks_loss(points, others), 0.001 * px.square().mean())


def test_a_w_counts_as_much_as_its_person_is_left_in_the_code(monkeypatch):
    codes = torch.eye(3, 128)
    led = torch.nn.functional.normalize(codes + torch.tensor([[0.0], [1.0], [0.0]]) * torch.eye(128)[3], dim=1)
    led[2] = -codes[2]
    torch.testing.assert_close(_kept(led, codes), torch.tensor([1.0, 0.5, 0.0]))
    frozen = tiny_frozen()
    config = replace(TINY, self_batch=2)
    loop = FitLoop(config, frozen, frozen.draw(4, 0.8, torch.Generator().manual_seed(1)), CPU)
    monkeypatch.setattr(Draws, "identities", lambda draws, codes, n, stream: -codes)  # somebody else altogether
    assert loop.self_losses()["w"] == 0


@pytest.mark.parametrize("preset", ["live", "paper", "no-landmarks", "no-discriminator"])
def test_losses_fall(preset):
    config = replace(small(preset), attribute_encoder="light", steps=16, rate=5e-4, cross_rate=5e-4)
    led = min(config.real_identities, 0.8)  # people whom 16 steps can learn
    config = replace(config, self_batch=min(config.self_batch, 4), cross_batch=3, real_identities=led)
    frozen = tiny_frozen()
    loop = FitLoop(config, frozen, frozen.draw(8, 0.8, torch.Generator().manual_seed(1)), CPU)
    loop.start()
    figures = [loop.step() for _ in range(16)]
    values = [f["identity"] for f in figures if "identity" in f]
    assert sum(values[-4:]) < 0.9 * sum(values[:4])


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["paper", "no-landmarks", "no-discriminator"])
def test_the_papers_presets_learn_within_200_steps(preset):
    """At their size and batch, through the shipped generator. Equation (8) falls on pairs that are the same twice."""
    faulthandler.cancel_dump_traceback_later()  # on one core this takes longer than a test that hangs may
    config = replace(presets.PRESETS[preset], bf16=True)
    device = best_device()
    frozen = FrozenNetworks.load(trained.load_generator(None, config.resolution), device)
    loop = FitLoop(config, frozen, None, device)
    loop.start()

    def equation_8() -> dict[str, float]:
        step, sums = loop.done, {}  # batch norms go on by the batch: a new network's averages say nothing yet
        for loop.done in range(10**6, 10**6 + 6):  # seeds of pairs that no step has
            for same in (False, True):
                with torch.no_grad(), loop.autocast():
                    terms = loop.image_losses(same)[2]
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0) + value.item() / (6 if name == "reconstruction" else 12)
        loop.done = step
        return {**sums, "all": sum(sums.values())}

    before = equation_8()
    steps = [loop.step() for _ in range(200)]
    after = equation_8()
    print(preset, {name: (round(value, 4), round(after[name], 4)) for name, value in before.items()})
    assert after["all"] < before["all"]
    assert after["identity"] < 0.95 * before["identity"]
    if config.adversarial_weight:
        adversary = [figures["discriminator"] for figures in steps]
        assert sum(adversary[-20:]) < sum(adversary[:20])


def test_two_processes_compute_what_one_does(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from fid.trainer import presets
from fid.trainer.fit.loop import FitLoop
from fid.trainer.fit.processes import Processes
from fid.trainer.networks.trained import AttributeEncoder
from tiny_frozen import tiny_frozen
AttributeEncoder.widths = (8, 16, 24, 32, 48)
frozen, processes = tiny_frozen(), Processes.start()
config = presets.FitConfig(
    resolution=128, steps=4, warm_steps=1, self_batch=4, cross_batch=4, cross_every=2, probe_steps=2, probe_faces=32
)
photos = frozen.draw(3, 1.0, torch.Generator().manual_seed(8))
loop = FitLoop(config, frozen, None, torch.device("cpu"), photos=photos, processes=processes)
loop.start()
figures = [loop.step() for _ in range(4)]
if processes.first:
    norm = loop.networks.attributes.norm
    Path(sys.argv[1]).write_text(json.dumps([figures, norm.running_mean.tolist(), norm.running_var.tolist()]))
processes.stop()
"""
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(tiny_frozen.__code__.co_filename).parent),
        "OMP_NUM_THREADS": "1",
    }
    results = []
    for world, launch in ((1, []), (2, ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"])):
        path = tmp_path / f"{world}.json"
        done = subprocess.run(
            [sys.executable, *launch, str(script), str(path)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(path.read_text()))
    (one, mean_one, variance_one), (two, mean_two, variance_two) = results
    for step, (mine, theirs) in enumerate(zip(one, two, strict=True)):
        assert mine == pytest.approx(theirs, rel=1e-2 if step else 1e-4)  # Adam's first steps magnify rounding
    assert mean_one == pytest.approx(mean_two, abs=1e-4)
    assert variance_one == pytest.approx(variance_two, rel=1e-3)


def test_a_batch_that_cannot_be_shared():
    with pytest.raises(InputError, match="a batch of 5 cannot be shared by 2 processes"):
        Processes(rank=0, world=2).rows(5)


def test_the_probe_learns_to_guess_the_frozen_networks_answers():
    frozen = tiny_frozen()
    faces = frozen.draw(1200, 1.0, torch.Generator().manual_seed(0))
    known, unseen = faces[torch.arange(1000)], faces[torch.arange(1000, 1200)]
    loop = FitLoop(replace(TINY, probe_steps=150), frozen, known, CPU)
    loop.start()
    with torch.no_grad():
        code, points, skin = loop.probe.eval()(unseen.w)
    right, chance = (code * unseen.identity).sum(1).mean(), (code * unseen.identity.roll(1, 0)).sum(1).mean()
    assert right > 0.5 + 0.5 * chance
    mistake = (points * 256 - unseen.landmarks).square().mean()
    assert mistake < 0.6 * unseen.landmarks.var(0).mean()
    assert (skin - unseen.skin).square().mean() < 0.6 * unseen.skin.var(0).mean()


def test_a_moving_average_is_its_closed_form():
    values, average = torch.tensor([3.0, -1.0]), torch.zeros(2)
    for _ in range(5):
        move_average([average], [values], 0.9)
    torch.testing.assert_close(average, (1 - 0.9**5) * values)


def test_bf16_stays_close_to_float32():
    frozen = tiny_frozen()
    faces = frozen.draw(2, 0.8, torch.Generator().manual_seed(3))
    config = replace(TINY, warm_steps=0, self_batch=2, cross_batch=1, probe_weight=0.0)
    plain, rounded = (fit.FitLoop(replace(config, bf16=bf16), frozen, faces, CPU).step() for bf16 in (False, True))
    assert plain != rounded
    assert rounded == pytest.approx(plain, rel=0.1, abs=0.02)


def test_an_encoder_that_is_not_trained_stays_and_its_codes_are_kept():
    frozen = tiny_frozen()
    faces = frozen.draw(5, 0.8, torch.Generator().manual_seed(3))
    loop = FitLoop(replace(TINY, train_attributes=False, warm_steps=0), frozen, faces, CPU)
    before = {name: value.clone() for name, value in loop.networks.attributes.state_dict().items()}
    mapper = loop.networks.mapper.layers[0].weight.clone()
    loop.start()
    with torch.no_grad():
        torch.testing.assert_close(loop.codes[0], loop.networks.attributes.eval()(faces.crop))
    for _ in range(2):
        loop.step()
    assert not torch.equal(loop.networks.mapper.layers[0].weight, mapper)
    for name, value in loop.networks.attributes.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    with pytest.raises(InputError, match="needs a --dataset"):
        fit.FitLoop(replace(TINY, train_attributes=False), frozen, None, CPU)


def test_other_weights_begin_a_run_as_far_as_they_fit():
    frozen = tiny_frozen()
    loop = FitLoop(TINY, frozen, None, CPU)
    same, other = trained.Trainable(TINY), trained.Trainable(replace(TINY, appearance=0))
    assert loop.begin_with(same) == "begins with the attribute encoder and the mapper"
    torch.testing.assert_close(loop.average.mapper.state_dict(), same.mapper.state_dict())
    kept = loop.networks.mapper.layers[0].weight.clone()
    assert loop.begin_with(other) == "begins with the attribute encoder only"
    torch.testing.assert_close(loop.networks.mapper.layers[0].weight, kept)
    plus = FitLoop(replace(TINY, w_plus=True, probe_weight=0.0), frozen, None, CPU)
    assert plus.begin_with(same) == "begins with the attribute encoder and the mapper"
    codes = torch.nn.functional.normalize(torch.randn(2, 128), dim=1), *torch.randn(2, 2, 512)
    everywhere = same.mapper(*codes)[:, None].expand(-1, 14, -1)  # the same w for every style
    torch.testing.assert_close(plus.average.mapper(*codes), everywhere)
    name = next(iter(other.attributes.state_dict()))
    torch.testing.assert_close(loop.networks.attributes.state_dict()[name], other.attributes.state_dict()[name])


def test_appearance_is_a_bottleneck_that_counts():
    networks = trained.Trainable(replace(TINY, appearance=3)).eval()
    crops = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    code = torch.nn.functional.normalize(torch.randn(1, 128), dim=1)
    w = networks(code, crops[:1], crops[1:2])
    assert not torch.allclose(w, networks(code, crops[:1], crops[2:]))
    assert networks.mapper.appearance.weight.shape == (3, 512)
    plain = trained.Trainable(replace(TINY, appearance=0)).eval()
    torch.testing.assert_close(plain(code, crops[:1], crops[1:2]), plain(code, crops[:1], crops[2:]))


@pytest.mark.parametrize("online", [True, False])
def test_the_discriminators_real_w_are_those_of_whole_faces(online):
    frozen = tiny_frozen()
    faces = None if online else frozen.draw(6, 0.8, torch.Generator().manual_seed(3))
    loop = FitLoop(small("paper"), frozen, faces, CPU)
    draws = loop.draws
    w = draws.real_w(5, Stream.REAL_W)
    torch.testing.assert_close(w, draws.faces(5, Stream.REAL_W).w, rtol=0, atol=0)


def test_a_memory_for_less_than_a_batch():
    with pytest.raises(InputError, match="probe_memory=1 does not hold one cross batch of 2"):
        fit.FitLoop(replace(TINY, probe_memory=1), tiny_frozen(), None, CPU)


def test_w_plus_has_no_probe():
    with pytest.raises(InputError, match="--set probe_weight=0"):
        fit.FitLoop(replace(TINY, w_plus=True), tiny_frozen(), None, CPU)


def test_the_memory_estimate_grows_with_batch_and_resolution():
    base = trained.memory_estimate(TINY)
    assert base < trained.memory_estimate(replace(TINY, cross_batch=4)) < trained.memory_estimate(small("paper"))


def test_a_nan_stops_before_the_weights_are_touched():
    frozen = tiny_frozen()
    faces = frozen.draw(4, 0.8, torch.Generator().manual_seed(3))
    faces.w[:] = float("nan")
    loop = FitLoop(TINY, frozen, faces, CPU)
    before = loop.networks.mapper.layers[0].weight.clone()
    with pytest.raises(FidError, match="the loss is not finite at step 0"):
        loop.step()
    assert torch.equal(before, loop.networks.mapper.layers[0].weight)


def test_fit_online_stops_on_time_and_resumes(generator, frozen, tmp_path, monkeypatch):
    def load(synthesis, device, fan, mapping, encoder):
        assert all(
            torch.equal(a, b) for a, b in zip(synthesis.parameters(), frozen.synthesis.parameters(), strict=True)
        )
        return tiny_frozen()

    monkeypatch.setattr(FrozenNetworks, "load", load)
    config = replace(TINY, steps=2, warm_steps=2)
    first = fit.fit(tmp_path / "run", config, generator=generator, max_minutes=0, console=quiet())
    assert first.name == "step_000000"
    last = fit.fit(tmp_path / "run", config, generator=generator, resume=True, console=quiet())
    assert last.name == "step_000002"
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["configuration"] == asdict(config)
    assert record["generator"] == "g128/step_000001"
    assert record["machine"]["torch"] == torch.__version__
    assert {"platform", "cpus", "commit"} < set(record["machine"])
    written = {path.name for path in (tmp_path / "run").iterdir()}
    events = {name for name in written if name.startswith("events.out.tfevents")}
    assert len(events) == 2
    assert written - events == {"run.json", "grid_000002.png", "step_000000", "step_000002"}
    picture = cv2.imread(str(tmp_path / "run/grid_000002.png"))
    assert picture.shape == (6 * 128, 6 * 128, 3)
    networks = trained.load_trained(last)
    assert not networks.training


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_a_stop_before_the_first_step_changes_nothing(generator, tmp_path, monkeypatch, parts):
    """Ctrl-C while faces are drawn (the first two parts) or the probe learns; what is resumed equals what never was."""
    monkeypatch.setattr(FrozenNetworks, "load", lambda *_: tiny_frozen())
    config, lines = replace(TINY, steps=1, probe_steps=4), []
    asked = iter(range(10**6))
    monkeypatch.setattr(Budget, "over", property(lambda budget: next(asked) >= parts))
    first = fit.fit(tmp_path / "run", config, generator=generator, console=said(lines))
    assert first.name == "step_000000"
    assert f"stopped while {'training the probe' if parts == 3 else 'drawing faces'}, after" in " ".join(lines)
    monkeypatch.undo()
    monkeypatch.setattr(FrozenNetworks, "load", lambda *_: tiny_frozen())
    last = fit.fit(tmp_path / "run", config, generator=generator, resume=True, console=quiet())
    straight = fit.fit(tmp_path / "other", config, generator=generator, console=quiet())
    for file in ("weights.safetensors", "state.safetensors"):
        found, wanted = (checkpoint.read_weights(path, file) for path in (last, straight))
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_signals_count_from_the_first_second(generator, tmp_path, monkeypatch):
    def interrupted(*_):
        signal.getsignal(signal.SIGINT)(signal.SIGINT, None)  # as Ctrl-C, while the networks are loaded
        return tiny_frozen()

    monkeypatch.setattr(FrozenNetworks, "load", interrupted)
    first = fit.fit(tmp_path / "run", replace(TINY, steps=1), generator=generator, console=quiet())
    assert first.name == "step_000000"


def test_preparing_says_how_far_it_is(monkeypatch):
    clock, lines = iter(range(0, 100, 6)), []
    monkeypatch.setattr("fid.trainer.loop.time.monotonic", lambda: float(next(clock)))
    assert list(Preparing(lines.append)("drawing faces", range(5))) == list(range(5))
    assert lines == ["drawing faces: 1 of 5, 0:48 left", "drawing faces: 3 of 5, 0:16 left"]


def test_fit_goes_through_a_stylegan2_file(tmp_path, monkeypatch):
    file = write_rosinality(tmp_path / "mine.pt", random_weights((16, 16, 8, 8, 8, 8), layers=2))
    frozen = tiny_frozen()

    def load(synthesis, device, fan, mapping, encoder):
        assert (synthesis.native, synthesis.resolution, len(mapping.layers)) == (128, 128, 2)
        w = mapping(torch.randn(500, 512, generator=torch.Generator().manual_seed(0)))
        return replace(frozen, synthesis=synthesis, mapping=mapping, w_mean=w.mean(0), w_std=w.std(0))

    monkeypatch.setattr(FrozenNetworks, "load", load)
    config = replace(TINY, steps=1, warm_steps=0)
    last = fit.fit(tmp_path / "run", config, generator=file, console=quiet())
    assert json.loads((tmp_path / "run/run.json").read_text())["generator"] == "mine.pt"
    mapper = trained.load_trained(last).mapper
    own = trained.load_mapping(file)(torch.randn(500, 512, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(mapper.w_mean, own.mean(0))
    torch.testing.assert_close(mapper.w_std, own.std(0))
    plus = replace(config, w_plus=True, probe_weight=0.0)
    last = fit.fit(tmp_path / "plus", plus, generator=file, console=quiet())
    crops = torch.zeros(1, 3, 256, 256)
    assert trained.load_trained(last)(torch.zeros(1, 128), crops, crops).shape == (1, 12, 512)  # of 4 to 128 px


def test_a_run_goes_on_with_what_it_began_with(tmp_path, monkeypatch, generator):
    frozen = tiny_frozen()
    monkeypatch.setattr(FrozenNetworks, "load", lambda *_: frozen)
    monkeypatch.setattr(fit, "load_mapping", lambda _: None)
    data.write_dataset(
        tmp_path / "faces", 4, frozen, psi=0.8, seed=1, stop=lambda: False, log=lambda line: None, generator="tiny"
    )
    options = {"generator": generator, "dataset": tmp_path / "faces", "console": quiet()}
    last = fit.fit(tmp_path / "run", replace(TINY, steps=1), **options)
    with pytest.raises(InputError, match="holds a run already"):
        fit.fit(tmp_path / "run", replace(TINY, steps=2), **options)
    with pytest.raises(InputError, match="has learnt with --dataset faces and is to go on with none"):
        fit.fit(tmp_path / "run", replace(TINY, steps=2), **{**options, "dataset": None}, resume=True)
    assert checkpoint.latest(tmp_path / "run") == last
    assert fit.fit(tmp_path / "run", replace(TINY, steps=2), **options, resume=True).name == "step_000002"
    with pytest.raises(InputError, match="have 128 px and training sees 256: make a dataset of that size"):
        fit.fit(tmp_path / "large", replace(TINY, steps=1, resolution=256), **{**options, "generator": None})


def test_a_checkpoint_of_another_command_is_no_run_to_go_on_with(generator):
    with pytest.raises(InputError, match="holds no checkpoint of `fid-train fit`, but of `distill`"):
        trained.kept_config(generator)


@pytest.mark.parametrize("name", ["optimizer", "d_optimizer", "probe_optimizer"])
def test_no_optimiser_steps_on_what_is_not_finite(name):
    loop = FitLoop(TINY, tiny_frozen(), None, CPU)
    (first, *_), *_ = (group["params"] for group in loop.optimizers[name].param_groups)
    before = first.detach().clone()
    with pytest.raises(FidError, match=f"a loss of {name} or its gradient is not finite at step 0"):
        loop.optimise(name, (first * float("inf")).sum() * 0)
    assert torch.equal(first.detach(), before)


def test_the_paper_at_1024_px_takes_a_step():
    config = replace(presets.PRESETS["paper-1024"], attribute_encoder="light", cross_batch=1)
    figures = fit.FitLoop(config, tiny_frozen(1024), None, CPU).step()
    assert {"identity", "landmarks", "discriminator"} <= figures.keys()


def test_a_generator_is_needed_below_1024_px():
    with pytest.raises(InputError, match="name a `fid-train distill` checkpoint with --generator"):
        trained.load_generator(None, 128)


def test_evaluation_of_a_perfect_and_of_a_constant_mapper(frozen):
    class Perfect(trained.Trainable):
        """Answers with the w of the attribute image: reconstruction is exact, the leak is total."""

        def forward(self, identity, crop, portrait):
            return torch.stack([w for c in crop for w, image in known if torch.equal(c, image)])

    config = EvaluateConfig(pairs=4, batch=2)
    random = torch.Generator().manual_seed(config.seed)
    frozen.draw(4, config.psi, random, 2)
    attributes = frozen.draw(4, config.psi, random, 2)
    known = list(zip(attributes.w, attributes.crop, strict=True))
    figures = evaluate(Perfect(), frozen, config)
    assert figures["leak_cosine"]["mean"] == pytest.approx(1, abs=0.02)
    assert figures["reconstruction_cosine"]["mean"] == pytest.approx(1, abs=0.02)
    assert figures["landmark_error"] < 0.1
    assert figures["identity_cosine"]["mean"] == pytest.approx(figures["random_cosine"]["mean"], abs=0.02)
