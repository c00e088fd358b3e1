"""Training with an identity encoder of the user's: the sizes follow, and data of another encoder are refused."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from fid.runtime.errors import InputError
from fid.trainer.data.dataset import write_dataset
from fid.trainer.fit.loop import FitLoop
from fid.trainer.fit.run import faces_of
from fid.trainer.presets import FitConfig
from fid.trainer.weights.trained import load_trained, parameter_counts
from tiny_frozen import TinyIdentity, tiny_frozen
from torch import nn

CPU = torch.device("cpu")
TINY = FitConfig(
    resolution=128,
    steps=3,
    warm_steps=1,
    self_batch=2,
    cross_batch=2,
    cross_every=1,
    probe_steps=2,
    probe_faces=16,
    probe_turns=1,
    real_identities=0,
)


class OtherIdentity(TinyIdentity):
    """Codes of 20 numbers."""

    code_size = 20

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(3 * 8 * 8, 20)


@pytest.fixture
def frozen():
    torch.manual_seed(1)
    return replace(tiny_frozen(), identity=OtherIdentity().requires_grad_(False), encoder="tiny 20")


def test_mapper_and_probe_follow_the_size_of_the_code(frozen, tmp_path):
    loop = FitLoop(TINY, frozen, None, CPU)
    loop.start()
    for _ in range(3):
        figures = loop.step()
    assert {"identity", "probe identity"} <= figures.keys()
    saved = loop.save(tmp_path / "run", {})
    trained = load_trained(saved)
    assert trained.mapper.identity_size == loop.networks.mapper.identity_size == 20
    again = FitLoop(TINY, frozen, None, CPU)
    again.restore(saved)
    counts = parameter_counts(TINY, 20)
    assert counts["M"] == sum(p.numel() for p in trained.mapper.parameters())


def test_the_weight_of_equation_4_does_not_depend_on_the_size(frozen):
    config = replace(TINY, identity_loss="l1", identity_weight=1 / 128)
    code, target = F.normalize(torch.randn(3, 20), dim=1), F.normalize(torch.randn(3, 20), dim=1)
    loss = FitLoop(config, frozen, None, CPU).identity_loss(code, target)
    torch.testing.assert_close(loss, (code - target).abs().mean())


def test_faces_of_another_encoder_are_refused(frozen, tmp_path):
    options = {"psi": 0.8, "seed": 1, "stop": lambda: False, "log": lambda line: None}
    write_dataset(tmp_path / "faces", 4, frozen, **options)
    assert faces_of(tmp_path / "faces", 128, CPU, frozen).identity.shape == (4, 20)
    with pytest.raises(InputError, match="made with the identity encoder tiny 20 and training takes SFace"):
        faces_of(tmp_path / "faces", 128, CPU, tiny_frozen())
    with pytest.raises(InputError, match="made with identity_encoder tiny 20, not None: name another folder"):
        write_dataset(tmp_path / "faces", 4, tiny_frozen(), **options)
