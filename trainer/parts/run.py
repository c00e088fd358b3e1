"""Teach the network of parts: `fid-train parts`.

Pictures come from the generator, labels from its activations (`labels.py`). What cameras do and what the generator
never draws is added: other framings, backgrounds, light and blur, and things that stand before the face (hands,
microphones, cloth), which are drawn on and labelled "occluder". Photographs, if there are any, are labelled by the
network itself after the first half, within the person's outline, and take part in the second.
"""

import json
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from ...runtime.face.crop import CROP_SIZE
from ...runtime.face.parts import PARTS, PARTS_SIDE, WIDER
from ...runtime.media.images import find_photos, read_image
from ...runtime.weights.bundle import Bundle
from ..distill.run import mean_w
from ..head import HeadMask
from ..networks.mobilestylegan import W_SIZE, Mapping
from ..weights.from_bundle import load_synthesis
from .labels import PartsTeacher, refined
from .network import PartsNetwork


@dataclass(frozen=True)
class PartsConfig:
    """What `fid-train parts` does."""

    images: int = 960
    steps: int = 1200
    batch: int = 16
    rate: float = 3e-3  # of AdamW, falling to 0 as a cosine
    psi: tuple[float, float] = (0.5, 1.0)  # truncation of the faces is drawn from this range
    occluded: float = 0.2  # share of views with something before the face
    swapped: float = 0.4  # share of views before another background
    seed: int = 7


def make(output: Path, config: PartsConfig, photos: Path | None, console: Console, max_minutes: float | None) -> None:
    """Write the graph of a network taught as `config` says; `photos`: a folder of aligned crops, 256 px, or None."""
    segmentation = HeadMask.load().segmentation
    teacher = PartsTeacher(load_synthesis(Bundle.load(None)), segmentation)
    mapping, generator = Mapping.load(), torch.Generator().manual_seed(config.seed)
    centre, low, high = mean_w(mapping), *config.psi
    pictures, labels = [], []
    for _ in range(0, config.images, 8):
        psi = low + (high - low) * torch.rand(8, 1, generator=generator)
        made = teacher(centre + psi * (mapping(torch.randn(8, W_SIZE, generator=generator)) - centre))
        pictures.append(made[0])
        labels.append(made[1])
    minutes = None if max_minutes is None else max_minutes / (1 if photos is None else 2)
    network = train(np.concatenate(pictures), np.concatenate(labels), config, console, minutes)
    if photos is not None:
        crops = np.stack([read_image(path) for path in find_photos([photos])])
        pictures.append(crops)
        labels.append(label_photos(network, segmentation, crops))
        network = train(np.concatenate(pictures), np.concatenate(labels), config, console, minutes, network)
    export(network, output, config)


@torch.no_grad()
def label_photos(network: PartsNetwork, segmentation: nn.Module, crops: np.ndarray) -> np.ndarray:
    """Return labels uint8 [N, 5, 128, 128] of crops uint8 [N, 256, 256, 3]: what the network says of each and of its
    mirror image, within the outline of the person, brought to the edges of the picture."""
    labels = []
    for crop in crops:
        batch = torch.from_numpy(crop)[None]
        parts = ((network(batch) + network(batch.flip(2)).flip(3)) / 2)[0, 1:5].permute(1, 2, 0).numpy()
        person = segmentation(batch.permute(0, 3, 1, 2).float() / 255)[0][0, 0].numpy()
        person = cv2.resize(person, (PARTS_SIDE, PARTS_SIDE), interpolation=cv2.INTER_AREA)
        shares = np.ascontiguousarray(parts / (parts.sum(-1, keepdims=True) + 1e-3))
        labels.append(refined(crop, shares, person))
    return np.rint(255 * np.stack(labels)).astype(np.uint8)


def train(
    pictures: np.ndarray,
    labels: np.ndarray,
    config: PartsConfig,
    console: Console,
    max_minutes: float | None = None,
    network: PartsNetwork | None = None,
) -> PartsNetwork:
    """Return a network taught with pictures uint8 [N, 256, 256, 3] and labels uint8 [N, 5, 128, 128], 0..255;
    `network`: one to go on from."""
    torch.manual_seed(config.seed)
    random = np.random.default_rng(config.seed)
    network = network or PartsNetwork()
    network.train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), config.rate, weight_decay=1e-3)
    start, steps, averaged = time.monotonic(), config.steps, 0.0
    for step in range(steps):
        spent = (time.monotonic() - start) / (60 * max_minutes) if max_minutes else 0.0
        done = max(step / steps, spent)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.rate * 0.5 * (1 + np.cos(np.pi * done)) * min(1.0, (step + 1) / 50)
        views, targets = batch_of(pictures, labels, config, random)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network.logits(views.to(memory_format=torch.channels_last))
        loss = -(targets * logits.float().log_softmax(1)).sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        averaged = loss.item() if step == 0 else 0.97 * averaged + 0.03 * loss.item()
        if step % 25 == 0:
            console.print(f"step {step} of {steps}, loss {averaged:.4f}")
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network.eval()
    return network


