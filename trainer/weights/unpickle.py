"""Reads a pickle as data: numbers, strings, plain containers and tensors come out; nothing in the file is ever run.

A pickle is a small program that may call any function of any module. Python's own unpickler can be told which
functions to hand out, but it still allocates whatever a file asks for. So this is an interpreter of its own: it knows
no imports and no calls. The few constructors that weights need (`pickled.BUILDERS`) are done by hand, what else a file
names is a dead `Name`, and a file that calls one is refused. Numbers stay where they are in the file, so what is
allocated and how long it takes follow from the size of the file and from `MAX_STEPS`.

Known are Python's plain types, NumPy arrays and scalars, PyTorch tensors and parameters, NVIDIA's `EasyDict`, the
persistent classes of its PyTorch releases and the networks of its TensorFlow releases: the last two as a `Record` of
what they hold.
"""

import struct
from collections.abc import Callable
from typing import Any

import torch

from .pickled import (
    BUILDERS,
    Array,
    Dtype,
    Name,
    Record,
    RefusedError,
    Storage,
    all_ascii,
    array_of,
    finished,
    key_of,
    new_object,
)

MAX_STEPS = 5_000_000  # of one file
STORAGE_STEPS = 1000  # what each storage costs of them, at most
TEXT_STEPS = 100  # characters that are turned into bytes for one of them
STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
PLAIN = (list, tuple, dict, set)
# of a legacy torch.save stream, which is what a pickled storage contains
TORCH_MAGIC, TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def unpickle(data: memoryview) -> Any:
    """Return what a pickle holds, `data` being writable memory. Tensors, arrays and bytes are views of it: copy what
    you keep, and mind that they need not be aligned and may overlap.

    Raises RefusedError when it is broken, holds what is not known here, or calls a function.
    """
    try:
        return finished(_Machine(data).run())
    except RefusedError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error, UnicodeError) as error:
        raise RefusedError("is broken: its instructions make no sense") from error
    except (RuntimeError, MemoryError, RecursionError, AttributeError) as error:
        raise RefusedError("is broken: it holds tensors that cannot be") from error


