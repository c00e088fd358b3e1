"""The training loop: losses fall, a resumed run equals one that never stopped, interruptions save."""

import json
from dataclasses import asdict, replace

import cv2
import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.trainer import checkpoint, fit
from fid.trainer.data import FrozenNetworks
from fid.trainer.evaluate import EvaluateConfig, evaluate
from fid.trainer.networks import AttributeEncoder, Mapper, WDiscriminator
from rich.console import Console

TINY = fit.FitConfig(steps=4, warm_steps=1, self_batch=3, cross_batch=2, cross_every=1)


@pytest.fixture
def generator(frozen, tmp_path):
    run = tmp_path / "g128"
    checkpoint.save(run, 1, checkpoint.tensors_of("synthesis", frozen.synthesis), {}, {"kind": "distill"})
    return run


def quiet() -> Console:
    return Console(quiet=True)


def test_networks_have_the_sizes_that_the_bundle_promises():
    crop = torch.zeros(2, 3, 256, 256)
    code = AttributeEncoder()(crop)
    assert code.shape == (2, 512)
    w = Mapper()(torch.zeros(2, 128), code)
    assert w.shape == (2, 512)
    assert WDiscriminator()(w).shape == (2,)
    assert fit.parameter_counts() == {"E_attr": 5_820_160, "M": 3_280_384}


def test_encoder_averages_256_px_to_128_px():
    torch.manual_seed(0)
    encoder = AttributeEncoder().eval()
    crop = torch.rand(1, 3, 256, 256) * 2 - 1
    torch.testing.assert_close(encoder(crop), encoder(torch.nn.functional.avg_pool2d(crop, 2)))


def test_the_warm_start_learns_one_batch(frozen):
    faces = frozen.draw(4, 0.8, torch.Generator().manual_seed(3))
    config = replace(TINY, steps=40, warm_steps=40, self_batch=4)
    loop = fit.FitLoop(config, frozen, faces, torch.device("cpu"))
    values = [loop.step()["w"] for _ in range(25)]
    assert sum(values[-5:]) < 0.7 * sum(values[:5])


def test_a_resumed_run_is_bit_equal(frozen, tmp_path):
    faces = frozen.draw(6, 0.8, torch.Generator().manual_seed(3))

    def loop():
        return fit.FitLoop(TINY, frozen, faces, torch.device("cpu"))

    straight, stopped = loop(), loop()
    figures = [straight.step() for _ in range(4)]
    assert set(figures[3]) == {"w", "probe", "identity", "landmarks", "colour", "adversarial", "discriminator"}
    stopped.step()
    stopped.step()
    saved = stopped.save(tmp_path, {})
    resumed = loop()
    resumed.restore(saved)
    assert [resumed.step() for _ in range(2)] == figures[2:]
    for name in ("networks", "average", "discriminator"):
        mine, theirs = getattr(resumed, name).state_dict(), getattr(straight, name).state_dict()
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs), name


def test_the_probe_finds_a_linear_map_and_cross_steps_come_every_so_often(frozen):
    generator = torch.Generator().manual_seed(0)
    w = frozen.w_mean + frozen.w_std * torch.randn(1200, 512, generator=generator)
    slopes = torch.randn(512, 6, generator=generator) / 100
    landmarks = (((w - frozen.w_mean) / frozen.w_std) @ slopes * 256 + 100).reshape(-1, 3, 2)
    empty = torch.zeros(1200, 1)
    probe = fit.landmark_probe(fit.Faces(w, empty, empty, landmarks), frozen, ridge=1e-6)
    torch.testing.assert_close(probe, slopes, atol=1e-5, rtol=1e-3)

    faces = frozen.draw(6, 0.8, torch.Generator().manual_seed(3))
    loop = fit.FitLoop(replace(TINY, cross_every=2), frozen, faces, torch.device("cpu"))
    assert ["identity" in loop.step() for _ in range(3)] == [False, False, True]


def test_a_nan_stops_before_the_weights_are_touched(frozen):
    faces = frozen.draw(4, 0.8, torch.Generator().manual_seed(3))
    faces.w[:] = float("nan")
    loop = fit.FitLoop(TINY, frozen, faces, torch.device("cpu"))
    before = loop.networks.mapper.layers[0].weight.clone()
    with pytest.raises(FidError, match="the loss is not finite at step 0"):
        loop.step()
    assert torch.equal(before, loop.networks.mapper.layers[0].weight)


def test_fit_online_stops_on_time_and_resumes(generator, frozen, tmp_path, monkeypatch):
    def load(synthesis, device):
        assert all(
            torch.equal(a, b) for a, b in zip(synthesis.parameters(), frozen.synthesis.parameters(), strict=True)
        )
        return frozen

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
    assert written == {"run.json", "grid_000000.png", "grid_000002.png", "step_000000", "step_000002"}
    picture = cv2.imread(str(tmp_path / "run/grid_000002.png"))
    assert picture.shape == (6 * 128, 6 * 128, 3)
    networks = fit.load_trained(last)
    assert not networks.training


def test_a_generator_is_needed_below_1024_px():
    with pytest.raises(InputError, match="name a `fid-train distill` checkpoint with --generator"):
        fit.load_generator(None, 128)


def test_evaluation_of_a_perfect_and_of_a_constant_mapper(frozen):
    class Perfect(fit.Trainable):
        """Answers with the w of the attribute image: reconstruction is exact, the leak is total."""

        def forward(self, identity, crop):
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
