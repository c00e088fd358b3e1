"""The graph `refine`: one round of finding a person's offset in W+, with the gradient inside, so no PyTorch is needed.

The person's photo is composed with its own attributes, by the light generator, and compared with the photo. What is
compared, where the photo shows the person's own (`own`: face, hair and neck, and not what is behind, worn or held):
feature maps of SFace's trunk and of AlexNet, every place a unit vector and AlexNet's channels weighted as in LPIPS
(Zhang et al. 2018), and coarse colour. SFace's code is left out: an optimiser pleases it while other recognisers see a
stranger. A step of Adam follows.

Composition and photo differ in the person, and in pose, expression and light as far as the mapper misses those. Only
the first may go into the offset, which will be added to other attributes' w. So there are two unknowns,

    w+ = w + w_std (o + n):   o [n_styles, 512], kept;   n [512], the same for every style, dropped,

in the directions in which the mapper's w varies over attributes, ordered by how much: where it varies much, n moves
freely, by its standard deviation, and o hardly; where it does not, o alone.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from ..runtime.engines.open import open_session
from ..runtime.face.crop import CROP_SIZE, identity_matrices
from ..runtime.face.parts import PARTS_SIDE
from ..runtime.refine import View, w_plus_offset
from ..runtime.tensor import Tensor
from ..runtime.weights.bundle import REFINE, Graph
from ..runtime.weights.cache import sha256
from ..trainer.data.statistics import RealIdentities
from ..trainer.networks.lpips import LPIPS
from ..trainer.networks.mobilestylegan import Mapping
from ..trainer.networks.sface import PIXEL_SCALE, SFace
from ..trainer.networks.trained import AttributeEncoder
from .fold import rounded_to_fp16
from .gradient import with_gradient
from .graphs import CROP, GraphModule, from_crop, styles_of
from .parity import Arrays, Difference, Parity, Tolerance, difference
from .read import Networks
from .to_onnx import to_onnx
from .to_weights import WeightsFile, store


@dataclass(frozen=True)
class RefineConfig:
    """How a round goes. Chosen on held-out photographs (`docs/training.md`)."""

    rate: float = 0.25  # Adam's, in standard deviations; it falls to nothing over the rounds
    momentum: float = 0.5  # Adam's first beta; more of it is for more rounds than these
    memory: float = 0.999  # Adam's second beta
    pulled: float = 0.1  # variance over attributes, in standard deviations of W squared, at which o is halved
    dropped: int = 80  # directions that n has
    reach: float = 1.4  # of n, in its standard deviation over attributes
    shape_styles: int = 5  # of o the first styles, up to 8 px, which make pose and shape of the head
    shape_share: float = 0.3  # how far those move, of what the others may
    share: float = 1.0  # of o that is kept
    colour_weight: float = 0.2
    sface_taps: tuple[int, ...] = (2, 6, 10, 22)  # convolutions of SFace
    sface_weights: tuple[float, ...] = (0.1, 0.2, 0.8, 2.5)
    lpips_weight: float = 2.0  # of the layers of AlexNet
    lpips_layers: int = 3  # of its five, the first
    lpips_side: int = 128  # px of the crop as it sees it
    offset_weight: float = 0.004  # mean square of o
    faces: int = 64  # whose attributes show how the mapper's w varies
    seed: int = 1


COLOUR_CELLS = (64, 32, 16)  # of coarse colour, per side


def head_region(size: int) -> torch.Tensor:
    """Return 1 where an aligned crop shows the head, 0 off it, soft between, [1, 1, size, size]; its mean is 1."""
    y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    distance = (((x - 0.5) / 0.40).square() + ((y - 0.52) / 0.50).square()).sqrt()
    inside = ((1.125 - distance) / 0.25).clamp(0, 1)
    return (inside / inside.mean())[None, None]


class LikenessMaps(nn.Module):
    """Crop [1, 3, 256, 256] in [-1, 1] -> the feature maps that are compared, finest first."""

    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(self, sface: SFace, lpips: LPIPS, config: RefineConfig) -> None:
        super().__init__()
        last = max(config.sface_taps) + 1
        self.taps = config.sface_taps
        self.convolutions, self.activations = sface.convolutions[:last], sface.activations[:last]
        self.lpips = lpips.first(config.lpips_layers)
        self.shrunk = CROP_SIZE // config.lpips_side
        rows, columns = identity_matrices()
        self.register_buffer("rows", torch.from_numpy(rows.copy()))
        self.register_buffer("columns", torch.from_numpy(columns.T.copy()))

    def forward(self, crop: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the maps of SFace's trunk, on its own square of the face, and those of AlexNet."""
        x, of_face = (self.rows @ crop @ self.columns) * (127.5 * PIXEL_SCALE), []
        for number, (convolution, activation) in enumerate(zip(self.convolutions, self.activations, strict=True)):
            x = activation(convolution(x))
            if number in self.taps:
                of_face.append(x)
        return of_face, self.lpips.activations(F.avg_pool2d(crop, self.shrunk))


