"""Weights of a bundle in torch: what was folded for export is unfolded, so that training can go on from there."""

import copy

import numpy as np
import pytest
import torch
from fid.export.fold import fold_batch_norms
from fid.runtime import Composer
from fid.runtime.assets import BUNDLE
from fid.runtime.composer import BORDER
from fid.runtime.errors import FidError
from fid.runtime.identity import Identity, encoder_name
from fid.trainer import presets
from fid.trainer.fit import run as fit
from fid.trainer.networks.trained import AttributeEncoder
from fid.trainer.pixels import from_uint8
from fid.trainer.weights import trained
from fid.trainer.weights.from_bundle import load_unfolded
from rich.console import Console
from tiny_frozen import tiny_frozen


@pytest.fixture(scope="module")
def encoder():
    """E_attr with random weights whose batch norms have seen data."""
    torch.manual_seed(0)
    network = AttributeEncoder()
    for _ in range(3):
        network.train()(torch.rand(4, 3, 128, 128) * 2 - 1)
    return network.eval()


def test_unfolded_batch_norms_compute_what_the_folded_convolutions_do(encoder):
    crops = torch.rand(6, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1
    folded = fold_batch_norms(encoder, crops[:1])
    assert not [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    network = AttributeEncoder()
    load_unfolded(network, folded.state_dict(), crops[2:])
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(crops), encoder(crops), rtol=1e-4, atol=1e-5)
        # In training a batch brings its own statistics, which are those kept when it is the batch that they came from.
        torch.testing.assert_close(network.train()(crops[2:]), encoder(crops[2:]), rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_refused(encoder):
    stored = copy.deepcopy(fold_batch_norms(encoder, torch.zeros(1, 3, 128, 128)).state_dict())
    stored["narrow.weight"] = stored["narrow.weight"][:8]
    with pytest.raises(FidError, match="holds another attribute encoder than this fid trains"):
        load_unfolded(AttributeEncoder(), stored, torch.zeros(1, 3, 128, 128))


def test_a_bundle_trains_on_as_the_networks_that_it_runs():
    networks, composer = trained.load_trained(BUNDLE), Composer(engine="onnxruntime")
    crop = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    expected = composer.attribute_code(crop)
    person = Identity(np.full(128, 128**-0.5, np.float32), encoder_name(composer.bundle), appearance=expected)
    with torch.no_grad():
        w = networks(torch.from_numpy(person.code)[None], *[from_uint8(crop[None])] * 2)[0].numpy()
        code = networks.attributes(from_uint8(crop[None]))[0].numpy()
    for found, wanted in ((code, expected), (w, composer.w(person, expected))):
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_where_no_generator_is_named_the_shipped_one_is_looked_through():
    generator, composer = trained.load_generator(None, 256), Composer(engine="onnxruntime")
    w = trained.load_trained(BUNDLE).mapper.w_mean
    with torch.no_grad():
        picture = ((generator(w[None])[0].permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).numpy()
    apart = np.abs(picture - composer.image(w.numpy()))[BORDER:-BORDER, BORDER:-BORDER]
    assert apart.max() < 2, f"max {apart.max()}, mean {apart.mean()}"  # rounded to 8 bits, and one level by rounding
    assert trained.generator_name(None, 256).startswith("bundle default")
    assert trained.generator_name(BUNDLE, 256) == trained.generator_name(None, 256)
    assert trained.generator_name(None, 1024) == "published, 1024 px"


def test_a_run_begins_with_the_shipped_networks(tmp_path, monkeypatch):
    frozen = tiny_frozen()
    monkeypatch.setattr(fit.FrozenNetworks, "load", lambda *_: frozen)
    monkeypatch.setattr(fit, "load_mapping", lambda _: None)
    begun = presets.FitConfig(
        steps=1,
        rate=1e-12,
        cross_rate=1e-12,
        weight_decay=0.0,
        warm_steps=5,
        self_batch=2,
        probe_steps=1,
        probe_faces=8,
    )
    last = fit.fit(tmp_path, begun, generator=None, init=BUNDLE, console=Console(quiet=True))
    mine, shipped = trained.load_trained(last).mapper.state_dict(), trained.load_trained(BUNDLE).mapper.state_dict()
    for name in (name for name in shipped if not name.startswith("w_")):
        torch.testing.assert_close(mine[name], shipped[name], rtol=0, atol=1e-9)
