"""The first StyleGAN against its papers and published code, done literally, layer by layer, in float64."""

import math
from itertools import pairwise

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from fid.export.fp16.convert import to_fp16
from fid.export.fp16.emulate import open_emulated
from fid.export.graphs import SynthesisGraph
from fid.export.to_onnx import to_onnx
from fid.runtime.engines.compare import psnr_db
from fid.trainer.networks.stylegan import Synthesis, doubled
from fid.trainer.weights.generator import read_generator
from tiny_stylegan import rosinality_names, variables, widths_of, write_rosinality, write_tensorflow

WIDTHS = (12, 12, 8, 8, 8, 6)  # to 128 px, from where the up-sampling is part of the convolution
W_PLUS = torch.randn(2, 12, 512, generator=torch.Generator().manual_seed(2)).double()


def blur(x):
    """The filter 1 2 1 along each side, zeros beyond the border."""
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
    x = sum(t * F.pad(x, (0, 0, 1, 1))[:, :, i : i + x.shape[2]] for i, t in enumerate(taps))
    return sum(t * F.pad(x, (1, 1, 0, 0))[:, :, :, i : i + x.shape[3]] for i, t in enumerate(taps))


def adain(x, scale, shift, epsilon):
    """Equation (1) of StyleGAN's paper."""
    mean, variance = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    return scale[:, :, None, None] * (x - mean) / torch.sqrt(variance + epsilon) + shift[:, :, None, None]


def four_places(kernel):
    """A kernel [..., 3, 3] laid four times on a 4x4 one."""
    wide = torch.zeros(*kernel.shape[:2], 4, 4, dtype=kernel.dtype)
    for dy in (0, 1):
        for dx in (0, 1):
            wide[..., dy : dy + 3, dx : dx + 3] += kernel
    return wide