class Likeness(nn.Module):
    """How far a composition is from the person's photo: two crops [1, 3, 256, 256] in [-1, 1] -> a scalar."""

    def __init__(self, maps: LikenessMaps, config: RefineConfig) -> None:
        super().__init__()
        self.maps, self.config = maps, config
        with torch.no_grad():
            of_face, of_head = maps(torch.zeros(1, 3, CROP_SIZE, CROP_SIZE))
        for size in {*COLOUR_CELLS, *(x.shape[-1] for x in of_head)}:
            self.register_buffer(f"head_{size}", head_region(size))
            self.register_buffer(f"shrink_{size}", _shrinking(size))
        for size in {x.shape[-1] for x in of_face}:
            rows, columns = (_pooled(torch.from_numpy(matrix.copy()), size) for matrix in identity_matrices())
            self.register_buffer(f"face_rows_{size}", rows)
            self.register_buffer(f"face_columns_{size}", columns.T.contiguous())

    def forward(self, image: torch.Tensor, photo: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of all differences; own [1, 1, 128, 128] in 0..1 is how much each place of the
        photo counts."""
        total = image.new_zeros(())
        for cells in COLOUR_CELLS:
            mine, theirs = (F.avg_pool2d(x, CROP_SIZE // cells) for x in (image, photo))
            difference = ((mine - theirs).abs() * self.of_head(own, cells)).mean()
            total = total + self.config.colour_weight / len(COLOUR_CELLS) * difference
        (face, head), (photo_face, photo_head) = self.maps(image), self.maps(photo)
        for mine, theirs, weight in zip(face, photo_face, self.config.sface_weights, strict=True):
            apart = (unit(mine) - unit(theirs)).square().sum(1, keepdim=True)
            total = total + weight * (apart * self.of_face(own, apart.shape[-1])).mean()
        for mine, theirs, channels in zip(head, photo_head, self.maps.lpips.heads, strict=True):
            apart = ((unit(mine) - unit(theirs)).square() * channels[:, None, None]).sum(1, keepdim=True)
            total = total + self.config.lpips_weight * (apart * self.of_head(own, apart.shape[-1])).mean()
        return total

    def of_head(self, own: torch.Tensor, size: int) -> torch.Tensor:
        """Return how much each place of a map [.., size, size] of the crop counts, with a mean of 1."""
        shrink = self._constant(f"shrink_{size}")
        region = shrink @ own @ shrink.T * self._constant(f"head_{size}")
        return region / region.mean()

    def of_face(self, own: torch.Tensor, size: int) -> torch.Tensor:
        """Return the same for a map [.., size, size] of SFace's square of the face."""
        region = self._constant(f"face_rows_{size}") @ own @ self._constant(f"face_columns_{size}")
        return region / region.mean()

    def _constant(self, name: str) -> torch.Tensor:
        constant = getattr(self, name)
        assert isinstance(constant, torch.Tensor)
        return constant


def _pooled(matrix: torch.Tensor, size: int) -> torch.Tensor:
    """Of a matrix [112, 256] that resamples a side of the crop: the one [size, 128] from a side of the parts' maps."""
    wide = matrix.unflatten(1, (PARTS_SIDE, -1)).sum(2)
    return wide.unflatten(0, (size, -1)).mean(1)


def _shrinking(size: int) -> torch.Tensor:
    """Return the matrix [size, 128] that resamples a side of the parts' maps."""
    lines = torch.eye(PARTS_SIDE)[None, None]
    return F.interpolate(lines, (size, PARTS_SIDE), mode="bilinear", antialias=True)[0, 0]


def unit(x: torch.Tensor) -> torch.Tensor:
    """Return the map [N, C, H, W] with unit length along its channels."""
    return x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt()


class RefineLoss(GraphModule):
    """The part of a round that is differentiated: photo, what of it counts, the mapper's w for it and the unknowns -> a
    scalar."""

    def __init__(self, networks: Networks, sface: SFace, lpips: LPIPS, config: RefineConfig) -> None:
        super().__init__()
        assert networks.light is not None
        self.synthesis, self.config = networks.light, config
        self.n_styles = styles_of(networks.light)
        self.likeness = Likeness(LikenessMaps(sface, lpips, config), config)
        self.w_std = nn.Buffer(torch.as_tensor(networks.mapper.w_std).clone())
        directions, variance = attribute_directions(networks, config)
        self.directions = nn.Buffer(directions)
        reach = torch.ones(self.n_styles, 1)
        reach[: config.shape_styles] = config.shape_share
        self.kept = nn.Buffer(reach / (1 + variance / config.pulled))
        free = config.reach * variance.clamp_min(0).sqrt()
        self.dropped = nn.Buffer(torch.where(torch.arange(len(free)) < config.dropped, free, 0.0))
        self.inputs = (
            Tensor("crop", (1, *CROP.shape[1:]), "uint8", CROP.range, CROP.colour),
            Tensor("own", (1, PARTS_SIDE, PARTS_SIDE), "float32", (0, 1)),
            Tensor("w", (1, len(self.w_std)), "float32"),
            Tensor("state", (1, 3, self.n_styles + 1, len(self.w_std)), "float32"),
        )
        self.outputs = (Tensor("loss", (), "float32"),)

    def offset(self, state: torch.Tensor) -> torch.Tensor:
        """Return o [1, n_styles, 512] of the state, in standard deviations of W."""
        return (state[:, :1, : self.n_styles].squeeze(1) * self.kept) @ self.directions.T

    def forward(self, crop: torch.Tensor, own: torch.Tensor, w: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Photo uint8 [1, 256, 256, 3], own float32 [1, 128, 128], w float32 [1, 512], state float32
        [1, 3, n_styles + 1, 512] -> scalar."""
        offset = self.offset(state)
        nuisance = (state[:, :1, self.n_styles :].squeeze(1) * self.dropped) @ self.directions.T
        image = self.synthesis(w[:, None] + self.w_std * (offset + nuisance))
        return self.likeness(image, from_crop(crop), own[:, None]) + self.config.offset_weight * offset.square().mean()


class Round(GraphModule):
    """The rest of a round: Adam's step (Kingma and Ba 2015), and the offset to add to w."""

    def __init__(self, loss: RefineLoss) -> None:
        super().__init__()
        self.loss = loss
        *given, state = loss.inputs
        number, rounds = (Tensor(name, (1,), "float32") for name in ("round", "rounds"))
        self.inputs = (*given, state, number, rounds)
        offset = Tensor("w_plus_offset", (1, loss.n_styles, len(loss.w_std)), "float32")
        self.outputs = (Tensor("next_state", state.shape, "float32"), offset)

    def step(
        self, state: torch.Tensor, gradient: torch.Tensor, number: torch.Tensor, rounds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """State, its gradient, the number of the round from 0 on and of all rounds -> next state, offset in W+."""
        config, slope = self.loss.config, gradient[:, :1]
        mean = config.momentum * state[:, 1:2] + (1 - config.momentum) * slope
        square = config.memory * state[:, 2:] + (1 - config.memory) * slope.square()
        rate = config.rate * (1 - number / rounds)
        step = mean / (1 - config.momentum ** (number + 1))
        size = (
            (square / (1 - config.memory ** (number + 1))).sqrt().clamp_min(1e-10)
        )  # a sum would be lost: the exporter drops `+ 1e-10`
        state = torch.cat((state[:, :1] - rate * step / size, mean, square), dim=1)
        return state, self.loss.config.share * self.loss.w_std * self.loss.offset(state)

    def forward(
        self,
        crop: torch.Tensor,
        own: torch.Tensor,
        w: torch.Tensor,
        state: torch.Tensor,
        number: torch.Tensor,
        rounds: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the graph computes, in PyTorch: next state, offset in W+ float32 [1, n_styles, 512]."""
        with torch.enable_grad():
            unknown = state.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.loss(crop, own, w, unknown), unknown)
        return self.step(state, gradient, number, rounds)


class _Step(GraphModule):
    """`Round.step` as a graph of its own."""

    def __init__(self, one: Round) -> None:
        super().__init__()
        state, number, rounds = one.inputs[-3:]
        self.one = one
        self.inputs = (state, Tensor("gradient", state.shape, "float32"), number, rounds)
        self.outputs = one.outputs

    def forward(
        self, state: torch.Tensor, gradient: torch.Tensor, number: torch.Tensor, rounds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Round.step`."""
        return self.one.step(state, gradient, number, rounds)


def refine_round(networks: Networks, sface: SFace, config: RefineConfig | None = None) -> Round:
    """Return the round for some networks, which have a light generator and the light attribute encoder."""
    return Round(RefineLoss(networks, copy.deepcopy(sface), LPIPS.load(), config or RefineConfig()))


def can_refine(networks: Networks) -> bool:
    """Return whether there is such a round for the networks: codes of real people are known of SFace alone, the rounds
    begin from one w, and the settings were chosen with the light attribute encoder."""
    begins = networks.identity is None and networks.mapper_styles is None
    return begins and networks.light is not None and isinstance(networks.attributes, AttributeEncoder)


def refine_model(one: Round) -> onnx.ModelProto:
    """Return the round as an ONNX model: the loss, its gradient, and the step behind it."""
    model = with_gradient(to_onnx(one.loss, dynamic=False), of="loss", wrt="state", name="gradient")
    step = to_onnx(_Step(one), dynamic=False)
    ports = {port.name for port in (*step.graph.input, *step.graph.output)}
    shared = {tensor.name for tensor in step.graph.initializer} & {tensor.name for tensor in model.graph.initializer}
    renamed = {tensor.name: f"step.{tensor.name}" for tensor in step.graph.initializer if tensor.name not in ports}
    renamed |= {name: f"step.{name}" for node in step.graph.node for name in node.output if name not in ports}
    assert not shared & ports
    for node in step.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        node.name = f"step.{node.name}"
    for tensor in step.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    graph = model.graph
    graph.node.extend(step.graph.node)
    graph.initializer.extend(step.graph.initializer)
    graph.input.extend(port for port in step.graph.input if port.name in ("round", "rounds"))
    graph.ClearField("output")
    graph.output.extend(step.graph.output)
    onnx.checker.check_model(model)
    return model


@torch.no_grad()
def attribute_directions(networks: Networks, config: RefineConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the directions [512, 512], in columns, and variances [512] of how the mapper's w varies over attributes.

    In standard deviations of W, for one person at a time, most first. People and attributes are those of drawn codes
    and of pictures of the generator.
    """
    generator = torch.Generator().manual_seed(config.seed)
    mapper, light = networks.mapper, networks.light
    assert light is not None
    std = torch.as_tensor(mapper.w_std)
    drawn = (networks.mapping or Mapping.load())(torch.randn(config.faces, len(std), generator=generator))
    attributes = torch.cat([networks.attributes(light(w[None]).clamp(-1, 1)) for w in drawn])
    people = RealIdentities().draw(config.faces, generator)
    spread = []
    for code, look in zip(people, attributes.roll(1, 0), strict=True):
        looks = (look.expand(config.faces, -1),) if networks.takes_appearance else ()
        w = mapper(code.expand(config.faces, -1), attributes, *looks) / std
        spread.append(w - w.mean(0))
    variance, directions = torch.linalg.eigh(torch.cat(spread).T.double().cov(correction=0))
    return directions.flip(1).float().contiguous(), variance.flip(0).float()


PARITY_INPUTS = 4
TOLERANCE = Tolerance("relative", max=1e-2, mean=5e-3)
"""Of an offset: gradients through forty layers of ReLU differ by more than codes do, and no more matters."""


def write_refine(
    networks: Networks,
    sface: SFace,
    folder: Path,
    weights: WeightsFile,
    arrays: Arrays,
    fp16_weights: bool,
    threads: int,
) -> tuple[Graph, Parity]:
    """Write refine.onnx to a bundle's folder; returns its description and how it differs from PyTorch's autograd.

    networks: as they are stored. arrays: `parity_inputs`. fp16_weights: round the large weights to FP16.
    """
    one = refine_round(networks, sface)
    if fp16_weights:
        rounded = rounded_to_fp16(one)
        assert isinstance(rounded, Round)
        one = rounded
    path = folder / f"{REFINE}.onnx"
    store(refine_model(one), path, weights)
    description = Graph(path.name, sha256(path), one.inputs, one.outputs)
    return description, measured(path, one, arrays, threads)


def measured(path: Path, one: Round, arrays: Arrays, threads: int) -> Parity:
    """Return one round amid others, on some pictures each."""
    session = open_session(path, engine="onnxruntime", threads=threads)
    rng = np.random.default_rng(0)
    shape = one.inputs[-3].shape
    own = rng.uniform(0.1, 1, (1, PARTS_SIDE, PARTS_SIDE)).astype(np.float32)
    got, expected = [], []
    for crop, w_plus in zip(arrays["crop"][:PARITY_INPUTS], arrays["w_plus"][:PARITY_INPUTS], strict=True):
        state = np.stack([rng.normal(0, scale, tuple(map(int, shape[2:]))) for scale in (0.1, 1e-5, 1e-5)])
        state[2] = 1e-8 + state[2] ** 2
        number, rounds = np.array([3], np.float32), np.array([9], np.float32)
        values = (crop[None], own, w_plus[:1], state[None].astype(np.float32), number, rounds)
        inputs = dict(zip((tensor.name for tensor in one.inputs), values, strict=True))
        got.append(session.run(**inputs)["w_plus_offset"].reshape(1, -1))
        tensors = (torch.from_numpy(np.ascontiguousarray(value)) for value in values)
        expected.append(one(*tensors)[1].detach().numpy().reshape(1, -1))
    apart = difference(np.concatenate(got), np.concatenate(expected))
    # from nothing: Adam divides 0 by 0
    first = w_plus_offset(session, [View(arrays["crop"][0], own[0], arrays["w_plus"][0, 0])], 2)
    if not np.isfinite(first).all():
        apart = Difference(math.nan, math.nan)
    return Parity(len(got), session.provider, TOLERANCE, apart, apart)
