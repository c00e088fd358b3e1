"""The FP16 gate: what it measures, what it catches, and which layers it keeps FP32."""

import numpy as np
import onnx
import pytest
import styled
import torch
from fid.export.fp16 import gate as gates
from fid.export.fp16.convert import FP16Model, to_fp16
from fid.export.fp16.emulate import open_emulated
from fid.export.fp16.gate import COSINE, PSNR_DB, Figures, fewest, gate, gate_inputs, latent_names
from fid.runtime.engines.compare import psnr_db
from fid.runtime.engines.open import open_session
from fid.runtime.errors import InputError
from fid.trainer.networks.mobilestylegan import Mapping
from tiny import N_STYLES, tiny_networks

COUNT = 8  # inputs; what the exporter takes at least is tested by itself
LARGE = 300.0  # of styles: their squares, weighed and summed, are past 65504


def latents() -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(1).standard_normal((COUNT, 512)).astype(np.float32)}


@pytest.mark.parametrize("count", [1, 2, 7, 32, 33])
def test_the_fewest_layers_are_found_in_few_trials(count):
    rng = np.random.default_rng(count)
    layers = [f"layer {i}" for i in range(count)]
    for size in {0, 1, min(2, count), min(3, count)}:
        culprits = set(rng.choice(layers, size, replace=False).tolist())
        trials = []

        def passes(kept, culprits=culprits, trials=trials):
            trials.append(kept)
            return culprits <= set(kept)

        assert set(fewest(layers, passes)) == culprits
        assert len(trials) <= 2 * size * (np.log2(count / max(size, 1)) + 2) + 1


def test_either_of_two_layers_is_enough_and_one_is_taken():
    assert len(fewest(list("abcdefgh"), lambda kept: "c" in kept or "f" in kept)) == 1


def test_all_layers_when_nothing_less_will_do():
    assert fewest(list("abc"), lambda kept: len(kept) == 3) == tuple("abc")


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        (Figures(60, 45.0, 1, 0.999), None),
        (Figures(60, 44.9, 1, 1), "the worst picture has 44.9 dB"),
        (Figures(60, 50, 1, 0.9989), "the worst identity cosine is 0.99890"),
        (Figures(cosine_mean=1, cosine_worst=0.99), "the worst code cosine is 0.99000"),
        (Figures(cosine_mean=1, cosine_worst=float("nan")), "the worst code cosine is nan"),
        (Figures(cosine_mean=1, cosine_worst=0.9995), None),
    ],
)
def test_thresholds(figures, fault):
    assert figures.fault is None if fault is None else figures.fault.startswith(fault)
    assert (PSNR_DB, COSINE) == (45, 0.999)


def test_a_sound_graph_passes(tmp_path):
    model = styled.synthesis(tmp_path, LARGE)
    verdict = gate(model, tmp_path / "synthesis.onnx", styled.SYNTHESIS, latents(), threads=1)
    assert verdict is not None
    assert verdict.reason is None
    assert verdict.kept_fp32 == ()
    assert verdict.model.layers == styled.LAYERS
    assert verdict.inputs == COUNT
    assert verdict.figures.psnr_worst_db > PSNR_DB
    record = verdict.to_json()
    assert record["psnr_worst_db"] <= record["psnr_mean_db"]
    assert record["identity_cosine_worst"] <= record["identity_cosine_mean"] <= 1 + 1e-6
    worst = verdict.hardest[0]
    expected = open_session(tmp_path / "synthesis.onnx", engine="onnxruntime", threads=1).run(**latents())["image"]
    assert psnr_db(verdict.outputs, expected)[worst] == pytest.approx(record["psnr_worst_db"])


def broken_converter(name: str, folder):
    """As `to_fp16`, but the demodulation of one layer goes FP16 with it, as long as the layer does."""

    def convert(model: onnx.ModelProto, kept=()) -> FP16Model:
        folder.mkdir(exist_ok=True)
        wrong = styled.synthesis(folder, LARGE, broken=() if name in kept else (name,))
        return to_fp16(wrong, kept)

    return convert


