"""StyleGAN2 against the equations of its paper, done literally: weights of each picture, zeros between pixels, FIR."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from fid.export.graphs import SynthesisGraph
from fid.export.to_onnx import to_onnx
from fid.trainer.networks.stylegan2 import Synthesis, mapping_from, synthesis_from, upsampling_taps
from tiny_stylegan2 import CHANNELS, config_channels, random_weights

W = torch.randn(3, 512, generator=torch.Generator().manual_seed(1))


def upfirdn(x, kernel, up, before, after):
    """[N, C, H, W] -> zeros between pixels, padding, true convolution with a kernel: tap by tap."""
    n, c, h, w = x.shape
    wide = torch.zeros(n, c, up * h, up * w, dtype=x.dtype)
    wide[:, :, ::up, ::up] = x
    wide = F.pad(wide, (before, after, before, after))
    size = len(kernel)
    height, width = wide.shape[2] - size + 1, wide.shape[3] - size + 1
    out = torch.zeros(n, c, height, width, dtype=x.dtype)
    for i in range(size):
        for j in range(size):
            out += kernel[size - 1 - i, size - 1 - j] * wide[:, :, i : i + height, j : j + width]
    return out


def literal_styled(x, w, weights, name, up, noise, clamp):
    """Section 2 of the paper: modulate (1), demodulate (2, 3), convolve with the picture's own weights, noise, bias."""
    get = {key.removeprefix(f"{name}."): value.double() for key, value in weights.items() if key.startswith(f"{name}.")}
    style = w @ get["affine.weight"].T / math.sqrt(512) + get["affine.bias"]
    outputs = []
    for picture, s in zip(x, style, strict=True):
        kernel = get["weight"] / math.sqrt(get["weight"][0].numel()) * s[None, :, None, None]  # (1)
        kernel = kernel / torch.sqrt(kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8)  # (3)
        if up:
            c, side = picture.shape[0], picture.shape[-1]
            wide = torch.zeros(1, c, 2 * side, 2 * side, dtype=x.dtype)
            wide[0, :, ::2, ::2] = picture
            y = F.conv2d(F.pad(wide, (2, 1, 2, 1)), kernel.flip(2, 3))  # a true convolution, all that is not zero
            outputs.append(upfirdn(y, 4 * get["resample_filter"], 1, 1, 1))
        else:
            outputs.append(F.conv2d(picture[None], kernel, padding=1))
    y = torch.cat(outputs)
    if noise:
        y = y + get["noise_strength"] * get["noise_const"]
    y = F.leaky_relu(y + get["bias"][:, None, None], 0.2) * math.sqrt(2)
    return y if clamp is None else y.clamp(-clamp, clamp)


def literal_synthesis(weights, w, noise=True, clamp=None):
    """W+ [N, n_styles, 512] float64 -> image [N, 3, R, R]: figure 2 (c) with the skips of figure 7 (b)."""
    x, image, used = weights["synthesis.b4.const"].double().expand(len(w), -1, -1, -1), None, 0
    for side in (4 << i for i in range(9) if f"synthesis.b{4 << i}.conv1.weight" in weights):
        for layer in ("conv0", "conv1"):
            name = f"synthesis.b{side}.{layer}"
            if f"{name}.weight" in weights:
                x = literal_styled(x, w[:, used], weights, name, layer == "conv0", noise, clamp)
                used += 1
        name = f"synthesis.b{side}.torgb"
        style = w[:, used] @ weights[f"{name}.affine.weight"].double().T / math.sqrt(512)
        style = style + weights[f"{name}.affine.bias"].double()
        kernel = weights[f"{name}.weight"].double() / math.sqrt(x.shape[1])
        y = torch.cat([F.conv2d(p[None], kernel * s[None, :, None, None]) for p, s in zip(x, style, strict=True)])
        y = y + weights[f"{name}.bias"].double()[:, None, None]
        y = y if clamp is None else y.clamp(-clamp, clamp)
        kernel = 4 * weights[f"synthesis.b{side}.resample_filter"].double()
        image = y if image is None else y + upfirdn(image, kernel, 2, 2, 1)
    return image


def synthesis_weights(weights):
    return {name.removeprefix("synthesis."): value for name, value in weights.items() if name.startswith("synthesis.")}


@pytest.fixture(scope="module")
def weights():
    """A generator whose filter is not symmetric, so that a filter turned around would show."""
    made = random_weights()
    for name in made:
        if name.endswith("resample_filter"):
            made[name] = torch.outer(torch.tensor([1.0, 2.0, 4.0, 1.0]), torch.tensor([2.0, 3.0, 1.0, 1.0])) / 56
    return made