def batch_of(
    pictures: np.ndarray, labels: np.ndarray, config: PartsConfig, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return views float32 [batch, 3, 128, 128], RGB, -1..1, and parts float32 [batch, 6, 128, 128]."""
    views, targets = [], []
    for number in random.integers(len(pictures), size=config.batch):
        other = pictures[random.integers(len(pictures))]
        view, target = augmented(pictures[number], labels[number], other, config, random)
        views.append(view)
        targets.append(target)
    return torch.from_numpy(np.stack(views) * 2 - 1), torch.from_numpy(np.stack(targets))


def augmented(
    picture: np.ndarray, label: np.ndarray, other: np.ndarray, config: PartsConfig, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return one view float32 [3, 128, 128], 0..1, and its parts float32 [6, 128, 128]."""
    side, (dx, dy) = PARTS_SIDE, random.normal(0, 5, 2)
    size = np.exp(random.normal(0, 0.1)) / (WIDER if random.random() < 0.5 else 1)
    matrix = cv2.getRotationMatrix2D((63.5, 63.5), random.normal(0, 8), size)
    matrix[:, 2] += dx, dy
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    smooth = cv2.GaussianBlur(picture, (0, 0), 0.7)
    view = cv2.warpAffine(smooth, matrix @ half, (side, side), borderMode=cv2.BORDER_REPLICATE).astype(np.float32) / 255
    parts = cv2.warpAffine(label.transpose(1, 2, 0), matrix, (side, side), borderMode=cv2.BORDER_REPLICATE).astype(
        np.float32
    )
    parts = np.dstack((parts / np.maximum(parts.sum(-1, keepdims=True), 1), np.zeros((side, side), np.float32)))
    if random.random() < config.swapped:
        behind = parts[..., :1]
        view = view * (1 - behind) + _background(other, random) * behind
    if random.random() < config.occluded:
        view, parts = _occluded(view, parts, other, random, size)
    if random.random() < 0.5:
        view, parts = view[:, ::-1], parts[:, ::-1]
    return _filmed(view, random).transpose(2, 0, 1), np.ascontiguousarray(parts.transpose(2, 0, 1))


def _background(other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Something to stand before, float32 [128, 128, 3], 0..1: a wall with a gradient, or a blurred piece of a
    picture."""
    side = PARTS_SIDE
    if random.random() < 0.6:
        ends, angle = random.random((2, 3)) * 0.9 + 0.05, random.random() * 2 * np.pi
        x, y = np.meshgrid(np.linspace(-0.5, 0.5, side), np.linspace(-0.5, 0.5, side))
        way = (0.5 + x * np.cos(angle) + y * np.sin(angle))[..., None]
        near = ends[0] + (ends[1] - ends[0]) * random.random() * 0.6
        return (ends[0] * (1 - way) + near * way).astype(np.float32)
    size = int(random.integers(40, CROP_SIZE))
    left, top = random.integers(0, CROP_SIZE - size + 1, 2)
    piece = cv2.resize(np.rot90(other, 2)[top : top + size, left : left + size], (side, side))
    return cv2.GaussianBlur(piece, (0, 0), 0.5 + 6 * random.random()).astype(np.float32) / 255


def _occluded(
    view: np.ndarray, parts: np.ndarray, other: np.ndarray, random: np.random.Generator, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """The view with a hand, a microphone or a piece of something before the face, `size` times as large as in an
    aligned crop."""
    side, kind = PARTS_SIDE, random.random()
    alpha = np.zeros((side, side), np.uint8)
    x, y = random.uniform(20, 108), random.uniform(45, 125)
    if kind < 0.6:  # fingers and a palm in the skin's own colour, in another light
        angle = random.uniform(0, 2 * np.pi)
        cv2.ellipse(
            alpha, (int(x), int(y)), (int(random.uniform(9, 20)), int(random.uniform(9, 16))), 0, 0, 360, 255, -1
        )
        for finger in range(int(random.integers(1, 6))):
            way = angle + 0.32 * (finger - 2) + random.normal(0, 0.08)
            far = random.uniform(20, 42)
            end = (int(x + far * np.cos(way)), int(y + far * np.sin(way)))
            cv2.line(alpha, (int(x), int(y)), end, 255, int(random.uniform(5, 10)), cv2.LINE_AA)
        skin = (view * parts[..., 1:2]).sum((0, 1)) / max(float(parts[..., 1].sum()), 1.0)
        shade = cv2.GaussianBlur(random.normal(0, 1, (side, side)).astype(np.float32), (0, 0), 7) * 0.9
        inside = cv2.distanceTransform((alpha > 127).astype(np.uint8), cv2.DIST_L2, 3)
        shade += 0.12 * np.minimum(inside / 4, 1) - 0.1
        colour = (skin * np.exp(random.normal(0, 0.12)))[None, None] * (1 + shade[..., None])
    else:
        if kind < 0.8:  # a microphone, a cup
            axes = (int(random.uniform(6, 18)), int(random.uniform(6, 22)))
            cv2.ellipse(alpha, (int(x), int(y)), axes, random.uniform(0, 180), 0, 360, 255, -1)
            cv2.line(alpha, (int(x), int(y)), (int(x + random.normal(0, 40)), 135), 255, int(random.uniform(4, 12)))
        else:
            points = np.array([x, y]) + random.normal(0, 22, (5, 2))
            cv2.fillConvexPoly(alpha, cv2.convexHull(points.astype(np.int32)), 255)
        plain = random.random() * 0.6 * np.ones(3) + random.normal(0, 0.08, 3)
        piece = cv2.resize(other[96:160, 180:244] if kind > 0.9 else other[200:, :80], (side, side)).astype(np.float32)
        colour = piece / 255 if random.random() < 0.5 else plain + 0.2 * (piece / 255 - 0.5)
    middle = (side - 1) / 2
    shrink = np.array([[size, 0, middle * (1 - size)], [0, size, middle * (1 - size)]])
    alpha = cv2.warpAffine(alpha, shrink, (side, side), flags=cv2.INTER_AREA)
    if np.ndim(colour) == 3 and colour.shape[0] == side:
        colour = cv2.warpAffine(np.ascontiguousarray(colour, np.float32), shrink, (side, side))
    soft = cv2.GaussianBlur(alpha, (0, 0), 0.8).astype(np.float32)[..., None] / 255
    parts = parts * (1 - soft)
    parts[..., 5:] = soft
    return view * (1 - soft) + np.clip(colour, 0, 1) * soft, parts


def _filmed(view: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The view as some camera would show it: float32 [128, 128, 3], 0..1."""
    view = np.clip(view, 0, 1) ** np.exp(random.normal(0, 0.25)) * np.exp(random.normal(0, 0.12, 3))
    grey = view.mean(-1, keepdims=True)
    view = grey + (view - grey) * np.exp(random.normal(0, 0.25))
    if random.random() < 0.4:
        view = cv2.GaussianBlur(view, (0, 0), 0.3 + 1.2 * random.random())
    view = view + random.normal(0, 0.025 * random.random(), view.shape)
    return np.clip(view, 0, 1).astype(np.float32)


def export(network: PartsNetwork, path: Path, config: PartsConfig) -> None:
    """Write the network as an ONNX graph: crop uint8 [batch, 256, 256, 3] -> parts float32 [batch, 6, 128, 128].

    The weights are stored as float16; engines make float32 of them when they open the graph.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    crop = torch.zeros(2, CROP_SIZE, CROP_SIZE, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=64)
    names: dict[str, Any] = {"input_names": ["crop"], "output_names": ["parts"], "dynamic_shapes": ({0: batch},)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter meets deprecations of its own
        program = torch.onnx.export(network, (crop,), dynamo=True, verbose=False, **names)
    assert program is not None
    model = program.model_proto
    nodes, constants = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 64:
            constants.append(tensor)
            continue
        constants.append(numpy_helper.from_array(values.astype(np.float16), f"{tensor.name}_half"))
        nodes.append(helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=TensorProto.FLOAT))
    nodes += list(model.graph.node)
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    model.doc_string = json.dumps({**asdict(config), "parts": list(PARTS)})
    onnx.checker.check_model(model)
    onnx.save(model, path)
