"""A toy bundle of a few kB with fid's exact inputs and outputs, so that the runtime is tested without real weights.

The picture it composes is a 16 x 16 mosaic of the attribute photo, tinted by the identity code: easy to predict, and
`expected_*` predict it in NumPy. Graphs share one FP16 `weights.bin`, cast to FP32 inside, as the real ones do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fid.runtime.tensor import Tensor
from fid.runtime.weights.bundle import Bundle, Graph, Weights
from fid.runtime.weights.cache import sha256
from onnx import TensorProto, helper, numpy_helper

TINT = 0.5  # how strongly the identity code shows in w
CROP = Tensor("crop", ("batch", 256, 256, 3), "uint8", (0, 255), "RGB")
IMAGE = Tensor("image", ("batch", 256, 256, 3), "uint8", (0, 255), "RGB")
IDENTITY = Tensor("identity", ("batch", 128), "float32")
ATTRIBUTES = Tensor("attributes", ("batch", 512), "float32")
APPEARANCE = Tensor("appearance", ("batch", 512), "float32")
DIM = 0.5  # of w, in the light generator
LOOKS = 0.25  # how strongly the appearance shows in w, in the toy whose mapper takes it
W = Tensor("w", ("batch", 512), "float32")
N_STYLES = 3  # of which the toy takes the mean
W_PLUS = Tensor("w_plus", ("batch", N_STYLES, 512), "float32")
W_PLUS_OFFSET = Tensor("w_plus_offset", ("batch", N_STYLES, 512), "float32")


CONTROLS = (
    (ATTRIBUTES, Tensor("pose", ("batch", 1), "float32"), Tensor("expression", ("batch", 1), "float32")),
    (Tensor("controlled", ("batch", 512), "float32"),),
)

GOAL = 0.2  # where the toy's rounds lead each w, half of the rest at a time
ONE = Tensor("crop", (1, 256, 256, 3), "uint8", (0, 255), "RGB")
STATE = Tensor("state", (1, 1, N_STYLES + 1, 512), "float32")  # the last row: what the offset leaves out
REFINE = (
    (ONE, Tensor("w", (1, 512), "float32"), STATE, *(Tensor(n, (1,), "float32") for n in ("round", "rounds"))),
    (Tensor("next_state", STATE.shape, "float32"), Tensor("w_plus_offset", (1, N_STYLES, 512), "float32")),
)


def weights() -> dict[str, np.ndarray]:
    """The stored tensors, float16 [512] each."""
    rng = np.random.default_rng(7)
    return {
        "gain": rng.uniform(0.9, 1.0, 512).astype(np.float16),
        "bias": rng.uniform(-0.05, 0.05, 512).astype(np.float16),
    }


def expected_identity(crop: np.ndarray) -> np.ndarray:
    """float32 [batch, 128] of crop uint8 [batch, 256, 256, 3]."""
    coarse = crop.astype(np.float32).reshape(-1, 8, 32, 8, 32, 3).mean((2, 4)).reshape(-1, 192)[:, :128] / 127.5 - 1
    return coarse / np.sqrt((coarse**2).sum(1, keepdims=True) + 1e-12)


def expected_attributes(crop: np.ndarray) -> np.ndarray:
    """float32 [batch, 512] of crop uint8 [batch, 256, 256, 3]."""
    coarse = crop.astype(np.float32).reshape(-1, 16, 16, 16, 16, 3).mean((2, 4)).reshape(-1, 768)[:, :512]
    return (coarse / 127.5 - 1) * weights()["gain"].astype(np.float32)


def expected_w(identity: np.ndarray, attributes: np.ndarray) -> np.ndarray:
    """float32 [batch, 512] of identity float32 [batch, 128] and attributes float32 [batch, 512]."""
    return attributes + TINT * np.tile(identity, (1, 4)) + weights()["bias"].astype(np.float32)


def plain(identity: np.ndarray) -> dict[str, np.ndarray]:
    """What `reenact` takes of people with identity codes float32 [batch, 128] and no offset in W+."""
    return {"identity": identity, "w_plus_offset": np.zeros((len(identity), N_STYLES, 512), np.float32)}


def as_w_plus(w: np.ndarray) -> np.ndarray:
    """W+ float32 [batch, N_STYLES, 512] of w float32 [batch, 512]."""
    return np.repeat(w[:, None], N_STYLES, axis=1)


def expected_image(w: np.ndarray) -> np.ndarray:
    """uint8 [batch, 256, 256, 3] of w float32 [batch, 512]."""
    cells = np.concatenate([w, w[:, :256]], 1).reshape(-1, 16, 1, 16, 1, 3)
    image = np.broadcast_to(cells, (len(w), 16, 16, 16, 16, 3)).reshape(-1, 256, 256, 3)
    return np.clip(np.round((image + 1) * 127.5), 0, 255).astype(np.uint8)


def array(value: float) -> np.ndarray:
    """A float32 scalar for a graph."""
    return np.array(value, np.float32)


class Net:
    """Writes ONNX nodes; each method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str | np.ndarray, out: str | None = None, **attributes: Any) -> str:
        names = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                name = f"constant_{len(self.tensors)}"
                self.tensors[name] = numpy_helper.from_array(value, name)
                value = name
            names.append(value)
        result = out or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [result], **attributes))
        return result

    def stored(self, name: str) -> str:
        """A float16 tensor of weights.bin, cast to float32."""
        if name not in self.tensors:
            offset = list(weights()).index(name) * 1024
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=[512])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": "weights.bin", "offset": offset, "length": 1024}.items():
                tensor.external_data.add(key=key, value=str(value))
            self.tensors[name] = tensor
        return self.op("Cast", name, to=TensorProto.FLOAT)

    def coarse(self, crop: str, cells: int, length: int) -> str:
        size = 256 // cells
        value = self.op("Cast", crop, to=TensorProto.FLOAT)
        value = self.op("Reshape", value, np.array([-1, cells, size, cells, size, 3]))
        value = self.op("ReduceMean", value, np.array([2, 4]), keepdims=0)
        value = self.op("Reshape", value, np.array([-1, cells * cells * 3]))
        value = self.op("Slice", value, np.array([0]), np.array([length]), np.array([1]))
        return self.op("Sub", self.op("Div", value, array(127.5)), array(1.0))

    def identity(self, crop: str) -> None:
        value = self.coarse(crop, 8, 128)
        square = self.op("ReduceSum", self.op("Mul", value, value), np.array([1]), keepdims=1)
        self.op("Div", value, self.op("Sqrt", self.op("Add", square, array(1e-12))), out="identity")

    def attributes(self, crop: str, out: str | None = None) -> str:
        return self.op("Mul", self.coarse(crop, 16, 512), self.stored("gain"), out=out)

    def mapper(self, identity: str, attributes: str, out: str | None = None, appearance: bool = False) -> str:
        tint = self.op("Mul", self.op("Tile", identity, np.array([1, 4])), array(TINT))
        if appearance:
            tint = self.op("Add", tint, self.op("Mul", "appearance", array(LOOKS)))
        return self.op("Add", self.op("Add", attributes, tint), self.stored("bias"), out=out)

    def synthesis(self, w_plus: str) -> None:
        w = self.op("ReduceMean", w_plus, np.array([1]), keepdims=0)
        rest = self.op("Slice", w, np.array([0]), np.array([256]), np.array([1]))
        value = self.op("Reshape", self.op("Concat", w, rest, axis=1), np.array([-1, 16, 1, 16, 1, 3]))
        value = self.op("Mul", value, np.ones((1, 1, 16, 1, 16, 1), np.float32))
        value = self.op("Reshape", value, np.array([-1, 256, 256, 3]))
        value = self.op("Mul", self.op("Add", value, array(1.0)), array(127.5))
        value = self.op("Clip", self.op("Round", value), array(0.0), array(255.0))
        self.op("Cast", value, to=TensorProto.UINT8, out="image")

    def refine(self) -> None:
        goal = self.op("Unsqueeze", self.op("Sub", array(GOAL), "w"), np.array([1, 2]))
        half = self.op("Mul", self.op("Sub", goal, "state"), array(0.5))
        state = self.op("Add", "state", half, out="next_state")
        of_styles = self.op("Slice", state, np.array([0]), np.array([N_STYLES]), np.array([2]))
        self.op("Squeeze", of_styles, np.array([1]), out="w_plus_offset")

    def save(self, path: Path, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        def info(tensor: Tensor) -> onnx.ValueInfoProto:
            kind = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}[tensor.dtype]
            return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)

        graph = helper.make_graph(
            self.nodes, path.stem, [*map(info, inputs)], [*map(info, outputs)], [*self.tensors.values()]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path))


