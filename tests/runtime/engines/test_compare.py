"""The comparison of an engine with FP32."""

import numpy as np
from fid.runtime.engines.compare import psnr_db


def test_psnr_of_each_picture():
    black = np.zeros((2, 4, 4, 3), np.uint8)
    grey = black.copy()
    grey[1] += 2
    np.testing.assert_allclose(psnr_db(black, grey), [99, 42.11], atol=0.01)
