"""The reader of pickles: data comes out, and a file that wants more than data does nothing but raise."""

import collections
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from fid.trainer.weights import unpickle as unpickling
from fid.trainer.weights.pickled import Name, RefusedError
from fid.trainer.weights.unpickle import unpickle


def read(data):
    return unpickle(memoryview(bytearray(data)))


def plain(value):
    """The same value with copies in the place of views."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return bytes(value) if isinstance(value, memoryview) else value


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_values_come_out_as_they_went_in(protocol):
    value = {"a": [1, -7, 1 << 40, -(1 << 200), True, None, 2.5, "ü\U0001f600"], 3: (b"bytes", (), ("x",)), "e": {}}
    value["again"] = value["a"]
    assert plain(read(pickle.dumps(value, protocol))) == value
    assert read(pickle.dumps({"s": {"x", "y"}}, protocol)) == {"s": {"x", "y"}}
    many = {str(i): i for i in range(3000)}  # memo numbers of more than a byte
    assert read(pickle.dumps(many, protocol)) == many
    ordered = collections.OrderedDict(b=1, a=[2])
    assert list(read(pickle.dumps(ordered, protocol)).items()) == [("b", 1), ("a", [2])]


def test_a_list_that_holds_itself():
    value = []
    value.append(value)
    got = read(pickle.dumps(value))
    assert got[0] is got


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays(protocol):
    value = [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array(2.5, np.float32),
        np.zeros((0, 4), np.float16),
    ]
    for got, expected in zip(read(pickle.dumps(value, protocol)), value, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype
    assert read(pickle.dumps((np.float64(0.5), np.sqrt(2)), protocol)) == (0.5, np.sqrt(2))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors(dtype):
    base = (torch.arange(24) % 5).to(dtype).reshape(2, 3, 4)
    value = {"whole": base, "part": base[1, 1:, ::2], "turned": base.permute(2, 0, 1), "point": base[0, 0, 0]}
    value["none"] = torch.zeros(3, 0, dtype=dtype)
    got = read(pickle.dumps(value))
    for name, tensor in value.items():
        assert torch.equal(got[name], tensor), name
        assert got[name].dtype == dtype
    if dtype.is_floating_point:
        assert torch.equal(read(pickle.dumps(torch.nn.Parameter(base))), base)


def test_names_stay_names():
    assert read(pickle.dumps([os.system, torch.float32])) == [
        Name(os.system.__module__, "system"),
        Name("torch", "float32"),
    ]


class Reduced:
    """Pickled as a call."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def stack_global(module, name):
    """Protocol 4 code that pushes module.name."""
    texts = [b"\x8c" + struct.pack("B", len(text)) + text.encode() for text in (module, name)]
    return b"".join(texts) + b"\x93"


def storage_stream(count, raw=b""):
    """A legacy torch.save of a storage that claims `count` floats, with the numbers given."""
    parts = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [b"\x80\x02(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu\x8a\x08"]
    parts += [struct.pack("<q", count), b"NtQ.", pickle.dumps(["0"], 2), struct.pack("<q", count), raw]
    return b"".join(parts)


def tensor_of(stream, offset, size, stride):
    """A pickle of a tensor over a storage stream."""
    load = Reduced(torch.storage._load_from_bytes, (stream,))
    return pickle.dumps(Reduced(torch._utils._rebuild_tensor_v2, (load, offset, size, stride, False, None)))


