"""A StyleGAN2 file of the user's becomes a bundle that the runtime composes with, through the commands themselves."""

import json
from dataclasses import replace

import cv2
import fid.runtime.commands.cli
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fid.export import cli
from fid.export.read import W_DISTANCE, read_networks, w_distance
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.errors import FidError, InputError
from fid.runtime.weights.bundle import Bundle
from fid.trainer.networks.mobilestylegan import Mapping
from fid.trainer.personalize import bundle_networks
from fid.trainer.weights.generator import read_generator
from tiny import tiny_networks
from tiny_stylegan2 import random_weights, write_nvidia, write_rosinality

CHANNELS = (24, 16, 8)  # of a generator of 16 px


@pytest.fixture(scope="module")
def mapping(fetched):
    return Mapping.load(fetched("generator"))


@pytest.fixture(scope="module")
def file(mapping, tmp_path_factory):
    """A random synthesis network under the fetched mapping network, whose W is what the shipped mapper knows."""
    weights = random_weights(CHANNELS)
    for i, layer in enumerate(mapping.layers):
        weights[f"mapping.fc{i}.weight"] = layer.weight * (512**0.5 / 0.01)
        weights[f"mapping.fc{i}.bias"] = layer.bias / 0.01
    return write_nvidia(tmp_path_factory.mktemp("files") / "g.pkl", weights)


@pytest.fixture(scope="module")
def exported(file, tmp_path_factory):
    """The bundle, and what the command printed. A small attribute encoder saves most of the time."""

    def small(*arguments):
        return replace(read_networks(*arguments), attributes=tiny_networks().attributes)

    folder = tmp_path_factory.mktemp("export") / "bundle"
    arguments = ["--generator", str(file), "-o", str(folder), "--name", "mine", "--threads", "1", "--faces", "24"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fid.export.read.read_networks", small)
        result = CliRunner().invoke(cli.command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Bundle.load(folder), result.output


def test_the_bundle_says_where_its_generator_is_from(exported, file):
    bundle, output = exported
    assert "g.pkl (NVIDIA, PyTorch, 16 px): its W is 0.0" in output
    assert bundle.resolution == 16
    assert set(bundle.graphs) == {"attributes", "mapper", "synthesis", "reenact", "mapping", "identity", "controls"}
    origin = bundle.provenance["generator"]
    assert origin["file"] == "g.pkl"
    assert origin["layout"] == "NVIDIA, PyTorch"
    assert origin["w_distance"] < 0.05
    assert "which the user brought" in bundle.provenance["licences"]["generator"]
    for graph in ("synthesis", "reenact", "mapping"):
        parity = bundle.parity[graph]
        assert parity["max"] <= parity["tolerance"]["max"]
        assert parity["inputs"] == 32


def test_the_runtime_composes_with_it(exported, file, tmp_path):
    bundle, _ = exported
    faces = [str(FACES / name) for name in ("identity-ada.jpg", "attributes-laughing.jpg")]
    arguments = ["compose", "--bundle", str(bundle.folder), "--identity", faces[0], "--attributes", faces[1]]
    result = CliRunner().invoke(fid.runtime.commands.cli.main, [*arguments, "-o", str(tmp_path / "out.png"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["resolution"] == 16
    picture = cv2.imread(str(tmp_path / "out.png"))[..., ::-1]
    composer = Composer(bundle)
    identity, attributes = composer.identify(faces[0]), composer.attribute_code(composer.crop(faces[1]))
    w = torch.from_numpy(composer.w(identity, attributes))[None]
    image = read_generator(file).synthesis(w)[0].permute(1, 2, 0)
    expected = ((image + 1) * 127.5).round().clamp(0, 255).numpy()
    apart = np.abs(picture.astype(int) - expected)
    assert apart.mean() < 1, f"max {apart.max()}, mean {apart.mean()}"  # FP16 weights
    arguments = ["sample", "--bundle", str(bundle.folder), "--count", "1", "-o", str(tmp_path / "people")]
    assert CliRunner().invoke(fid.runtime.commands.cli.main, arguments).exit_code == 0


def test_there_is_no_other_resolution_of_a_users_generator(exported):
    with pytest.raises(InputError, match="no resolution 1024; this bundle composes at 16"):
        Composer(exported[0], resolution=1024)
    with pytest.raises(InputError, match="name the run that it was exported from with --checkpoint"):
        bundle_networks(Composer(exported[0]), torch.device("cpu"))


def test_a_generator_with_another_w_is_refused(mapping, tmp_path):
    path = write_rosinality(tmp_path / "other.pt", random_weights(CHANNELS))
    with pytest.raises(InputError, match="train a mapper with `fid-train --generator") as raised:
        read_networks(None, path)
    assert "standard deviations apart, at most 0.5" in str(raised.value)
    shipped = read_networks(None, None)
    assert w_distance(shipped.mapper, mapping) < 0.05 < W_DISTANCE
    assert shipped.mapping is None


def test_resolutions(file):
    assert read_networks(None, file, 8, noise=False).resolution == 8
    with pytest.raises(InputError, match="cannot be averaged down to 256 px"):
        read_networks(None, file, 256)
    assert read_networks(None, None, 256).resolution == 256
    with pytest.raises(
        InputError, match=r"no 512 px in the shipped weights, which make 256 px; name a StyleGAN or StyleGAN2 file"
    ):
        read_networks(None, None, 512)
    assert read_networks(None, None, 1024).synthesis.resolution == 1024


def test_a_malicious_file_is_one_sentence(tmp_path, capsys, monkeypatch):
    (tmp_path / "g.pkl").write_bytes(b"\x80\x04cos\nsystem\n\x8c\x0btouch OWNED\x85R.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fid-export", "--generator", "g.pkl", "-o", "out"])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == FidError.exit_code
    assert capsys.readouterr().err == (
        "fid-export: g.pkl is refused: it calls os.system, and files of weights need no such thing.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["g.pkl"]
