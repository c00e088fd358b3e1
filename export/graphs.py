"""Third stage: the graphs of a bundle as modules. All that a runtime could guess wrong is inside of them.

Pictures are uint8 NHWC RGB at every border. Scaling, layout and resizing happen here; the networks know nothing of it.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..runtime.face.crop import CROP_SIZE
from ..runtime.tensor import Tensor
from ..runtime.weights.bundle import LIGHT
from ..trainer.controls import POSE, LinearControls
from ..trainer.networks.sface import SFace
from ..trainer.networks.vggface2 import JoinedEncoder, VGGFace2
from ..trainer.pixels import to_bytes, to_float
from .read import Networks

W_SIZE = 512
CROP = Tensor("crop", ("batch", CROP_SIZE, CROP_SIZE, 3), "uint8", (0, 255), "RGB")
W = Tensor("w", ("batch", W_SIZE), "float32")


def identity_of(size: int) -> Tensor:
    """Return the identity code: float32 [batch, size], unit length."""
    return Tensor("identity", ("batch", size), "float32")


def w_plus_of(n_styles: int) -> Tensor:
    """Return W+: a w for every style of the generator."""
    return Tensor("w_plus", ("batch", n_styles, W_SIZE), "float32")


def w_plus_offset_of(n_styles: int) -> Tensor:
    """Return what an identity adds to the mapper's w, style by style."""
    return Tensor("w_plus_offset", ("batch", n_styles, W_SIZE), "float32")


def appearance_of(networks: Networks) -> tuple[Tensor, ...]:
    """Return the port of the identity image's attribute code, where the mapper takes it."""
    return (Tensor("appearance", ("batch", networks.attributes_size), "float32"),) if networks.takes_appearance else ()


def attributes_of(size: int) -> Tensor:
    """Return the attribute code: float32 [batch, size]."""
    return Tensor("attributes", ("batch", size), "float32")


def image_of(resolution: int) -> Tensor:
    """Return the output of the generator: uint8 [batch, R, R, 3] RGB."""
    return Tensor("image", ("batch", resolution, resolution, 3), "uint8", (0, 255), "RGB")