def literal_nvidia(values, w_plus):
    """`G_synthesis` of NVlabs/stylegan at lod 0, with the noise of the file."""
    v = {name: torch.from_numpy(value).double() for name, value in values.items()}
    x = v["synthesis/4x4/Const/const"].expand(len(w_plus), -1, -1, -1)
    for i in range(2 * len(WIDTHS)):
        side = 4 << (i // 2)
        layer = ("Const", "Conv")[i] if i < 2 else ("Conv0_up", "Conv1")[i % 2]
        name = f"synthesis/{side}x{side}/{layer}"
        if layer != "Const":
            kernel = v[f"{name}/weight"]
            kernel = kernel * math.sqrt(2 / math.prod(kernel.shape[:3]))  # [3, 3, in, out]
            if layer == "Conv0_up" and side >= 128:
                x = F.conv_transpose2d(x, four_places(kernel.permute(2, 3, 0, 1)), stride=2, padding=1)
            else:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if layer == "Conv0_up" else x
                x = F.conv2d(x, kernel.permute(3, 2, 0, 1), padding=1)
            x = blur(x) if layer == "Conv0_up" else x
        x = x + v[f"synthesis/noise{i}"] * v[f"{name}/Noise/weight"][:, None, None]
        x = F.leaky_relu(x + v[f"{name}/bias"][:, None, None], 0.2)
        style = w_plus[:, i] @ v[f"{name}/StyleMod/weight"] / math.sqrt(512) + v[f"{name}/StyleMod/bias"]
        scale, shift = style.chunk(2, 1)
        x = adain(x, scale + 1, shift, 1e-8)
    head = v["synthesis/ToRGB_lod0/weight"]
    return F.conv2d(x, head.permute(3, 2, 0, 1) / math.sqrt(head.shape[2]), v["synthesis/ToRGB_lod0/bias"])


def literal_rosinality(names, w_plus, noises):
    """`Generator` of style-based-gan-pytorch: biases before blur and noise, one noise picture for each block."""
    v = {name.removeprefix("generator."): value.double() for name, value in names.items()}
    gain = lambda weight, fan_in: weight * math.sqrt(2 / fan_in)  # noqa: E731
    for i, noise in enumerate(noises):
        block = f"progression.{i}"
        for k in (1, 2):
            conv = f"{block}.conv{k}"
            if (i, k) == (0, 1):
                x = v[f"{conv}.input"].expand(len(w_plus), -1, -1, -1)
            elif f"{conv}.0.weight" in v:
                weight = v[f"{conv}.0.weight"]
                weight = four_places(gain(weight, 9 * len(weight))) / 4
                x = blur(F.conv_transpose2d(x, weight, v[f"{conv}.0.bias"], stride=2, padding=1))
            else:
                inner = f"{conv}.1.conv" if k == 1 else f"{conv}.conv"
                weight = v[f"{inner}.weight_orig"]
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if k == 1 else x
                x = F.conv2d(x, gain(weight, weight[0].numel()), v[f"{inner}.bias"], padding=1)
                x = blur(x) if k == 1 else x
            strength = v[f"{block}.noise{k}.weight_orig"]
            x = F.leaky_relu(x + gain(strength, strength.shape[1]) * noise, 0.2)
            style = f"{block}.adain{k}.style.linear"
            style = w_plus[:, 2 * i + k - 1] @ gain(v[f"{style}.weight_orig"], 512).T + v[f"{style}.bias"]
            x = adain(x, *style.chunk(2, 1), 1e-5)
    head = v[f"to_rgb.{len(noises) - 1}.conv.weight_orig"]
    return F.conv2d(x, gain(head, head.shape[1]), v[f"to_rgb.{len(noises) - 1}.conv.bias"])


@pytest.fixture(scope="module")
def values():
    return variables(WIDTHS)


@pytest.fixture(scope="module")
def synthesis(values, tmp_path_factory):
    return read_generator(write_tensorflow(tmp_path_factory.mktemp("g") / "g.pkl", values)).synthesis


def test_nvidias_network_is_the_literal_one(values, synthesis):
    image = Synthesis.forward(synthesis.double(), W_PLUS)
    synthesis.float()
    # two programs, of which one scales its weights in float32 and normalises in float32
    torch.testing.assert_close(image, literal_nvidia(values, W_PLUS).to(image), atol=5e-5, rtol=1e-5)


def test_rosinalitys_network_is_the_literal_one(tmp_path):
    names = rosinality_names(WIDTHS, len(WIDTHS))
    network = read_generator(write_rosinality(tmp_path / "g.pt", names)).synthesis
    random = torch.Generator().manual_seed(2019)
    noises = [torch.randn(4 << i, 4 << i, generator=random) for i in range(len(WIDTHS))]
    expected = literal_rosinality(names, W_PLUS, [noise.double() for noise in noises])
    image = network.double()(W_PLUS)
    torch.testing.assert_close(image, expected.to(image), atol=5e-5, rtol=1e-5)


def test_blocks_that_were_never_trained_are_left_out(tmp_path):
    network = read_generator(write_rosinality(tmp_path / "g.pt", rosinality_names((8, 8, 8, 6), 2))).synthesis
    assert (network.native, network.n_styles) == (8, 4)


def test_the_four_places_of_a_pixel():
    kernel = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert torch.equal(doubled(kernel), four_places(kernel))


def test_w_plus_and_w(synthesis):
    w = W_PLUS[:, 0].float()
    torch.testing.assert_close(synthesis(w), synthesis(w[:, None].expand(-1, 12, -1)))
    with pytest.raises(ValueError, match=r"W\+ with 5 styles: this generator has 12"):
        synthesis(W_PLUS[:, :5].float())
    with pytest.raises(ValueError, match="expected 32 divided by a power of two"):
        Synthesis((8, 8, 8, 8), 24)


def test_published_sizes():
    with torch.device("meta"):
        network = Synthesis(widths_of(1024))
    assert (network.resolution, network.n_styles) == (1024, 18)
    widths = widths_of(1024)
    larger = sum(7 * a * b for a, b in pairwise(widths))  # kernels of 4x4 in the place of 3x3
    more = 2 * 512 + sum(3 * width + 3 for width in widths[:-1])  # folded into the constant; smaller to-images
    ours = sum(p.numel() for p in network.parameters()) - larger + more
    assert ours + 8 * 512 * 513 == 26_219_627  # what the release prints


def test_gradient_reaches_w(tmp_path):
    small = read_generator(write_tensorflow(tmp_path / "g.pkl", variables((6, 6)))).synthesis
    w = W_PLUS[:1, 0].float().requires_grad_()
    direction = torch.randn(1, 512, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad(small(w).square().sum(), w)
    with torch.no_grad():
        step = 1e-2 * direction
        numeric = (small(w + step).square().sum() - small(w - step).square().sum()) / 2
    torch.testing.assert_close(numeric, (slope * step).sum(), atol=0, rtol=0.1)


def test_a_dead_channel_stays_finite(tmp_path):
    """Its variance is 0, and the exporter takes a small epsilon for nothing where it can."""
    dead = variables((6, 4))
    for name in ("synthesis/4x4/Conv/weight", "synthesis/4x4/Conv/Noise/weight"):
        dead[name] = 0 * dead[name]
    network = read_generator(write_tensorflow(tmp_path / "g.pkl", dead), 8).synthesis
    session = onnxruntime.InferenceSession(
        to_onnx(SynthesisGraph(network, 8)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    w_plus = W_PLUS[:, :4].float()
    image = session.run(None, {"w_plus": w_plus.numpy()})[0]
    assert np.abs(image - ((network(w_plus) + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()).max() <= 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A generator of 16 px, and its graph."""
    path = write_tensorflow(tmp_path_factory.mktemp("small") / "g.pkl", variables((12, 10, 8)))
    graph = SynthesisGraph(read_generator(path).synthesis, 16)
    return graph, to_onnx(graph)


def test_onnx_runtime_agrees_at_any_batch(exported):
    graph, model = exported
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        w = torch.randn(batch, 6, 512, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = graph(w).numpy().astype(int)
        apart = np.abs(session.run(None, {"w_plus": w.numpy()})[0].astype(int) - expected)
        assert apart.max() <= 1, f"max {apart.max()}, mean {apart.mean()}"
    stored = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    assert stored < 1.05 * sum(t.numel() for t in graph.state_dict().values()), "noise was multiplied out"


def test_fp16_keeps_the_instance_norm_in_fp32(exported):
    _, model = exported
    typed = to_fp16(model)
    assert len(typed.layers) == 7  # 5 convolutions and 2 blurs; the one to the image stays FP32
    half = {node.output[0] for node in typed.model.graph.node if node.output[0].endswith(".fp16")}
    for node in typed.model.graph.node:
        if node.op_type in ("ReduceMean", "Sqrt", "Reciprocal", "Div", "LeakyRelu"):
            assert not set(node.input) & half, f"{node.op_type} {node.name} is FP16"
    assert typed.bound <= 65504
    w = torch.randn(2, 6, 512, generator=torch.Generator().manual_seed(5)).numpy()
    exact = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pictures = open_emulated(typed.model, 1).run(w_plus=w)["image"]
    decibels = psnr_db(pictures, exact.run(None, {"w_plus": w})[0])
    assert decibels.min() > 40, decibels  # random weights; the gate measures a user's own
