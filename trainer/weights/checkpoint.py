"""Checkpoints: safetensors and JSON, never pickles.

A run's folder holds `step_000120/` folders, each complete from the moment it has its name (written aside, then
renamed): `weights.safetensors` (the networks to ship, EMA where there is one), `state.safetensors` (all that resuming
needs) and `checkpoint.json` (kind, step, configuration, figures).
"""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...runtime.errors import FidError, InputError
from ...runtime.weights.records import convert, decode


@dataclass(frozen=True)
class Needed:
    """What every `checkpoint.json` says."""

    step: int
    configuration: dict[str, Any] = field(default_factory=dict)
    kind: str = "fit"


KEPT = 2  # newest checkpoints of a run


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns a failure to write into FidError, one sentence: the disk is full, or what the system says."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else str(error)
        raise FidError(f"could not write {target}: {reason}; what was there before is untouched.") from error


def save(run: Path, step: int, weights: dict[str, Tensor], state: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Writes `run/step_NNNNNN` and drops all but the newest `KEPT`.

    Raises FidError when it cannot be written (the disk is full); the older ones stay.
    """
    target, partial = run / f"step_{step:06d}", run / f".step_{step:06d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(target):
            partial.mkdir(parents=True)
            save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, partial / "weights.safetensors")
            if state:
                save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, partial / "state.safetensors")
            (partial / "checkpoint.json").write_text(json.dumps({"step": step, **record}, indent=1) + "\n")
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in _folders(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _folders(run: Path) -> list[Path]:
    """A run's checkpoints by their step, which may have more than six digits."""
    return sorted(run.glob("step_[0-9]*"), key=lambda path: int(path.name.removeprefix("step_")))


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON file aside and renames it, so that it is never half a file. Raises FidError when it cannot."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.rename(path)


def latest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = [path for path in _folders(run) if (path / "checkpoint.json").is_file()]
    return found[-1] if found else None


def check_new(run: Path, resume: bool) -> None:
    """Raises InputError when a new run would write among another's checkpoints."""
    if not resume and latest(run) is not None:
        raise InputError(f"{run} holds a run already: go on with it by --resume, or name another folder.")


def read_record(checkpoint: Path) -> dict[str, Any]:
    """`checkpoint.json` of a checkpoint folder (or of a run's newest). Raises InputError when there is none."""
    folder = checkpoint if (checkpoint / "checkpoint.json").is_file() else latest(checkpoint)
    if folder is None:
        raise InputError(
            f"{checkpoint} holds no checkpoint: expected a folder with checkpoint.json and weights.safetensors."
        )
    path = folder / "checkpoint.json"
    record = decode(path.read_bytes(), dict[str, Any], lambda why: FidError(f"{path} {why}; use an older checkpoint."))
    convert(record, Needed, lambda why: FidError(f"{path} {why}; use an older checkpoint."))
    return {**record, "folder": str(folder)}


def read_weights(checkpoint: Path, file: str = "weights.safetensors") -> dict[str, Tensor]:
    """The tensors of a checkpoint folder (or of a run's newest). Raises FidError when the file is broken."""
    path = Path(read_record(checkpoint)["folder"]) / file
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FidError(f"{path} cannot be read ({error}); use an older checkpoint or start again.") from error


def load_into(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copies `prefix.*` into a module; every key has to fit. Raises FidError otherwise."""
    own = {k.removeprefix(f"{prefix}."): v.float() for k, v in tensors.items() if k.startswith(f"{prefix}.")}
    # batch counters are integers and are not kept in shipped weights
    own |= {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked") and k not in own}
    try:
        module.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise FidError(
            f"the checkpoint does not fit the {prefix} network: {str(error).splitlines()[-1].strip()}"
        ) from error


def tensors_of(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers under `prefix.`, without batch counters."""
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors (its rates belong to the configuration)."""
    return {
        f"{prefix}.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """The inverse of `optimizer_tensors`."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".")
            entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
