"""One seed is one person; truncation pulls towards the mean."""

from pathlib import Path

import numpy as np
import pytest
import toy
from fid.runtime.composer import Composer
from fid.runtime.errors import InputError
from fid.runtime.sample import Sampler
from fid.runtime.tensor import Tensor
from fid.runtime.weights.bundle import Bundle, Graph
from fid.runtime.weights.cache import sha256

Z = Tensor("z", ("batch", 512), "float32")


def write_bundle_with_mapping(folder: Path) -> Bundle:
    """The toy bundle with a mapping network of its own: w = 0.3 z + 0.2."""
    from dataclasses import replace

    bundle = toy.write_bundle(folder)
    net = toy.Net()
    net.op("Add", net.op("Mul", "z", toy.array(0.3)), toy.array(0.2), out="w")
    net.save(folder / "mapping.onnx", (Z,), (toy.W,))
    graph = Graph("mapping.onnx", sha256(folder / "mapping.onnx"), (Z,), (toy.W,))
    bundle = replace(bundle, graphs={**bundle.graphs, "mapping": graph})
    bundle.save()
    return bundle


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    return Composer(write_bundle_with_mapping(tmp_path_factory.mktemp("bundle") / "bundle"), threads=1)


def test_truncation(composer: Composer) -> None:
    z = np.random.default_rng(5).standard_normal((1, 512)).astype(np.float32)
    np.testing.assert_allclose(Sampler(composer, 1.0).w(5), 0.3 * z[0] + 0.2, atol=1e-5)
    np.testing.assert_allclose(Sampler(composer, 0.0).w(5), np.full(512, 0.2), atol=0.02)  # the mean of 4096
    half = (Sampler(composer, 1.0).w(5) + Sampler(composer, 0.0).w(5)) / 2
    np.testing.assert_allclose(Sampler(composer, 0.5).w(5), half, atol=1e-5)


def test_one_seed_is_one_person(composer: Composer) -> None:
    image, identity = Sampler(composer).person(3)
    again, same = Sampler(composer).person(3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(identity.code, same.code)
    np.testing.assert_allclose(identity.code, toy.expected_identity(image[None])[0], atol=1e-5)
    assert identity.sources == 0
    assert composer.identify(identity) is identity
    assert (Sampler(composer).person(4)[0] != image).any()


def test_psi_has_its_range(composer: Composer) -> None:
    with pytest.raises(InputError, match="psi 3 is outside 0 to 1"):
        Sampler(composer, 3.0)
