"""The committed skeletons, filled from the fetched weights, against the PyTorch networks that they were made from."""

import onnx
import pytest
import torch
from fid.export.graphs import MappingGraph, SynthesisGraph
from fid.export.parity import measure
from fid.export.skeletons import MAX_BYTES
from fid.export.to_weights import EXTERNAL_FROM
from fid.runtime.assets import SKELETONS
from fid.runtime.weights.prepare import SKELETON_WEIGHTS, prepared
from fid.trainer.networks.mobilestylegan import W_SIZE, Mapping, Synthesis
from onnx import numpy_helper


@pytest.mark.parametrize("name", SKELETON_WEIGHTS)
def test_committed_skeletons_hold_no_weights(name):
    path = SKELETONS / f"{name}.onnx"
    assert path.stat().st_size < MAX_BYTES
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if not tensor.external_data and len(tensor.raw_data) >= EXTERNAL_FROM:
            signs = numpy_helper.to_array(tensor)  # the kernels of the wavelets are arithmetic, not weights
            assert signs.shape[1:] == (1, 2, 2), tensor.name
            assert (abs(signs) == 0.5).all(), tensor.name
        for entry in tensor.external_data:
            if entry.key == "location":
                assert entry.value == SKELETON_WEIGHTS[name]


@pytest.mark.parametrize("name", SKELETON_WEIGHTS)
def test_filled_skeletons_agree_with_pytorch(name):
    mapping = Mapping.load()
    z = torch.randn(2, W_SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        w_plus = mapping(z)[:1, None] + 0.1 * torch.randn(1, 23, W_SIZE)  # one picture of 1024 px is slow enough
        inputs = {"z": z.numpy(), "w_plus": w_plus.numpy()}
    module = MappingGraph(mapping) if name == "mapping" else SynthesisGraph(Synthesis.load(1024), 1024)
    parity = measure(prepared(name), module, module, inputs, threads=2)
    assert parity.fault is None, parity