class _Machine:
    """The stack machine of pickle protocols 2 to 5, without those instructions that only code needs."""

    def __init__(
        self, data: memoryview, limit: int | None = None, persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.data, self.at, self.steps = data, 0, 0
        self.limit, self.persistent = limit or MAX_STEPS, persistent
        self.memo: dict[int, Any] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []

    def take(self, count: int) -> memoryview:
        """Return the next bytes."""
        if count < 0 or count > len(self.data) - self.at:
            raise RefusedError("ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        """Return the next number."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, count: int) -> str:
        """Return the next characters."""
        return str(self.take(count), "utf-8", "surrogatepass")

    def line(self) -> str:
        """Return the next line."""
        end = bytes(self.data[self.at : self.at + 1000]).find(b"\n")
        if end < 0:
            raise RefusedError("ends too early")
        return str(self.take(end + 1)[:-1], "utf-8")

    def items(self) -> list[Any]:
        """Return what was put on the stack since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def run(self) -> Any:
        """Run until the instruction that ends it; the position is behind it then."""
        while True:
            self.spend(1)
            code = bytes(self.take(1))
            if code == b".":
                return self.pop()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                raise RefusedError(f"has an instruction {code!r}, which data does not need")
            instruction(self)

    def spend(self, steps: int) -> None:
        """Count what was done."""
        self.steps += steps
        if self.steps > self.limit:
            raise RefusedError(f"has more than {self.limit:,} instructions")

    def push_int(self, form: str) -> None:
        self.push(self.number(form))

    def push_long(self, form: str) -> None:
        size = self.number(form)
        if not 0 <= size <= 64:
            raise RefusedError("holds an integer of more than 64 bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def push_bytes(self, form: str) -> None:
        self.push(self.take(self.number(form)))

    def push_text(self, form: str) -> None:
        self.push(self.text(self.number(form)))

    def push_old_string(self, form: str) -> None:
        """A string of Python 2, which is text or the bytes of an array."""
        data = self.take(self.number(form))
        self.push(str(data, "ascii") if all_ascii(data) else data)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_one(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.items()

    def push_tuple(self, count: int) -> None:
        if count > len(self.stack):
            raise RefusedError("is broken: its instructions make no sense")
        self.stack[len(self.stack) - count :] = [tuple(map(finished, self.stack[len(self.stack) - count :]))]

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("not a list")
        target.extend(map(finished, values))

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError("not a dictionary")
        target.update((key_of(key), finished(value)) for key, value in zip(values[::2], values[1::2], strict=True))

    def add_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise TypeError("not a set")
        target.update(map(key_of, values))

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("not a name")
        self.push(Name(module, name))

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def call(self) -> None:
        """Do what pickle calls a function for: here no more than one of the known constructors."""
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise RefusedError("calls something that is no function")
        builder = _BUILDERS.get((function.module, function.name))
        if builder is None:
            raise RefusedError(f"calls {function}, and files of weights need no such thing")
        sizes = sum(len(a) for a in arguments if isinstance(a, PLAIN))
        sizes += sum(len(a) // TEXT_STEPS for a in arguments if isinstance(a, str))
        self.spend(STORAGE_STEPS if builder is _storage else sizes)
        self.push(builder(*arguments))

    def new(self) -> None:
        """Make an object of a class."""
        arguments, cls = self.pop(), self.pop()
        self.push(new_object(cls, *arguments))

    def build(self) -> None:
        """Give the object on the stack its state."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Dtype):
            target.order = "<" if state[1] == "|" else state[1]
        elif isinstance(target, Array):
            _, shape, dtype, fortran, raw = state
            self.spend(len(raw) // TEXT_STEPS if isinstance(raw, str) else 0)
            target.value = array_of(dtype, shape, raw, bool(fortran))
        elif isinstance(target, Record) and isinstance(state, dict) and not target.state:
            target.state = state
        elif isinstance(target, dict) and (state is None or isinstance(state, dict)):
            pass  # attributes of a dictionary: EasyDict and OrderedDict have none that matter
        else:
            raise RefusedError("gives a state to an object that has none")

    def look_up(self) -> None:
        """Fetch an object that the file refers to by a name of its own."""
        if self.persistent is None:
            raise RefusedError("refers to things outside of itself")
        self.push(self.persistent(self.pop()))


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: _check_protocol(m.number("<B")),
    b"\x95": lambda m: m.number("<Q"),  # a frame only tells how much to read at once
    b"(": _Machine.mark,
    b"0": _Machine.pop_one,
    b"1": lambda m: m.items(),
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"K": lambda m: m.push_int("<B"),
    b"M": lambda m: m.push_int("<H"),
    b"J": lambda m: m.push_int("<i"),
    b"\x8a": lambda m: m.push_long("<B"),
    b"\x8b": lambda m: m.push_long("<i"),
    b"G": lambda m: m.push_int(">d"),
    b"C": lambda m: m.push_bytes("<B"),
    b"B": lambda m: m.push_bytes("<I"),
    b"\x8e": lambda m: m.push_bytes("<Q"),
    b"\x96": lambda m: m.push_bytes("<Q"),
    b"U": lambda m: m.push_old_string("<B"),
    b"T": lambda m: m.push_old_string("<I"),
    b"\x8c": lambda m: m.push_text("<B"),
    b"X": lambda m: m.push_text("<I"),
    b"\x8d": lambda m: m.push_text("<Q"),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(map(finished, m.items()))),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(list(map(finished, m.items()))),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.items()),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    b"u": lambda m: m.set_items(m.items()),
    b"\x8f": lambda m: m.push(set()),
    b"\x90": lambda m: m.add_items(m.items()),
    b"\x91": lambda m: m.push(frozenset(map(key_of, m.items()))),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": _Machine.stack_name,
    b"R": _Machine.call,
    b"\x81": _Machine.new,
    b"b": _Machine.build,
    b"Q": _Machine.look_up,
}


def _check_protocol(number: int) -> None:
    if not 2 <= number <= 5:
        raise RefusedError(f"is of pickle protocol {number}")


def _storage(raw: Any) -> Storage:
    """The bytes of a legacy torch.save of one storage: five pickles, then its numbers."""
    data, at, found = memoryview(raw), 0, []

    def remember(entry: Any) -> Storage:
        kind, name, key, _, count, *_ = entry
        if kind != "storage" or not isinstance(name, Name) or not isinstance(key, str) or name.name not in STORAGES:
            raise RefusedError("holds a tensor of a type that is not known")
        if name.module not in ("torch", "torch.cuda") or not isinstance(count, int):
            raise RefusedError("holds a tensor of a type that is not known")
        found.append((key, count))
        return Storage(memoryview(b""), STORAGES[name.name])

    values = []
    for _ in range(5):
        machine = _Machine(data[at:], STORAGE_STEPS // 5, remember)
        values.append(machine.run())
        at += machine.at
    magic, protocol, system, storage, keys = values
    if magic != TORCH_MAGIC or protocol != TORCH_PROTOCOL or not isinstance(system, dict):
        raise RefusedError("holds a tensor whose numbers are no PyTorch storage")
    if not system.get("little_endian", True):
        raise RefusedError("was written on a big-endian machine")
    if not isinstance(storage, Storage) or [key for key, _ in found] != keys or len(found) != 1:
        raise RefusedError("holds a tensor whose numbers are no PyTorch storage")
    count = struct.unpack("<q", data[at : at + 8])[0]
    numbers = data[at + 8 :]
    if not 0 <= count == found[0][1] or len(numbers) != count * storage.dtype.itemsize:
        raise RefusedError("holds a tensor that ends too early")
    storage.data = numbers
    return storage


_BUILDERS = {**BUILDERS, ("torch.storage", "_load_from_bytes"): _storage}