def write_bundle(
    folder: Path, appearance: bool = False, light: bool = False, refine: bool = False, controls: bool = False
) -> Bundle:
    """Write the toy bundle into `folder` (made if missing) and return it; `appearance`: its mapper takes that, too;
    `light`: it has a light generator, whose pictures are dimmer; `refine`: it looks closer at identity photos;
    `controls`: it scales attribute codes by the mean of pose and expression."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.bin").write_bytes(b"".join(tensor.tobytes() for tensor in weights().values()))
    nets = {name: Net() for name in ("identity", "attributes", "mapper", "synthesis", "reenact")}
    nets["identity"].identity("crop")
    nets["attributes"].attributes("crop", "attributes")
    nets["mapper"].mapper("identity", "attributes", "w", appearance)
    nets["synthesis"].synthesis("w_plus")
    net = nets["reenact"]
    w = net.mapper("identity", net.attributes("crop"), appearance=appearance)
    net.synthesis(net.op("Add", net.op("Unsqueeze", w, np.array([1])), "w_plus_offset"))
    if light:
        net = nets["synthesis-light"] = Net()
        net.synthesis(net.op("Mul", "w_plus", array(DIM)))
    if refine:
        nets["refine"] = Net()
        nets["refine"].refine()
    if controls:
        net = nets["controls"] = Net()
        half = net.op("Mul", net.op("Add", "pose", "expression"), array(0.5))
        net.op("Mul", "attributes", half, out="controlled")
    person = (IDENTITY, APPEARANCE) if appearance else (IDENTITY,)
    borders = {
        "identity": ((CROP,), (IDENTITY,)),
        "attributes": ((CROP,), (ATTRIBUTES,)),
        "mapper": ((*person, ATTRIBUTES), (W,)),
        "synthesis": ((W_PLUS,), (IMAGE,)),
        "reenact": ((CROP, *person, W_PLUS_OFFSET), (IMAGE,)),
    } | ({"synthesis-light": ((W_PLUS,), (IMAGE,))} if light else {})
    borders |= {"refine": REFINE} if refine else {}
    borders |= {"controls": CONTROLS} if controls else {}
    graphs = {}
    for name, (inputs, outputs) in borders.items():
        path = folder / f"{name}.onnx"
        nets[name].save(path, inputs, outputs)
        graphs[name] = Graph(path.name, sha256(path), inputs, outputs)
    bundle = Bundle(
        folder=folder,
        name="toy",
        version="0.0.1",
        resolution=256,
        graphs=graphs,
        weights=(Weights("weights.bin", sha256(folder / "weights.bin")),),
        precision="fp16 weights, fp32 arithmetic",
        n_styles=N_STYLES,
        provenance={"made by": "tests/toy.py"},
    )
    bundle.save()
    return bundle
