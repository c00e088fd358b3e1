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
from ...runtime.files import new_file
from ...runtime.weights.cache import new_folder
from ...runtime.weights.records import convert, decode


@dataclass(frozen=True)
class Needed:
    """What every `checkpoint.json` says."""

    step: int
    configuration: dict[str, Any] = field(default_factory=dict)
    kind: str = "fit"


KEPT = 2  # newest checkpoints of a run


@contextmanager
def writing(target: Path, folder: bool = False) -> Iterator[Path]:
    """Yield a path beside `target` to write a file to, or into it where it is to be a `folder`; it becomes `target` at
    the end and is gone after any error.

    Raises FidError, one sentence, for a failure to write: the disk is full, or what the system says.
    """
    try:
        with (new_folder if folder else new_file)(target) as partial:
            yield partial
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else str(error)
        raise FidError(f"could not write {target}: {reason}; what was there before is untouched.") from error


def save(run: Path, step: int, weights: dict[str, Tensor], state: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Write `run/step_NNNNNN` and drops all but the newest `KEPT`.

    Raises FidError when it cannot be written (the disk is full); the older ones stay.
    """
    target = run / f"step_{step:06d}"
    with writing(target, folder=True) as partial:
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, partial / "weights.safetensors")
        if state:
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, partial / "state.safetensors")
        (partial / "checkpoint.json").write_text(json.dumps({"step": step, **record}, indent=1) + "\n")
    for old in _folders(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _folders(run: Path) -> list[Path]:
    """A run's checkpoints by their step, which may have more than six digits."""
    return sorted(run.glob("step_[0-9]*"), key=lambda path: int(path.name.removeprefix("step_")))


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file aside and rename it, so that it is never half a file. Raises FidError when it cannot."""
    with writing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises FidError when that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FidError(f"could not make the folder {folder}: {error.strerror}.") from error


def latest(run: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    found = [path for path in _folders(run) if (path / "checkpoint.json").is_file()]
    return found[-1] if found else None


def check_new(run: Path, resume: bool) -> None:
    """Raise InputError when a new run would write among another's checkpoints."""
    if not resume and latest(run) is not None:
        raise InputError(f"{run} holds a run already: go on with it by --resume, or name another folder.")


def read_record(checkpoint: Path) -> dict[str, Any]:
    """Return `checkpoint.json` of a checkpoint folder (or of a run's newest). Raises InputError when there is none."""
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
    """Return the tensors of a checkpoint folder (or of a run's newest). Raises FidError when the file is broken."""
    path = Path(read_record(checkpoint)["folder"]) / file
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FidError(f"{path} cannot be read ({error}); use an older checkpoint or start again.") from error


def load_into(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copy `prefix.*` into a module; every key has to fit. Raises FidError otherwise."""
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
    """Return a module's parameters and buffers under `prefix.`, without batch counters."""
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}


def optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors (its rates belong to the configuration)."""
    return {
        f"{prefix}.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entry in optimizer.state_dict()["state"].items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """Give an optimizer the state of `optimizer_tensors` back."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".")
            entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