class GraphModule(nn.Module):
    """A module that becomes one ONNX graph: its inputs and outputs by name, in the order of `forward`."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class IdentityGraph(GraphModule):
    """Aligned crop -> unit identity code, of one encoder or of several side by side."""

    inputs = (CROP,)

    def __init__(self, identity: SFace | VGGFace2 | JoinedEncoder) -> None:
        super().__init__()
        self.identity = identity
        self.outputs = (identity_of(identity.code_size),)
        for i, encoder in enumerate(self.encoders):
            rows, columns = encoder.placement.matrices(CROP_SIZE)
            self.register_buffer(f"rows{i or ''}", rows.clone())
            self.register_buffer(f"columns{i or ''}", columns.clone())

    @property
    def encoders(self) -> list[SFace | VGGFace2]:
        """The encoders whose codes stand side by side."""
        joined = self.identity.encoders if isinstance(self.identity, JoinedEncoder) else [self.identity]
        return list(joined)  # pyright: ignore[reportReturnType] - a ModuleList of them

    def forward(self, crop: torch.Tensor) -> torch.Tensor:
        """Map crop uint8 [N, 256, 256, 3] -> code float32 [N, code_size]."""
        picture, codes = crop.permute(0, 3, 1, 2).float(), []
        for i, encoder in enumerate(self.encoders):
            face = getattr(self, f"rows{i or ''}") @ picture @ getattr(self, f"columns{i or ''}")
            codes.append(F.normalize(encoder.raw_code(face), dim=1))
        return codes[0] if len(codes) == 1 else torch.cat(codes, dim=1) / math.sqrt(len(codes))


class AttributesGraph(GraphModule):
    """Aligned crop -> attribute code."""

    inputs = (CROP,)

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.attributes = networks.attributes
        self.outputs = (attributes_of(networks.attributes_size),)

    def forward(self, crop: torch.Tensor) -> torch.Tensor:
        """Map crop uint8 [N, 256, 256, 3] -> code float32 [N, attributes_size]."""
        return self.attributes(from_crop(crop))


class MapperGraph(GraphModule):
    """Identity code, attribute code and, where the mapper takes it, appearance -> w, or W+ by a mapper into that."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.mapper = networks.mapper
        self.inputs = (
            identity_of(networks.identity_size),
            attributes_of(networks.attributes_size),
            *appearance_of(networks),
        )
        self.outputs = (W if networks.mapper_styles is None else w_plus_of(networks.mapper_styles),)

    def forward(
        self, identity: torch.Tensor, attributes: torch.Tensor, appearance: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Map codes float32 [N, identity_size] and one or two [N, attributes_size] -> w float32 [N, 512] or W+."""
        return self.mapper(identity, attributes, *(() if appearance is None else (appearance,)))


class SynthesisGraph(GraphModule):
    """W+ -> picture."""

    def __init__(self, synthesis: nn.Module, resolution: int) -> None:
        super().__init__()
        self.synthesis = synthesis
        self.inputs = (w_plus_of(styles_of(synthesis)),)
        self.outputs = (image_of(resolution),)

    def forward(self, w_plus: torch.Tensor) -> torch.Tensor:
        """Map W+ float32 [N, n_styles, 512] -> picture uint8 [N, R, R, 3]."""
        return to_picture(self.synthesis(w_plus))


class ReenactGraph(GraphModule):
    """The one call of a live frame: aligned crop and what is known of the person -> picture."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        identity, offset = identity_of(networks.identity_size), w_plus_offset_of(styles_of(networks.synthesis))
        self.inputs = (CROP, identity, offset, *appearance_of(networks))
        self.attributes = networks.attributes
        self.mapper = networks.mapper
        self.synthesis = networks.synthesis
        self.outputs = (image_of(networks.resolution),)

    def forward(
        self,
        crop: torch.Tensor,
        identity: torch.Tensor,
        w_plus_offset: torch.Tensor,
        appearance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Map crop uint8 [N, 256, 256, 3], code float32 [N, D], offset float32 [N, n_styles, 512], appearance ->
        picture uint8 [N, R, R, 3]."""
        codes = (self.attributes(from_crop(crop)), *(() if appearance is None else (appearance,)))
        w = self.mapper(identity, *codes)
        return to_picture(self.synthesis((w if w.ndim == 3 else w[:, None]) + w_plus_offset))


class MappingGraph(GraphModule):
    """z -> w: the generator's own mapping network."""

    inputs, outputs = (Tensor("z", ("batch", W_SIZE), "float32"),), (W,)

    def __init__(self, mapping: nn.Module) -> None:
        super().__init__()
        self.mapping = mapping

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map z float32 [N, 512], standard normal -> w float32 [N, 512]."""
        return self.mapping(z)


class ControlsGraph(GraphModule):
    """Attribute code, and how far pose and expression are followed -> attribute code."""

    predict: torch.Tensor
    neutral: torch.Tensor
    move: torch.Tensor
    is_pose: torch.Tensor

    def __init__(self, controls: LinearControls) -> None:
        super().__init__()
        size = len(controls.predict)
        self.inputs = (
            attributes_of(size),
            *(Tensor(name, ("batch", 1), "float32") for name in ("pose", "expression")),
        )
        self.outputs = (Tensor("controlled", ("batch", size), "float32"),)
        for name, array in vars(controls).items():
            self.register_buffer(name, torch.from_numpy(array))
        is_pose = (torch.arange(len(controls.neutral)) < POSE).float()
        self.register_buffer("is_pose", is_pose)

    def forward(self, attributes: torch.Tensor, pose: torch.Tensor, expression: torch.Tensor) -> torch.Tensor:
        """Map code float32 [N, attributes_size] and scales float32 [N, 1] each, 1 for as it is -> code."""
        scale = self.is_pose * pose + (1 - self.is_pose) * expression
        return attributes + ((attributes @ self.predict - self.neutral) * (scale - 1)) @ self.move


def styles_of(synthesis: nn.Module) -> int:
    """Return how many styles a generator takes, each a w of its own in W+."""
    n_styles = synthesis.n_styles
    assert isinstance(n_styles, int)
    return n_styles


def bundle_graphs(networks: Networks) -> dict[str, GraphModule]:
    """Return the graphs that a bundle holds as files, by name.

    The mapping network is that of a user's generator only; the light generator is there where the networks have one.
    """
    graphs: dict[str, GraphModule] = {
        "attributes": AttributesGraph(networks),
        "mapper": MapperGraph(networks),
        "synthesis": SynthesisGraph(networks.synthesis, networks.resolution),
        "reenact": ReenactGraph(networks),
    }
    if networks.light is not None:
        graphs[LIGHT] = SynthesisGraph(networks.light, networks.resolution)
    if networks.mapping is not None:
        graphs["mapping"] = MappingGraph(networks.mapping)
    return graphs


def from_crop(crop: torch.Tensor) -> torch.Tensor:
    """Return uint8 [N, H, W, 3] as float32 [N, 3, H, W] in [-1, 1]."""
    return to_float(crop.permute(0, 3, 1, 2))


def to_picture(image: torch.Tensor) -> torch.Tensor:
    """Return float32 [N, 3, H, W] in about [-1, 1] as uint8 [N, H, W, 3]."""
    return to_bytes(image).permute(0, 2, 3, 1)
