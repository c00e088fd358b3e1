"""Generators of every published layout become the same networks; broken and malicious files are one sentence.

`inversion_golden.json` holds pixels of inversion networks' own code, given the weights of `tiny_stylegan2`, the z of
`Z` and a W+: pSp of eladrich/pixel2style2pixel 5cfff38, of omertov/encoder4editing 99ea505 and of
yuval-alaluf/restyle-encoder 5e80276, and the last one's e4e, all with `randomize_noise=False`, with fewer channels and
with the two CUDA kernels done by PyTorch. Kept are the first numbers of w and 16 places of every channel.
"""

import contextlib
import json
import os
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.runtime.weights.cache import sha256
from fid.trainer.networks.stylegan2 import mapping_from, synthesis_from
from fid.trainer.weights.generator import read_generator
from fid.trainer.weights.user_file import TENSORFLOW_INDEX
from safetensors.torch import save_file
from tiny_stylegan2 import (
    CHANNELS,
    random_weights,
    rosinality_names,
    write_nvidia,
    write_rosinality,
    write_tensorflow,
)

GOLDEN = json.loads(Path(__file__).with_name("inversion_golden.json").read_text())
INVERTED = (16, 16, 12, 12, 8, 8, 6)  # their channels at 4, 8, ... px
Z = torch.from_numpy(np.random.RandomState(11).standard_normal((2, 512)).astype(np.float32))


@pytest.fixture(scope="module")
def weights():
    return random_weights()


@pytest.fixture(scope="module")
def expected(weights):
    """Of the mapping and of the synthesis, the state that every layout has to give."""
    parts = {
        part: {n.removeprefix(f"{part}."): v for n, v in weights.items() if n.startswith(f"{part}.")}
        for part in ("mapping", "synthesis")
    }
    parts["mapping"].pop("w_avg")
    return mapping_from(parts["mapping"]).state_dict(), synthesis_from(parts["synthesis"]).state_dict()


def save_safetensors(path, weights):
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, path)
    return path


