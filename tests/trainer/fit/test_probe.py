"""The probe of w and its memory, in closed form."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fid.trainer import losses
from fid.trainer.fit.probe import Memory, Probe, Seen
from fid.trainer.networks.trained import IDENTITY_SIZE, W_SIZE

LANDMARKS = 3


def random(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def a_probe() -> Probe:
    torch.manual_seed(0)
    probe = Probe(LANDMARKS, width=32).eval()
    probe.w_std.fill_(0.5)
    return probe


def test_a_probe_has_no_error_on_its_own_guesses() -> None:
    probe, w = a_probe(), random(5, W_SIZE)
    code, points, skin = probe(w)
    assert code.norm(dim=1).tolist() == pytest.approx([1] * 5)
    assert probe.error(w, code, 256 * points, skin).item() == pytest.approx(0, abs=1e-6)
    assert probe.error(w, -code, 256 * points, skin).item() == pytest.approx(2, abs=1e-5)
    assert probe.error(w, code, 256 * (points + 0.1), skin + 2).item() == pytest.approx(0.01 + 4, rel=1e-4)


def test_slopes_in_closed_form() -> None:
    """The probe's own slope, by finite differences, has no error; the opposite one 2 by direction, 2 by size."""
    probe, w = a_probe().double(), random(4, W_SIZE).double()
    target = F.normalize(random(4, IDENTITY_SIZE, seed=1).double(), dim=1)
    slope, h = torch.zeros_like(w), 1e-6
    for place in range(W_SIZE):
        step = torch.zeros_like(w)
        step[:, place] = h * probe.w_std[place]
        high, low = (1 - (probe(w + sign * step)[0] * target).sum(1) for sign in (1, -1))
        slope[:, place] = ((high - low) / (2 * h)).detach()
    assert probe.slope_error(w, target, slope).item() == pytest.approx(0, abs=1e-5)
    assert probe.slope_error(w, target, -slope).item() == pytest.approx(4, abs=1e-4)
    assert probe.slope_error(w, target, 3 * slope).item() == pytest.approx(0.5 * 4 / 9, abs=1e-4)


def test_slopes_teach_the_probe_slopes() -> None:
    """Of a truth that it has seen in few places, on places that it has not."""
    truth = a_probe()
    w, target = random(96, W_SIZE, seed=2), F.normalize(random(96, IDENTITY_SIZE, seed=3), dim=1)
    leaf = w.clone().requires_grad_(True)
    loss = losses.identity_cosine(truth(leaf)[0], target) * len(w)
    slope = torch.autograd.grad(loss, leaf)[0] * truth.w_std
    code = truth(w)[0].detach()
    errors = []
    for weight in (0.0, 0.3):
        torch.manual_seed(4)
        learner = Probe(LANDMARKS, width=64)
        learner.w_std.copy_(truth.w_std)
        optimizer = torch.optim.Adam(learner.parameters(), 1e-3)
        for _ in range(150):
            error = losses.identity_cosine(learner(w[:64])[0], code[:64])
            if weight:
                error = error + weight * learner.slope_error(w[:64], target[:64], slope[:64])
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        errors.append(learner.eval().slope_error(w[64:], target[64:], slope[64:]).item())
    assert errors[1] < 0.9 * errors[0]


def some(numbers: list[int]) -> Seen:
    values = torch.tensor(numbers, dtype=torch.float32)
    return Seen(*(values.view(-1, *[1] * len(shape)).expand(-1, *shape).clone() for shape in
                  ((W_SIZE,), (IDENTITY_SIZE,), (LANDMARKS, 2), (3,), (IDENTITY_SIZE,), (W_SIZE,))))  # fmt: skip


def held(memory: Memory) -> set[int]:
    drawn = memory.sample(200, torch.Generator().manual_seed(0))
    assert all(torch.equal(values.flatten(1)[:, 0], drawn.w[:, 0]) for values in drawn)  # rows stay together
    return {int(x) for x in drawn.w[:, 0]}


def test_the_memory_keeps_the_newest() -> None:
    memory = Memory(4)
    assert len(memory) == 0
    assert memory.state() == {}
    memory.add(some([1, 2, 3]))
    assert (len(memory), held(memory)) == (3, {1, 2, 3})
    memory.add(some([4, 5, 6]))
    assert (len(memory), held(memory)) == (4, {3, 4, 5, 6})
    again = Memory(4)
    again.restore(copy.deepcopy(memory.state()))
    again.add(some([7]))
    memory.add(some([7]))
    assert held(again) == held(memory) == {4, 5, 6, 7}
