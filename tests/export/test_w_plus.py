"""A mapper that answers in W+ becomes a bundle that composes; what begins from one w says that it cannot."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fid.export.read import Networks
from fid.export.to_bundle import ExportConfig, export_bundle
from fid.export.triton import write_repository
from fid.export.web.site import write_site
from fid.runtime.assets import FACES
from fid.runtime.composer import Composer
from fid.runtime.engines.compare import trial_inputs
from fid.runtime.errors import FidError, InputError
from fid.runtime.weights.bundle import Bundle
from fid.trainer import personalize
from fid.trainer.networks.trained import Mapper
from tiny import N_STYLES, tiny_networks


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(3)
    return replace(tiny_networks(), mapper=Mapper(512, N_STYLES, width=24, appearance=4).eval())


@pytest.fixture(scope="module")
def composer(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plus") / "bundle"
    return Composer(export_bundle(networks, folder, ExportConfig(threads=1)), engine="onnxruntime", threads=1)


def test_the_bundle_composes_with_a_w_for_every_style(networks, composer):
    bundle = composer.bundle
    assert bundle.maps_to_w_plus
    assert bundle.graph("mapper").outputs[0].shape == ("batch", N_STYLES, 512)
    assert {"mapper", "reenact"} <= bundle.parity.keys()
    identity = composer.set_identity(FACES / "identity-ada.jpg")
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