LAYOUTS = {
    "NVIDIA, PyTorch": lambda path, weights: write_nvidia(path, weights),
    "NVIDIA, TensorFlow": lambda path, weights: write_tensorflow(path, weights),
    "rosinality": lambda path, weights: write_rosinality(path, weights),
    "rosinality, old torch.save": lambda path, weights: write_rosinality(path, weights, legacy=True),
    "safetensors of NVIDIA's names": lambda path, weights: save_safetensors(path, weights),
    "safetensors of rosinality's": lambda path, weights: save_safetensors(
        path, {f"g_ema.{name}": value for name, value in rosinality_names(weights).items()}
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_networks(layout, weights, expected, tmp_path):
    path = LAYOUTS[layout](tmp_path / "any.name", weights)
    generator = read_generator(path)
    for network, state in zip((generator.mapping, generator.synthesis), expected, strict=True):
        got = network.state_dict()
        assert got.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
        assert not any(p.requires_grad for p in network.parameters())
        assert not network.training
    assert generator.origin == {
        "kind": "StyleGAN2",
        "file": "any.name",
        "sha256": sha256(path),
        "layout": {"rosinality, old torch.save": "rosinality", "safetensors of rosinality's": "rosinality"}.get(
            layout, "NVIDIA's names" if "names" in layout else layout
        ),
        "native_resolution": 32,
        "resolution": 32,
        "noise": "constant",
    }
    assert generator.synthesis(generator.mapping(Z)).shape == (2, 3, 32, 32)


def write_inversion(path, weights, begin="decoder."):
    """A checkpoint of pSp, e4e or ReStyle: encoder, generator and mean w in one file, with what training needs to go
    on."""
    state = {f"{begin}{name}": value for name, value in rosinality_names(weights).items()}
    state["encoder.input_layer.0.weight"] = torch.zeros(64, 3, 3, 3)
    content = {"state_dict": state, "latent_avg": torch.zeros(10, 512), "opts": {"stylegan_size": 32, "batch": 8}}
    optimizer = {"state": {0: {"step": 1, "slow_buffer": torch.zeros(3)}}, "param_groups": [{"betas": (0.95, 0.999)}]}
    torch.save({**content, "optimizer": optimizer, "best_val_loss": torch.tensor(1.0), "global_step": 1}, path)
    return path


@pytest.mark.parametrize("name", GOLDEN)
def test_pictures_are_those_of_the_inversion_networks_own_code(name, tmp_path):
    golden, side = GOLDEN[name], int(name.split("-")[-1])
    weights = random_weights(INVERTED[: side.bit_length() - 2])
    generator = read_generator(write_inversion(tmp_path / "g.pt", weights))
    synthesis = generator.synthesis
    w_plus = np.random.RandomState(12).standard_normal((1, synthesis.n_styles, 512)).astype(np.float32)
    with torch.no_grad():
        w = generator.mapping(Z)
        image = torch.cat((synthesis(w), synthesis(torch.from_numpy(w_plus))))
    torch.testing.assert_close(w[0, :8], torch.tensor(golden["w"]), atol=2e-5, rtol=1e-5)
    y, x = np.random.RandomState(1).randint(0, side, (16, 2)).T
    apart = (image[:, :, y, x].flatten(0, 1) - torch.tensor(golden["pixels"])).abs() / golden["std"]
    # float32 through up to 14 layers, relative to the deviation of these pictures of random weights
    assert apart.max() < 1e-4, f"max {apart.max():.2g}, mean {apart.mean():.2g}"


@pytest.mark.parametrize("begin", ["decoder.", "module.decoder."])
def test_the_generator_of_an_inversion_network_is_read(begin, weights, expected, tmp_path):
    generator = read_generator(write_inversion(tmp_path / "psp_ffhq_encode.pt", weights, begin))
    assert generator.origin["layout"] == "rosinality"
    for network, wanted in zip((generator.mapping, generator.synthesis), expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(network.state_dict()[name], value, atol=1e-6, rtol=1e-6)


def test_a_module_of_several_gpus_is_read(weights, expected, tmp_path):
    names = {f"module.{name}": value for name, value in rosinality_names(weights).items()}
    torch.save({"g_ema": names}, tmp_path / "several.pt")
    found = read_generator(tmp_path / "several.pt").synthesis.state_dict()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected[1].items())


def test_a_conditional_one_is_refused_by_its_reason(weights, tmp_path):
    conditional = {
        **weights,
        "mapping.embed.weight": torch.zeros(512, 10),
        "mapping.embed.bias": torch.zeros(512),
        "mapping.fc0.weight": torch.zeros(512, 1024),  # z beside the label's code
    }
    with pytest.raises(InputError, match="wants a class label"):
        read_generator(save_safetensors(tmp_path / "conditional.safetensors", conditional))


def test_options_of_the_files(weights, tmp_path):
    clamped = read_generator(write_nvidia(tmp_path / "ada.pkl", weights, conv_clamp=256)).synthesis
    assert {block.conv1.clamp for block in clamped.blocks} == {256.0}
    shallow = random_weights(CHANNELS, layers=2)
    assert len(read_generator(write_nvidia(tmp_path / "shallow.pkl", shallow)).mapping.layers) == 2
    rate = read_generator(write_tensorflow(tmp_path / "rate.pkl", weights, mapping_lrmul=0.02)).mapping
    torch.testing.assert_close(rate.layers[0].bias, weights["mapping.fc0.bias"] * 0.02)


def test_resolution_and_noise_are_chosen(weights, tmp_path):
    path = write_rosinality(tmp_path / "g.pt", weights)
    generator = read_generator(path, 16, noise=False)
    assert generator.synthesis(Z).shape == (2, 3, 16, 16)
    assert generator.origin["noise"] == "none"
    assert generator.origin["resolution"] == 16
    with pytest.raises(InputError, match="makes images of 32 px, which cannot be averaged down to 256 px"):
        read_generator(path, 256)
    silent = {name: value for name, value in weights.items() if "noise" not in name}
    assert read_generator(save_safetensors(tmp_path / "silent", silent)).origin["noise"] == "none"


def changed(weights, **changes):
    """The weights with some replaced, or left out where the change is None; `__` stands for a dot."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in {**weights, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"synthesis__b8__torgb__bias": None}, FidError, r"it lacks synthesis\.b8\.torgb\.bias"),
        ({"mapping__fc3__bias": torch.zeros(3)}, FidError, r"it has mapping\.fc3\.bias as \[3\], expected \[512\]"),
        ({"mapping__fc3__bias": torch.full((512,), torch.nan)}, FidError, "numbers that are not finite"),
        ({"mapping__fc3__bias": torch.zeros(512, dtype=torch.int32)}, FidError, "int32, expected floating point"),
        ({"mapping__fc0__weight": torch.zeros(512, 64)}, InputError, "fid works with 512 numbers"),
        ({"synthesis__b4__const": None}, InputError, "holds no StyleGAN generator"),
        ({"synthesis__b8__resample_filter": torch.ones(2, 2)}, FidError, r"expected \[4, 4\]"),
        ({"synthesis__b4__torgb__weight": torch.zeros(1, 24, 1, 1)}, FidError, r"expected \[3, 24, 1, 1\]"),
    ],
)
def test_weights_that_do_not_fit(weights, tmp_path, changes, kind, sentence):
    path = save_safetensors(tmp_path / "g.safetensors", changed(weights, **changes))
    with pytest.raises(kind, match=sentence) as raised:
        read_generator(path)
    assert type(raised.value) is kind
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"architecture": "resnet"}, "has the architecture 'resnet': fid reads 'skip'"),
        ({"activation": "relu"}, "has the activation 'relu'"),
        ({"c_dim": 10}, "wants a class label"),
        ({"conv_clamp": "much"}, "has an option that is no number"),
    ],
)
def test_other_generators_of_nvidia(weights, tmp_path, attributes, sentence):
    with pytest.raises(FidError, match=sentence):
        read_generator(write_nvidia(tmp_path / "g.pkl", weights, **attributes))


def test_stylegan3_and_one_with_labels_are_told_by_name(tmp_path):
    third = {"synthesis.input.weight": torch.zeros(2), "mapping.fc0.weight": torch.zeros(512, 512)}
    with pytest.raises(InputError, match="holds StyleGAN3"):
        read_generator(write_nvidia(tmp_path / "third.pkl", third))
    labelled = write_tensorflow(tmp_path / "labels.pkl", random_weights((8,)), label_size=3)
    with pytest.raises(InputError, match="wants a class label"):
        read_generator(labelled)


class Attack:
    """Runs a command when unpickled by Python."""

    def __reduce__(self):
        return os.system, ("touch OWNED",)


def test_malicious_files_are_refused_in_one_sentence(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"G_ema": Attack()}))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps((None, None, [Attack()])))
    torch.save({"g_ema": rosinality_names(weights), "args": Attack()}, tmp_path / "c.pt")
    torch.save({"g_ema": Attack()}, tmp_path / "d.pt", _use_new_zipfile_serialization=False)
    torch.save({"g_ema": {"input.input": torch.zeros(1).expand(1 << 40)}}, tmp_path / "e.pt")
    torch.save({"args": Namespace(a=Attack())}, tmp_path / "f.pt")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(FidError, match="is refused: it") as raised:
            read_generator(path)
        assert str(raised.value).count("\n") == 0
        assert raised.value.exit_code == 1
    assert not (tmp_path / "OWNED").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_broken_files_are_one_sentence(layout, tmp_path):
    whole = LAYOUTS[layout](tmp_path / "g", random_weights((8, 8), layers=1)).read_bytes()
    random = np.random.default_rng(0)
    for end in [*range(0, 64, 7), *random.integers(64, len(whole), 12), len(whole) - 1]:
        (tmp_path / "g").write_bytes(whole[:end])
        with pytest.raises(FidError):
            read_generator(tmp_path / "g")
    for _ in range(12):
        data = bytearray(whole)
        for place in random.integers(0, min(len(whole), 3000), 4):
            data[place] ^= 1 << random.integers(8)
        (tmp_path / "g").write_bytes(data)
        with contextlib.suppress(FidError):
            read_generator(tmp_path / "g")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no file"),
        (b"short", "has 5 bytes and so is none of what is expected"),
        (b"a text file about something else", "is of no known kind"),
        (bytes(40) + TENSORFLOW_INDEX, "is part of a TensorFlow checkpoint, and fid reads the .h5 of Keras"),
        (pickle.dumps({"weights": [1, 2, 3]}), "holds no StyleGAN generator"),
        (pickle.dumps(["a list of several words"]), "holds no StyleGAN generator"),
    ],
)
def test_files_of_another_kind(content, sentence, tmp_path):
    if content is not None:
        (tmp_path / "g.pkl").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_generator(tmp_path / "g.pkl")
