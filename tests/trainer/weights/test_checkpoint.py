"""Checkpoints are complete or absent, strict about their keys, and never pickles."""

import errno

import pytest
import torch
from fid.runtime.errors import FidError, InputError
from fid.trainer.weights import checkpoint
from torch import nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_round_trip_and_the_newest_two_are_kept(tmp_path):
    net = network()
    for step in (1, 20, 300):
        checkpoint.save(tmp_path, step, checkpoint.tensors_of("net", net), {}, {"kind": "test"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000020", "step_000300"]
    assert checkpoint.latest(tmp_path) == tmp_path / "step_000300"
    assert checkpoint.read_record(tmp_path)["kind"] == "test"
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    checkpoint.load_into(other, checkpoint.read_weights(tmp_path), "net")
    for mine, theirs in zip(other.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_newest_is_that_of_most_steps(tmp_path):
    for step in (999_999, 1_000_000):
        checkpoint.save(tmp_path, step, {}, {}, {"kind": "test"})
    assert checkpoint.latest(tmp_path) == tmp_path / "step_1000000"


def test_a_new_run_does_not_begin_among_anothers_checkpoints(tmp_path):
    checkpoint.check_new(tmp_path, resume=False)
    checkpoint.save(tmp_path, 5, {}, {}, {"kind": "test"})
    checkpoint.check_new(tmp_path, resume=True)
    with pytest.raises(InputError, match=r"holds a run already: go on with it by --resume, or name another folder"):
        checkpoint.check_new(tmp_path, resume=False)


def test_missing_and_extra_keys_are_refused(tmp_path):
    tensors = checkpoint.tensors_of("net", network())
    with pytest.raises(FidError, match=r"does not fit the net network.*0\.bias"):
        checkpoint.load_into(network(), {k: v for k, v in tensors.items() if k != "net.0.bias"}, "net")
    with pytest.raises(FidError, match=r"does not fit the net network.*stranger"):
        checkpoint.load_into(network(), {**tensors, "net.stranger": torch.zeros(1)}, "net")


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    tensors = checkpoint.tensors_of("net", network())
    checkpoint.save(tmp_path, 1, tensors, {}, {})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(FidError, match="the disk is full; what was there before is untouched"):
        checkpoint.save(tmp_path, 2, tensors, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    checkpoint.load_into(network(), checkpoint.read_weights(tmp_path), "net")


def test_a_folder_without_checkpoint_and_a_broken_file(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        checkpoint.read_weights(tmp_path)
    folder = checkpoint.save(tmp_path, 1, checkpoint.tensors_of("net", network()), {}, {})
    (folder / "weights.safetensors").write_bytes(b"half a file")
    with pytest.raises(FidError, match="cannot be read"):
        checkpoint.read_weights(tmp_path)


def test_an_optimizer_goes_on_as_if_it_had_not_stopped():
    def train(net, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            net(torch.full((2, 3), 0.1 * step + 1)).square().sum().backward()
            optimizer.step()

    straight = nn.Linear(3, 2)
    stopped = nn.Linear(3, 2)
    stopped.load_state_dict(straight.state_dict())
    for net in (straight, stopped):
        train(net, optimizer := torch.optim.AdamW(net.parameters(), lr=0.1), 3)
        if net is stopped:
            tensors = checkpoint.optimizer_tensors("optimizer", optimizer)
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
            checkpoint.restore_optimizer(optimizer, tensors, "optimizer")
        train(net, optimizer, 3)
    assert torch.equal(straight.weight, stopped.weight)