def test_demodulation_in_fp16_is_finite_and_wrong_and_hidden_by_the_plain_engine(tmp_path):
    styled.synthesis(tmp_path, LARGE)
    fp32 = open_session(tmp_path / "synthesis.onnx", engine="onnxruntime", threads=1).run(**latents())["image"]
    broken = broken_converter("g.conv1", tmp_path / "broken")(None).model
    onnx.save(broken, tmp_path / "typed.onnx")
    plain = open_session(tmp_path / "typed.onnx", engine="onnxruntime", threads=1).run(**latents())["image"]
    assert psnr_db(plain, fp32).min() > PSNR_DB
    real = open_emulated(styled.with_picture(broken), 1).run(**latents())
    assert np.isfinite(real["picture"]).all()  # rsqrt(inf) is 0: the layer gives its noise and its bias, no NaN
    assert psnr_db(real["image"], fp32).max() < 30


def test_the_layer_with_broken_demodulation_is_caught_and_kept_fp32(tmp_path, monkeypatch):
    model = styled.synthesis(tmp_path, LARGE)
    monkeypatch.setattr(gates, "to_fp16", broken_converter("g.conv1", tmp_path / "broken"))
    verdict = gate(model, tmp_path / "synthesis.onnx", styled.SYNTHESIS, latents(), threads=1)
    assert verdict is not None
    assert verdict.first.fault is not None
    assert "dB" in verdict.first.fault
    assert verdict.kept_fp32 == ("g.conv1",)
    assert verdict.model.layers == ("g.conv0", "g.conv2")
    assert verdict.figures.fault is None
    assert verdict.reason is None


def test_a_graph_that_cannot_be_mended_stays_fp32_with_the_reason(tmp_path, monkeypatch):
    model = styled.synthesis(tmp_path, LARGE)

    def convert(model, kept=()):
        wrong = styled.synthesis(tmp_path / "broken", LARGE, broken=("g.conv0",))  # whatever is kept FP32
        return to_fp16(wrong, kept)

    (tmp_path / "broken").mkdir()
    monkeypatch.setattr(gates, "to_fp16", convert)
    verdict = gate(model, tmp_path / "synthesis.onnx", styled.SYNTHESIS, latents(), threads=1)
    assert verdict is not None
    assert verdict.reason is not None
    assert "dB" in verdict.reason
    assert "no choice of FP32 layers mends it" in verdict.reason


def test_codes_are_compared_by_direction(tmp_path):
    model = styled.encoder(tmp_path)
    crops = {"crop": np.random.default_rng(2).integers(0, 256, (COUNT, 256, 256, 3), np.uint8)}
    verdict = gate(model, tmp_path / "encoder.onnx", styled.ENCODER, crops, threads=1)
    assert verdict is not None
    assert verdict.figures.psnr_mean_db is None
    assert COSINE <= verdict.figures.cosine_worst <= verdict.figures.cosine_mean


def test_a_graph_without_convolutions_needs_no_verdict(tmp_path):
    model = styled.encoder(tmp_path)
    del model.graph.node[:]
    assert gate(model, tmp_path / "encoder.onnx", styled.ENCODER, {}) is None


def test_latents_are_at_psi_1_and_at_4_sigma():
    inputs = gate_inputs(tiny_networks(), 64)
    w_plus, names = inputs["w_plus"], latent_names(64)
    assert w_plus.shape == inputs["w_plus_offset"].shape == (64, N_STYLES, 512)
    w = w_plus[:, -1]
    assert inputs["crop"].shape == (64, 256, 256, 3)
    assert np.allclose(np.linalg.norm(inputs["identity"], axis=1), 1, atol=1e-5)
    assert names[0] == "psi 1, latent 1"
    assert names[48:51] == ["+4 sigma along axis 1 of W", "-4 sigma along axis 1 of W", "+4 sigma along axis 2 of W"]
    own = Mapping.load()(torch.randn(2048, 512, generator=torch.Generator().manual_seed(9))).detach().numpy()
    for i in range(48, 64, 2):
        axis = w[i] - w[i + 1]
        length = np.linalg.norm(axis)
        along = (own - own.mean(0)) @ (axis / length)
        assert length / along.std() == pytest.approx(8, rel=0.1)  # +4 sigma to -4 sigma
        assert (w[i] + w[i + 1]) / 2 == pytest.approx(own.mean(0), abs=0.1)


def test_too_few_inputs_do_not_count():
    with pytest.raises(InputError, match="at least 64"):
        gate_inputs(tiny_networks(), 63)