COMMAND = "touch OWNED"
MALICIOUS = {
    "os.system": pickle.dumps(Reduced(os.system, (COMMAND,))),
    "builtins.eval": pickle.dumps(Reduced(eval, ("open('OWNED', 'w')",))),
    "builtins.exec": pickle.dumps(Reduced(exec, ("open('OWNED', 'w')",))),
    "subprocess": pickle.dumps(Reduced(subprocess.Popen, (["touch", "OWNED"],))),
    "nested in a list of a dictionary": pickle.dumps({"G_ema": [1, (2, Reduced(os.system, (COMMAND,)))]}),
    "getattr": b"\x80\x04" + stack_global("builtins", "getattr") + stack_global("os", "path") + b"\x8c\x02os\x86R.",
    "the result of a call is called": b"\x80\x04" + stack_global("builtins", "dict") + b")R)R.",
    "a string is called": b"\x80\x04\x8c\x09os.system\x8c\x01x\x85R.",
    "dotted name through an allowed module": b"\x80\x04" + stack_global("collections", "OrderedDict.fromkeys") + b")R.",
    "dotted path to os": b"\x80\x04" + stack_global("torch._utils", "torch.os.system") + b"\x8c\x01x\x85R.",
    "operator.attrgetter": b"\x80\x04" + stack_global("operator", "attrgetter") + b"\x8c\x06system\x85R.",
    "object made by NEWOBJ": b"\x80\x04" + stack_global("subprocess", "Popen") + b"\x8c\x04true\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04" + stack_global("subprocess", "Popen") + b")}\x92.",
    "_reconstructor": b"\x80\x04"
    + stack_global("copyreg", "_reconstructor")
    + stack_global("os", "system")
    + b"NN\x87R.",
    "INST": b"(S'touch OWNED'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00xo.",
    "extension 1": b"\x80\x04\x82\x01)R.",
    "extension 2": b"\x80\x04\x83\x01\x00)R.",
    "extension 4": b"\x80\x04\x84\x01\x00\x00\x00)R.",
    "persistent reference": b"\x80\x04X\x01\x00\x00\x00xQ.",
    "persistent reference by text": b"Ppersistent\n.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "state for a function": b"\x80\x04" + stack_global("os", "environ") + b"}\x8c\x01a\x8c\x01bsb.",
    "state for a tensor": tensor_of(storage_stream(1, bytes(4)), 0, (1,), (1,))[:-1] + b"}b.",
    "item of a function": b"\x80\x04" + stack_global("os", "environ") + b"\x8c\x01a\x8c\x01bs.",
    "torch.load again": pickle.dumps(Reduced(torch.storage._load_from_bytes, (pickle.dumps(Reduced(eval, ("1",))),))),
    "call inside of a storage": pickle.dumps(
        Reduced(
            torch.storage._load_from_bytes,
            (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(Reduced(eval, ("1",)), 2),),
        )
    ),
    "array of objects": pickle.dumps(np.array([Reduced(os.system, (COMMAND,))], object)),
    "type of NumPy with fields": pickle.dumps(np.zeros(2, [("a", "f4")])),
    "numpy function": b"\x80\x04" + stack_global("numpy.core.multiarray", "fromfile") + b"\x8c\x01x\x85R.",
    "old protocol": pickle.dumps({"a": 1}, 0),
}
GREEDY = {
    "bytes of 4 GB": b"\x80\x04B\xff\xff\xff\xff.",
    "bytes of 16 EB": b"\x80\x04\x8e" + b"\xff" * 8 + b".",
    "bytearray of 1 TB": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "text of 16 EB": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "integer of 2 GB": b"\x80\x04\x8b\xff\xff\xff\x7f.",
    "integer of less than no bytes": b"\x80\x04\x8b\xff\xff\xff\xff.",
    "array of 4 TB": pickle.dumps(np.zeros(1, np.float32)).replace(b"K\x01\x85", b"J\xff\xff\xff\x7f\x85"),
    "storage of 4 EB": tensor_of(storage_stream(1 << 60), 0, (1 << 60,), (1,)),
    "storage of less than nothing": tensor_of(storage_stream(-1), 0, (1,), (1,)),
    "tensor that repeats one number": tensor_of(storage_stream(1, bytes(4)), 0, (1 << 30, 1 << 9), (0, 0)),
    "tensor outside of its storage": tensor_of(storage_stream(4, bytes(16)), 2, (2, 2), (2, 1)),
    "tensor before its storage": tensor_of(storage_stream(4, bytes(16)), -1, (2,), (1,)),
    "tensor of a million axes": tensor_of(storage_stream(1, bytes(4)), 0, (1,) * 100, (1,) * 100),
    "too many instructions": b"\x80\x04" + b"N0" * 10_000 + b".",
    "one list made into sets over and over": pickle.dumps([*range(4000)])[:-1]
    + b"q\x000"
    + (stack_global("builtins", "set") + b"h\x00\x85R") * 10
    + b".",
    "keys with one hash": b"\x80\x04}" + b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x1fN" + b"s.",
    "memo that is not there": b"\x80\x04j\xff\xff\xff\xff.",
    "pop of nothing": b"\x80\x040.",
    "tuple of nothing": b"\x80\x04\x87.",
    "no end": b"\x80\x04N",
    "nothing": b"",
    "name without an end": b"\x80\x02cos",
}


@pytest.mark.parametrize("data", MALICIOUS.values(), ids=MALICIOUS)
def test_a_malicious_pickle_does_nothing_but_raise(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    imported = set(sys.modules)
    with pytest.raises(RefusedError):
        read(data)
    assert list(tmp_path.iterdir()) == []
    assert set(sys.modules) == imported


@pytest.mark.parametrize("data", GREEDY.values(), ids=GREEDY)
def test_a_greedy_or_broken_pickle_allocates_nothing(data, monkeypatch):
    monkeypatch.setattr(unpickling, "MAX_STEPS", 15_000)
    with pytest.raises(RefusedError):
        read(data)


def test_a_memo_number_needs_no_memory():
    assert read(b"\x80\x04Nr\xff\xff\xff\xff.") is None


def test_every_truncation_and_many_wrong_bytes_are_refused_or_data():
    value = {"t": torch.arange(6.0).reshape(2, 3), "a": np.arange(4.0), "n": [1, "x", np.float64(2)], "s": {"y"}}
    whole = pickle.dumps(value)
    for end in range(len(whole)):
        with pytest.raises(RefusedError):
            read(whole[:end])
    random = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            data[place] = random.integers(256)
        try:
            read(data)
        except RefusedError:
            continue