@pytest.mark.parametrize(("noise", "clamp"), [(True, None), (False, None), (True, 0.7)])
def test_synthesis_is_the_literal_one(weights, noise, clamp):
    network = synthesis_from(synthesis_weights(weights), noise=noise, clamp=clamp).double()
    assert (network.resolution, network.n_styles) == (32, 8)
    w_plus = torch.randn(2, 8, 512, generator=torch.Generator().manual_seed(2)).double()
    # two programs in float64 on weights that were scaled in float32
    torch.testing.assert_close(network(w_plus), literal_synthesis(weights, w_plus, noise, clamp), atol=2e-5, rtol=1e-5)
    w = W.double()
    torch.testing.assert_close(
        network(w), literal_synthesis(weights, w[:, None].expand(-1, 8, -1), noise, clamp), atol=2e-5, rtol=1e-5
    )


def test_noise_changes_the_picture_and_the_picture_is_a_function_of_w(weights):
    own = synthesis_weights(weights)
    network, quiet = synthesis_from(own), synthesis_from(own, noise=False)
    assert torch.equal(network(W), network(W))
    assert (network(W) - quiet(W)).abs().mean() > 0.01
    assert all(name.split(".")[-1] != "noise" for name in quiet.state_dict())


def test_smaller_pictures_are_averages(weights):
    own = synthesis_weights(weights)
    network = synthesis_from(own, 8)
    assert network.resolution == 8
    torch.testing.assert_close(network(W), F.avg_pool2d(synthesis_from(own)(W), 4))
    for wrong in (64, 24, 2):
        with pytest.raises(ValueError, match=f"resolution {wrong}: expected 32 divided by a power of two"):
            synthesis_from(own, wrong)


def test_w_plus_has_a_style_for_every_layer(weights):
    network = synthesis_from(synthesis_weights(weights))
    with pytest.raises(ValueError, match=r"W\+ with 5 styles: this generator has 8"):
        network(W[:, None].expand(-1, 5, -1))


def test_known_taps_of_the_usual_filter():
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    rows = torch.tensor([[1.0, 3.0, 0.0], [0.0, 3.0, 1.0]]) / 4
    expected = torch.stack([torch.outer(a, b) for a in rows for b in rows])[:, None]
    torch.testing.assert_close(upsampling_taps(torch.outer(line, line)), expected)


def test_published_sizes():
    channels = config_channels(1024)
    assert channels == (512, 512, 512, 512, 512, 256, 128, 64, 32)
    with torch.device("meta"):
        network = Synthesis(channels)
    assert (network.resolution, network.n_styles) == (1024, 18)
    # 30.0 M with the mapping network (2.1 M) and the noise strengths of 17 layers, one number each
    assert sum(p.numel() for p in network.parameters()) + 8 * 512 * 513 + 17 == 30_370_060
    assert config_channels(256, 16384) == (512, 512, 512, 512, 256, 128, 64)


def test_mapping_is_the_literal_one():
    weights = {n.removeprefix("mapping."): v for n, v in random_weights(layers=3).items() if n.startswith("mapping.fc")}
    x = W / W.square().mean(1, keepdim=True).sqrt()  # section 3 of the first StyleGAN's paper: z is normalised
    for i in range(3):
        x = x @ (weights[f"fc{i}.weight"].T * 0.01 / math.sqrt(512)) + 0.01 * weights[f"fc{i}.bias"]
        x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    torch.testing.assert_close(mapping_from(weights)(W), x, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_w(weights):
    network = synthesis_from(synthesis_weights(weights)).double()
    w = W[:1].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: network(value)[..., 3:5, 7:9], w, eps=1e-7, atol=1e-4, fast_mode=True)


def test_onnx_runtime_agrees_at_any_batch():
    network = synthesis_from(synthesis_weights(random_weights(CHANNELS[:3])), 8, clamp=2.0)
    graph = SynthesisGraph(network, network.resolution)
    model = to_onnx(graph)
    (out,) = model.graph.output
    assert out.type.tensor_type.shape.dim[0].dim_param == "batch"
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        w = torch.randn(batch, network.n_styles, 512, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = graph(w).numpy().astype(int)
        difference = np.abs(session.run(None, {"w_plus": w.numpy()})[0].astype(int) - expected)
        assert difference.max() <= 1, f"max {difference.max()}, mean {difference.mean()}"
        assert difference.mean() < 0.01


def test_channels_are_the_users(weights):
    assert len(synthesis_from(synthesis_weights(random_weights((8, 4)))).blocks) == 2
    assert [len(b.conv1.bias[0]) for b in synthesis_from(synthesis_weights(weights)).blocks] == list(CHANNELS)
