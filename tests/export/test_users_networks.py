"""A bundle of networks that are not the usual ones: identity encoders of the user's, their codes and name, identities
of other bundles refused; and a mapper that answers in W+."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fid.export.graphs import IdentityGraph
from fid.export.read import read_networks
from fid.export.to_bundle import ExportConfig, export_bundle
from fid.export.triton import write_repository
from fid.export.web.site import write_site
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.engines.compare import trial_inputs
from fid.runtime.errors import FidError, InputError
from fid.runtime.identity import encoder_name
from fid.runtime.weights.bundle import Bundle
from fid.trainer import personalize
from fid.trainer.evaluate.run import bundle_encoder
from fid.trainer.networks.trained import Mapper
from fid.trainer.networks.vggface2 import JoinedEncoder
from fid.trainer.pixels import Placement, from_uint8
from fid.trainer.weights import checkpoint
from fid.trainer.weights.identity import IdentityEncoder, check_identity_encoder
from tiny import N_STYLES, tiny_networks
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
    mapper = Mapper(512, N_STYLES, width=24, appearance=4, identity_size=encoder.code_size).eval()
    origin = {"identity_encoder": {"kind": "two tiny ones", "code_size": 40}}
    return replace(tiny, mapper=mapper, identity=encoder, provenance=tiny.provenance | origin)


@pytest.fixture(scope="module")
def composer(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "bundle"
    return Composer(export_bundle(networks, folder, ExportConfig(threads=1)), engine="onnxruntime", threads=1)


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


def test_the_bundle_composes_with_a_w_for_every_style(networks, composer):
    bundle = composer.bundle
    assert bundle.maps_to_w_plus
    assert bundle.graph("mapper").outputs[0].shape == ("batch", N_STYLES, 512)
    assert {"mapper", "reenact"} <= bundle.parity.keys()
    identity = composer.identify(FACES / "identity-ada.jpg")
    crop = composer.crop(FACES / "attributes-laughing.jpg")
    attributes = composer.attribute_code(crop)
    w = composer.w(identity, attributes)
    with torch.no_grad():
        codes = (identity.code, attributes, identity.appearance)
        expected = networks.mapper(*(torch.from_numpy(code)[None] for code in codes))[0]
    np.testing.assert_allclose(w, expected, atol=0.02)  # FP16 weights
    assert not np.allclose(w[0], w[1], atol=0.1)
    apart = composer.image(w).astype(int) - composer.reenact(crop, identity)
    assert np.abs(apart).max() <= 1
    moved = replace(identity, w_plus_offset=np.full((1, 512), 0.5, np.float32))
    np.testing.assert_allclose(composer.w(moved, attributes), w + 0.5, atol=1e-5)
    path = bundle.graph_path("synthesis")
    assert trial_inputs(composer._session("synthesis"), path)["w_plus"].shape[1:] == (N_STYLES, 512)


def test_what_begins_from_one_w_says_so(composer, tmp_path):
    with pytest.raises(InputError, match=r"maps into W\+, and Triton is given mappers into W"):
        write_repository(composer.bundle, tmp_path / "triton")
    with pytest.raises(InputError, match=r"maps into W\+, and the page computes with mappers into W"):
        write_site(composer.bundle, tmp_path / "site")
    with pytest.raises(InputError, match=r"answers in W\+, and personalising begins from one w"):
        personalize._networks(Mapper(n_styles=2), torch.nn.Identity(), torch.nn.Identity(), None, torch.device("cpu"))
    assert not list(tmp_path.iterdir())
    record = composer.bundle.to_json()
    graphs = {**record["graphs"], "refine": record["graphs"]["mapper"]}
    with pytest.raises(FidError, match=r"refine begins in W, and its mapper answers in W\+"):
        Bundle.from_json(json.dumps({**record, "graphs": graphs}), tmp_path)
