"""Tests that need an NVIDIA GPU: skipped, with the reason, where there is none."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _gpu() -> None:
    from fid.runtime.engines.cuda import gpu
    from fid.runtime.errors import FidError

    try:
        gpu()
    except FidError as error:
        pytest.skip(str(error))
