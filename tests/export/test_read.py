"""Networks from checkpoints and back out of a bundle."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fid.export.graphs import GraphModule, bundle_graphs
from fid.export.read import Networks, read_bundle, read_networks
from fid.export.to_onnx import to_onnx
from fid.runtime.errors import FidError, InputError
from fid.runtime.tensor import Tensor
from fid.runtime.weights.bundle import LIGHT, Bundle, Graph
from fid.runtime.weights.cache import sha256
from fid.trainer.networks.mobilestylegan import StyledConv, Synthesis
from fid.trainer.presets import FitConfig
from fid.trainer.weights.checkpoint import save, tensors_of
from fid.trainer.weights.from_bundle import float_tensors
from fid.trainer.weights.trained import Trainable
from onnx import helper, numpy_helper

RESOLUTION = 128  # the smallest generator


@pytest.fixture(scope="module")
def trained() -> Trainable:
    torch.manual_seed(0)
    return Trainable().eval()


@pytest.fixture(scope="module")
def generator() -> Synthesis:
    torch.manual_seed(0)
    return Synthesis(RESOLUTION, (512, 512, 256, 128)).eval()  # one that was made narrower


@pytest.fixture(scope="module")
def checkpoints(trained, generator, tmp_path_factory) -> tuple[Path, Path]:
    """Checkpoint folders as `fid-train fit` and `fid-train distill` write them."""
    root = tmp_path_factory.mktemp("runs")
    weights = tensors_of("attributes", trained.attributes) | tensors_of("mapper", trained.mapper)
    fit = save(root / "fit", 7, weights, {}, {"kind": "fit", "configuration": {"psi": 0.8}})
    record = {"kind": "distill", "configuration": {"resolution": RESOLUTION}}
    return fit, save(root / "distill", 9, tensors_of("synthesis", generator), {}, record)


@pytest.fixture(scope="module")
def bundle(trained, generator, tmp_path_factory) -> Bundle:
    """The tensors of an FP16 bundle under their names, in graphs without a node: all that reading back looks at."""
    folder = tmp_path_factory.mktemp("bundle")
    networks = Networks(trained.attributes, trained.mapper, generator, RESOLUTION).for_inference().rounded_to_fp16()
    graphs = {}
    for graph in ("attributes", "mapper", "synthesis", LIGHT):
        name = graph.partition("-")[0]
        tensors = [
            numpy_helper.from_array(array.astype(np.float16) if array.size >= 4096 else array, f"{name}.{key}")
            for key, value in getattr(networks, name).state_dict().items()
            for array in [value.numpy()]
        ]
        onnx.save(helper.make_model(helper.make_graph([], name, [], [], tensors)), folder / f"{graph}.onnx")
        graphs[graph] = Graph(f"{graph}.onnx", None, (), ())
    return Bundle(folder, "default", "0.1.0", RESOLUTION, graphs, provenance={"trained": {"step": 3}})


def test_other_attribute_encoders_and_mappers(tmp_path, checkpoints):
    for name, config in (("paper", {"attribute_encoder": "inception"}), ("w_plus", {"w_plus": True})):
        networks = Trainable(FitConfig(resolution=RESOLUTION, **config))
        weights = tensors_of("attributes", networks.attributes) | tensors_of("mapper", networks.mapper)
        save(tmp_path / name, 1, weights, {}, {"configuration": {"resolution": RESOLUTION, **config}})
    networks = read_networks(tmp_path / "paper", checkpoints[1])
    assert networks.attributes_size == 2048
    code = bundle_graphs(networks.for_inference())["attributes"](torch.zeros(1, 256, 256, 3, dtype=torch.uint8))
    assert code.shape == (1, 2048)
    networks = read_networks(tmp_path / "w_plus", checkpoints[1])
    assert networks.mapper_styles == networks.synthesis.n_styles == 14
    with pytest.raises(InputError, match=r"maps into W\+ of 14 styles and the generator takes 17: name the one"):
        read_networks(tmp_path / "w_plus", None)


def test_checkpoints(checkpoints, trained, generator):
    fit, distill = checkpoints
    networks = read_networks(fit.parent, distill)  # a run stands for its newest checkpoint
    assert networks.resolution == RESOLUTION
    for got, expected in (
        (networks.attributes, trained.attributes),
        (networks.mapper, trained.mapper),
        (networks.synthesis, generator),
    ):
        for name, value in expected.state_dict().items():
            assert torch.equal(got.state_dict()[name], value), name
    provenance = networks.provenance
    assert provenance["trained"]["sha256"] == sha256(fit / "weights.safetensors")
    assert provenance["trained"]["step"] == 7
    assert provenance["generator"]["configuration"] == {"resolution": RESOLUTION}
    assert str(fit.parent.parent) not in json.dumps(provenance)  # no path of this machine
    assert "Apache" in provenance["licences"]["sface"]


def test_no_checkpoint_means_the_shipped_weights(bundle, trained, generator, monkeypatch):
    monkeypatch.setattr(Bundle, "load", classmethod(lambda cls, path=None: bundle))
    networks = read_networks(None, None)
    assert networks.provenance["trained"] == {"step": 3}
    crop, code = torch.rand(1, 3, 256, 256) * 2 - 1, torch.nn.functional.normalize(torch.randn(1, 128))
    with torch.no_grad():
        expected = trained(code, crop, crop.flip(3))
        got = networks.mapper(code, *(networks.attributes(one) for one in (crop, crop.flip(3))))
        torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01 * expected.std().item())  # FP16 weights
    # Exported again, the same numbers would be stored.
    again = networks.for_inference().rounded_to_fp16()
    for name in ("attributes", "mapper", "synthesis"):
        stored = float_tensors(bundle.graph_path(name), f"{name}.")
        for key, value in getattr(again, name).state_dict().items():
            assert torch.equal(value, stored[key]), f"{name}.{key}"


def test_only_the_generator_is_exchanged(bundle, checkpoints, monkeypatch):
    monkeypatch.setattr(Bundle, "load", classmethod(lambda cls, path=None: bundle))
    networks = read_networks(None, checkpoints[1])
    assert networks.provenance["trained"] == {"step": 3}
    assert networks.provenance["generator"]["step"] == 9
    assert networks.light is None  # it belonged to the other generator


def test_a_light_generator_beside_the_other(bundle, checkpoints, generator, tmp_path, monkeypatch):
    monkeypatch.setattr(Bundle, "load", classmethod(lambda cls, path=None: bundle))
    kept = read_networks(None, None)  # the shipped one stays beside the shipped generator
    assert isinstance(kept.light, Synthesis)
    assert kept.light.widths == generator.widths
    networks = read_networks(*checkpoints, light=checkpoints[1])
    assert isinstance(networks.light, Synthesis)
    assert torch.equal(networks.light.constant, generator.constant)
    assert networks.provenance["light"]["step"] == 9
    assert LIGHT in bundle_graphs(networks)
    weights = tensors_of("synthesis", generator)
    other = save(tmp_path / "other", 1, weights, {}, {"kind": "distill", "configuration": {"resolution": 256}})
    with pytest.raises(InputError, match="makes 256 px and the bundle's makes 128 px"):
        read_networks(*checkpoints, light=other)
    with pytest.raises(InputError, match="--light is for bundles of a distilled generator"):
        read_networks(checkpoints[0], None, 1024, light=checkpoints[1])


def test_a_bundle_of_other_networks_is_refused(bundle, tmp_path):
    model = onnx.load(bundle.graph_path("mapper"))
    del model.graph.initializer[0]
    onnx.save(model, tmp_path / "mapper.onnx")
    for name in ("attributes", "synthesis"):
        (tmp_path / f"{name}.onnx").write_bytes(bundle.graph_path(name).read_bytes())
    other = Bundle(tmp_path, "other", "0.1.0", RESOLUTION, bundle.graphs)
    with pytest.raises(FidError, match="does not hold the mapper network"):
        read_bundle(other)


def test_a_wrong_folder_is_named(checkpoints, tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        read_networks(tmp_path, checkpoints[1])
    with pytest.raises(FidError, match="holds no checkpoint of `fid-train fit`, but of `distill`"):
        read_networks(checkpoints[1], checkpoints[1])


def test_the_bias_of_an_exported_convolution_keeps_its_name(tmp_path) -> None:
    class OneConvolution(GraphModule):
        inputs = (Tensor("x", ("batch", 4, 8, 8), "float32"), Tensor("w", ("batch", 512), "float32"))
        outputs = (Tensor("y", ("batch", 6, 8, 8), "float32"),)

        def __init__(self) -> None:
            super().__init__()
            self.synthesis = StyledConv(4, 6, 8)

        def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return self.synthesis(x, w)

    module = OneConvolution()
    torch.nn.init.normal_(module.synthesis.bias)
    onnx.save(to_onnx(module), tmp_path / "synthesis.onnx")
    read = float_tensors(tmp_path / "synthesis.onnx", "synthesis.")
    assert read.keys() == module.synthesis.state_dict().keys()
    np.testing.assert_array_equal(read["bias"], module.synthesis.bias.detach().flatten())
