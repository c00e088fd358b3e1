#!/usr/bin/env bash
# Within torch.autocast to bfloat16 F.affine_grid rounds the matrix and the coordinates to eight bits: a picture of 256 px is warped by up to three quarters of a pixel, differently in every part of it, and one of 1024 px by four pixels, without a warning and with a float32 picture as the result.
# torch 2.13.0, CPU, Python 3.11; theta and picture in float32. One would have guessed that geometry is left alone, for grid_sample, inverse, solve, cdist and interpolate are:
# they are computed in float32 or kept as they come. But affine_grid is a product of matrices inside, and products are what autocast rounds; grid_sample then
# takes the rounded grid up to float32, so nothing shows it; of 1024 places in a row 638 are left. The same goes for
# points moved by `@`, bmm or einsum within autocast: landmarks of 0..256 come out more than a pixel off. Augmentation, alignment of crops and spatial
# transformers inside the training step are all hit. What helps: `with torch.autocast(device_type, enabled=False):` around what computes places.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import sys

import torch
import torch.nn.functional as F

torch.manual_seed(0)
THETA = torch.tensor([[[0.99, 0.02, 0.013], [-0.02, 0.99, -0.007]]])  # as a small misalignment
print("torch", torch.__version__)


def warped(picture, automatic, geometry=True):
    with torch.autocast("cpu", torch.bfloat16, enabled=automatic):
        with torch.autocast("cpu", torch.bfloat16, enabled=automatic and geometry):
            grid = F.affine_grid(THETA, list(picture.shape), align_corners=False)
        return grid, F.grid_sample(picture, grid, padding_mode="reflection", align_corners=False)


off = {}
for side in (128, 256, 1024):
    wave = torch.sin(torch.arange(side) * (2 * torch.pi / 16))
    picture = (wave[:, None] * wave)[None, None]
    right_grid, right = warped(picture, False)
    grid, found = warped(picture, True)
    kept_grid, kept = warped(picture, True, geometry=False)
    pixels = ((grid.float() - right_grid) * side / 2).norm(dim=-1).max().item()
    columns = len(grid[0, side // 2, :, 0].unique())
    off[side] = pixels, (found - right).abs().max().item()
    print(f"{side:4} px: grid {grid.dtype}, result {found.dtype}; up to {pixels:.2f} px off, {columns} different places in a row; "
          f"a wave of -1 to 1 of 16 px is off by {off[side][1]:.2f}")
    assert found.dtype == torch.float32 and kept_grid.dtype == torch.float32
    assert torch.equal(kept, right), "autocast taken off around affine_grid alone"

points = torch.cat([256 * torch.rand(1, 468, 2), torch.ones(1, 468, 1)], 2)
matrix = torch.tensor([[[0.99, -0.02], [0.02, 0.99], [1.3, -0.7]]])
with torch.autocast("cpu", torch.bfloat16):
    moved, inverted = points @ matrix, torch.linalg.inv(torch.eye(3))
landmarks = (moved.float() - points @ matrix).abs().max().item()
print(f"468 points of 0..256 moved by a matrix: {moved.dtype}, up to {landmarks:.2f} px off; inverse: {inverted.dtype}")
wrong = off[256][0] > 0.3 and off[1024][0] > 1.5 and off[256][1] > 0.1 and landmarks > 0.3
sys.exit(0 if wrong and grid.dtype == torch.bfloat16 and inverted.dtype == torch.float32 else "It is otherwise now.")
PY
