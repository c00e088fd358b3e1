"""Fixtures that several tests of the trainer share: loading and measuring the frozen networks takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fid.trainer.data.dataset import FrozenNetworks


@pytest.fixture(scope="session")
def frozen(fetched: Callable[[str], Path]) -> FrozenNetworks:
    """The frozen networks around a 128 px generator whose head is random, so that faces differ. Not to be changed."""
    import torch
    from fid.trainer.data.dataset import FrozenNetworks
    from fid.trainer.networks.mobilestylegan import Synthesis

    synthesis = Synthesis.load(128, fetched("generator"))
    torch.nn.init.normal_(synthesis.to_image.skip, std=0.01, generator=torch.Generator().manual_seed(0))
    return FrozenNetworks.load(synthesis, torch.device("cpu"))
