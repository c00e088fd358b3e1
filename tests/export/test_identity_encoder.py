"""A bundle with an identity encoder of the user's: its codes, its name; identities of other bundles are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fid.export.graphs import IdentityGraph
from fid.export.read import read_networks
from fid.export.to_bundle import ExportConfig, export_bundle
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.errors import InputError
from fid.runtime.identity import encoder_name
from fid.trainer import personalize
from fid.trainer.evaluate.run import bundle_encoder
from fid.trainer.networks.trained import Mapper
from fid.trainer.networks.vggface2 import JoinedEncoder
from fid.trainer.pixels import Placement, from_uint8
from fid.trainer.weights import checkpoint
from fid.trainer.weights.identity import IdentityEncoder, check_identity_encoder
from tiny import tiny_networks
from torch import Tensor, nn


class TinyEncoder(nn.Module):
    """Crop [N, 3, S, S] in [-1, 1] -> unit codes [N, 20], called as `VGGFace2` is."""

    code_size = 20

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.placement = Placement(16, 16 / 200, (-2.0, -2.0))
        self.conv, self.out = nn.Conv2d(3, 8, 3, 2), nn.Linear(8 * 49, 20)

    def raw_code(self, face: Tensor) -> Tensor:
        return self.out(torch.relu(self.conv(face / 255)).flatten(1))

    def forward(self, crop: Tensor) -> Tensor:
        return nn.functional.normalize(self.raw_code(self.placement(crop) * 127.5 + 127.5), dim=1)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(3)
    encoder = JoinedEncoder([TinyEncoder(1), TinyEncoder(2)]).eval().requires_grad_(False)
    tiny = tiny_networks()
    mapper = Mapper(512, width=24, identity_size=encoder.code_size).eval()
    origin = {"identity_encoder": {"kind": "two tiny ones", "code_size": 40}}
    return replace(tiny, mapper=mapper, identity=encoder, provenance=tiny.provenance | origin)


@pytest.fixture(scope="module")
def composer(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "bundle"
    return Composer(export_bundle(networks, folder, ExportConfig(threads=1)), threads=1)


def test_the_graph_computes_what_the_network_does(networks):
    crop = np.random.RandomState(0).randint(0, 256, (2, 256, 256, 3)).astype(np.uint8)
    graph = IdentityGraph(networks.identity)
    torch.testing.assert_close(graph(torch.from_numpy(crop)), networks.identity(from_uint8(crop)))
    assert graph.outputs[0].shape == ("batch", 40)


def test_the_bundle_holds_its_encoder_and_follows_its_size(composer):
    bundle = composer.bundle
    assert bundle.identity_size == 40
    assert bundle.graph("identity").file == "identity.onnx"
    assert encoder_name(bundle).startswith("sha256:")
    assert bundle.provenance["identity_encoder"]["kind"] == "two tiny ones"
    assert {"identity", "mapper", "reenact"} <= bundle.parity.keys()
    identity = composer.set_identity(FACES / "identity-ada.jpg")
    assert identity.code.shape == (40,)
    assert composer.compose(FACES / "attributes-laughing.jpg").shape == (256, 256, 3)


def test_identity_files_of_another_encoder_are_refused(composer, toy_bundle, tmp_path):
    composer.identify(FACES / "identity-ada.jpg").save(tmp_path / "ada.npz")
    assert composer.identify(tmp_path / "ada.npz").code.shape == (40,)
    with pytest.raises(InputError, match="was made by the identity encoder sha256:"):
        Composer(toy_bundle).identify(tmp_path / "ada.npz")


def test_evaluation_takes_the_codes_of_the_bundle(composer):
    encoder = bundle_encoder(composer, None)
    assert encoder.name == "two tiny ones"
    crop = np.random.RandomState(0).randint(0, 256, (1, 256, 256, 3)).astype(np.uint8)
    np.testing.assert_allclose(encoder.network(from_uint8(crop))[0], composer.identity_code(crop[0]), atol=1e-6)
    with pytest.raises(InputError, match="has its identity encoder in it: leave --identity-encoder out"):
        bundle_encoder(composer, encoder)


def test_people_are_not_personalised_by_another_encoder(composer):
    with pytest.raises(InputError, match="has an identity encoder of its own: fid personalises people by SFace"):
        personalize.bundle_networks(composer, torch.device("cpu"))


def test_a_run_is_used_with_the_encoder_that_it_learnt_from(tmp_path):
    kept = {"kind": "fit", "configuration": {}, "identity_encoder": "VGGFace2 ResNet-50 00aa"}
    checkpoint.save(tmp_path / "run", 1, {"a": torch.zeros(1)}, {}, kept)
    with pytest.raises(InputError, match=r"VGGFace2 ResNet-50 00aa, not SFace: name its file with --identity-encoder"):
        check_identity_encoder(tmp_path / "run", None)
    same = IdentityEncoder(TinyEncoder(1), "VGGFace2 ResNet-50 00aa", {})
    check_identity_encoder(tmp_path / "run", same)
    checkpoint.save(tmp_path / "other", 1, {"a": torch.zeros(1)}, {}, {"kind": "fit", "configuration": {}})
    with pytest.raises(InputError, match="SFace, not VGGFace2 ResNet-50 00aa: name its run without"):
        check_identity_encoder(tmp_path / "other", same)


def test_the_shipped_mapper_takes_codes_of_sface_alone(tmp_path, monkeypatch):
    encoder = IdentityEncoder(TinyEncoder(1), "tiny", {})
    monkeypatch.setattr("fid.export.read.load_identity_encoder", lambda files: encoder)
    with pytest.raises(InputError, match="the shipped mapper knows codes of SFace"):
        read_networks(None, None, identity_encoder=[tmp_path])
