"""Products of a generator in eight bits: near the exact ones however unlike its channels are, and only those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fid.runtime.assets import BUNDLE
from fid.runtime.engines import int8, ov
from fid.runtime.engines.int8 import products_of, scales_for, with_eight_bits
from fid.runtime.engines.machine import has_vnni
from fid.runtime.engines.open import open_session
from fid.runtime.errors import FidError

openvino = pytest.importorskip("openvino")
from openvino import opset8 as ops  # noqa: E402

C_IN, C_OUT, SIDE = 32, 16, 20


@pytest.fixture(autouse=True)
def _cache(empty_cache: Path) -> None:
    """Scales and builds are kept there."""


@pytest.fixture
def every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "LEAST_PRODUCTS", 1)
    monkeypatch.setattr(int8, "SIDE", SIDE)


def layer(*, shared: bool = False, gathered: bool = False, outputs: int = C_OUT) -> Any:
    """W (depthwise x): channels of x differ a thousandfold in size, as the outputs' weights for them do."""
    rng = np.random.default_rng(0)
    x = ops.parameter([1, C_IN, SIDE, SIDE], np.float32, "w_plus")
    taps = np.geomspace(0.03, 30, C_IN)[:, None, None, None, None] * rng.standard_normal((C_IN, 1, 1, 3, 3))
    deep = ops.group_convolution(x, ops.constant(taps.astype(np.float32)), [1, 1], [1, 1], [1, 1], [1, 1])
    weight = np.geomspace(10, 0.01, C_IN)[None, :, None, None] * rng.standard_normal((outputs, C_IN, 1, 1))
    value = ops.constant(weight.astype(np.float16))
    if gathered:
        value = ops.gather(value, ops.constant(np.arange(outputs)[::-1].copy()), ops.constant(np.int64(0)))
    y = ops.convolution(deep, ops.convert(value, np.float32), [1, 1], [0, 0], [0, 0], [1, 1])
    return openvino.Model([y, *([ops.relu(deep)] if shared else [])], [x], "layer")


def run(model: Any, x: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([x])[0])


@pytest.mark.parametrize("gathered", [False, True])
def test_unlike_channels_are_made_alike(gathered: bool, every_product: None) -> None:
    x = np.random.default_rng(1).standard_normal((1, C_IN, SIDE, SIDE)).astype(np.float32)
    exact, model = run(layer(gathered=gathered), x), layer(gathered=gathered)
    (product,) = products_of(model)
    largest = np.geomspace(0.35, 350, C_IN).astype(np.float32)  # about 3.5 standard deviations of the channels
    assert with_eight_bits(model, [product], {product.key: largest}) == 1
    found = run(model, x)
    assert np.abs(found - exact).std() < 0.03 * exact.std()  # measured: 0.01; 0.2 with one scale for unlike channels
    assert np.abs(found - exact).max() > 0


def test_a_depthwise_convolution_that_something_else_needs_stays_as_it_is(every_product: None) -> None:
    assert products_of(layer(shared=True)) == []
    assert len(products_of(layer())) == 1


def test_small_products_stay_as_they_are() -> None:
    assert products_of(layer()) == []


@pytest.mark.parametrize(("widening", "fine", "expected"), [(False, SIDE, 1), (False, SIDE + 1, 0), (True, SIDE, 0)])
def test_products_of_small_maps_stay_as_they_are(
    widening: bool, fine: int, expected: int, every_product: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "SIDE", fine)
    monkeypatch.setattr(int8, "FINE_SIDE", 2 * SIDE)
    assert len(products_of(layer(outputs=2 * C_IN if widening else C_OUT))) == expected


def test_scales_are_found_once(every_product: None, monkeypatch: pytest.MonkeyPatch) -> None:
    core, codes = openvino.Core(), np.ones((2, SIDE), np.float32)
    monkeypatch.setattr(int8, "_codes", lambda *_: codes)
    seen = int8._seen
    monkeypatch.setattr(
        int8, "_seen", lambda core, model, codes: {products_of(model)[0].key: codes[0], "other": codes[0]}
    )
    first = scales_for(core, products_of(layer()), Path("none"), lambda path: layer())
    assert list(first) == [products_of(layer())[0].key]  # a graph of other products is none of its business
    monkeypatch.setattr(int8, "_seen", seen)
    again = scales_for(core, products_of(layer()), Path("none"), lambda path: pytest.fail("is kept"))
    assert {key: scale.tolist() for key, scale in again.items()} == {key: s.tolist() for key, s in first.items()}


@pytest.mark.skipif(not has_vnni(), reason="this CPU does not multiply eight bits quicker")
def test_the_shipped_light_generator_gives_nearly_the_same_picture() -> None:
    path = BUNDLE / "synthesis-light.onnx"
    w_plus = np.random.default_rng(0).standard_normal((1, 17, 512)).astype(np.float32) * 0.3
    eight = open_session(path, engine="openvino-int8", require="openvino-int8", threads=1)
    assert eight.provider.startswith("openvino CPU int8 ")
    assert eight.fallback is None
    exact = open_session(path, engine="onnxruntime", threads=1).run(w_plus=w_plus)["image"].astype(float)
    error = np.square(eight.run(w_plus=w_plus)["image"] - exact).mean()
    assert 10 * np.log10(255**2 / error) > 38  # measured: 45.6 on average over real codes, 42.8 at worst


def test_other_graphs_have_no_product_in_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov, "has_vnni", lambda: True)
    session = open_session(BUNDLE / "mapper.onnx", engine="openvino-int8", require="openvino-int8", threads=1)
    assert "int8" not in session.provider
    assert session.fallback is None


def test_a_cpu_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov, "has_vnni", lambda: False)
    session = open_session(BUNDLE / "mapper.onnx", engine="openvino-int8", threads=1)
    assert session.fallback == "int8 was asked for and this CPU does not multiply it quicker, as far as it can be told."
    with pytest.raises(FidError, match="openvino-int8 is required and openvino CPU"):
        open_session(BUNDLE / "mapper.onnx", engine="openvino-int8", require="openvino-int8", threads=1)
