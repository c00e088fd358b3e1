"""The paper's losses, equations (2) to (8), each a small function. Images are RGB [N, 3, H, W] in [-1, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, five scales


def adversarial_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return equation (2) without its last term: non-saturating loss of D_W on logits [N]."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(real_logits: Tensor, real_w: Tensor, gamma: float) -> Tensor:
    """Return the last term of equation (2): gamma / 2 times the mean squared gradient norm at real w [N, 512].

    `real_logits` [N] are D_W's answers to `real_w`, which requires a gradient.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_w, create_graph=True)
    return 0.5 * gamma * gradient.square().sum(dim=1).mean()


def adversarial_g(fake_logits: Tensor) -> Tensor:
    """Return equation (3): non-saturating loss of the mapper on logits [N]."""
    return F.softplus(-fake_logits).mean()


def identity_l1(code: Tensor, target: Tensor) -> Tensor:
    """Return equation (4): L1 distance of identity codes [N, 128], mean over the batch."""
    return (code - target).abs().sum(dim=1).mean()


def identity_cosine(code: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cosine of unit identity codes [N, 128]: the same aim as equation (4), on the sphere the codes live
    on."""
    return (1 - (code * target).sum(dim=1)).mean()


def landmarks_l2(points: Tensor, target: Tensor) -> Tensor:
    """Return equation (5): Euclidean distance of all landmarks [N, K, 2] as one vector, mean over the batch."""
    return (points - target).flatten(1).norm(dim=1).mean()


def landmarks_squared(points: Tensor, target: Tensor) -> Tensor:
    """Return equation (5), squared and per point: mean squared distance of landmarks [N, K, 2]."""
    return (points - target).square().sum(dim=2).mean()


def gaps_squared(points: Tensor, target: Tensor, pairs: Tensor, weights: Tensor) -> Tensor:
    """Return the mean squared difference of the gaps between pairs [G, 2] of landmarks [N, K, 2], each gap counted as
    often as its weight [G] says: how far eyes and lips are open, wherever the face is."""
    own, wanted = (x[:, pairs[:, 0]] - x[:, pairs[:, 1]] for x in (points, target))
    return ((own - wanted) * weights[:, None]).square().sum(dim=2).mean()


def ms_ssim(image: Tensor, target: Tensor, scales: int = 5) -> Tensor:
    """Return the multi-scale structural similarity [N] (Wang et al. 2003), 11 px Gaussian window of 1.5 px, values in
    [-1, 1].

    Raises ValueError when the coarsest scale is smaller than the window: a side is 11 * 2^(scales-1) px at least.
    pytorch-msssim 1.0 agrees on grey pictures, but refuses 160 px and less at any number of scales: 128 px are needed.
    """
    if min(image.shape[-2:]) < 11 << (scales - 1):
        raise ValueError(
            f"{tuple(image.shape[-2:])} px is too small for {scales} scales: expected {11 << (scales - 1)} px or more"
        )
    weights = image.new_tensor(MS_SSIM_WEIGHTS[:scales])
    weights = weights / weights.sum()
    coordinates = torch.arange(11, device=image.device, dtype=image.dtype) - 5
    window = torch.exp(-coordinates.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(image.shape[1], 1, -1)

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, window[:, :, None, :], groups=x.shape[1])
        return F.conv2d(x, window[:, :, :, None], groups=x.shape[1])

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # range 2
    result = image.new_ones(len(image))
    x, y = image, target
    for scale in range(scales):
        mean_x, mean_y = blur(x), blur(y)
        variance_x = blur(x * x) - mean_x.square()
        variance_y = blur(y * y) - mean_y.square()
        covariance = blur(x * y) - mean_x * mean_y
        structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
        if scale == scales - 1:
            structure = structure * (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        result = result * structure.mean(dim=(1, 2, 3)).clamp_min(1e-6) ** weights[scale]
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return result


def mix(image: Tensor, target: Tensor, alpha: float = 0.84, scales: int = 5) -> Tensor:
    """Return equation (6): alpha (1 - MS-SSIM) + (1 - alpha) L1, per image [N]."""
    l1 = (image - target).abs().mean(dim=(1, 2, 3))
    return alpha * (1 - ms_ssim(image, target, scales)) + (1 - alpha) * l1


def reconstruction(image: Tensor, target: Tensor, same: Tensor, alpha: float = 0.84, scales: int = 5) -> Tensor:
    """Return equation (7): `mix` where I_id = I_attr (`same` [N] bool), 0 elsewhere; mean over the batch."""
    if not same.any():
        return image.new_zeros(())
    return mix(image[same], target[same], alpha, scales).sum() / len(image)


def coarse_colour(image: Tensor, target: Tensor, cells: int = 8) -> Tensor:
    """Return L1 of the images averaged to `cells` x `cells`: light and background, coarser than facial detail."""
    return (F.adaptive_avg_pool2d(image, cells) - F.adaptive_avg_pool2d(target, cells)).abs().mean()


def _face_oval(size: int, device: torch.device) -> Tensor:
    """1 on the face of an aligned crop, 0 off it, soft between: [size, size]."""
    y, x = torch.meshgrid(*[(torch.arange(size, device=device) + 0.5) / size] * 2, indexing="ij")
    distance = (((x - 0.5) / 0.26).square() + ((y - 0.57) / 0.34).square()).sqrt()
    return ((1.15 - distance) / 0.3).clamp(0, 1)


def skin_colour(image: Tensor) -> Tensor:
    """Return the logarithm of the face's mean red, green and blue in linear light: crop [N, 3, S, S] in [-1, 1] -> [N,
    3].

    Linear light is taken as the power 2.2 of a value.
    """
    oval = _face_oval(image.shape[-1], image.device)
    linear = ((image + 1) / 2).clamp_min(1e-3) ** 2.2
    return ((linear * oval).sum(dim=(2, 3)) / oval.sum()).clamp_min(1e-3).log()


def border_colours(image: Tensor, cells: int = 8) -> Tensor:
    """Return the logarithms of the mean colours along the left, right and upper border: crop [N, 3, S, S] in [-1, 1] ->
    [N, D].

    D is 3 times the number of border cells when the crop is cut into `cells` x `cells`.
    """
    coarse = (F.adaptive_avg_pool2d(image, cells) + 1) / 2
    parts = (coarse[..., 0], coarse[..., -1], coarse[..., 0, 1:-1])
    return (torch.cat(parts, dim=2).clamp_min(0) + 0.03).log().flatten(1)


def with_skin(image: Tensor, change: Tensor) -> Tensor:
    """Return the crop, its face lightened or tinted until `skin_colour` differs by about `change` [N, 3]."""
    oval = _face_oval(image.shape[-1], image.device)
    gain = (change / 2.2).exp()[:, :, None, None]
    return torch.lerp(image, (((image + 1) / 2 * gain) * 2 - 1).clamp(-1, 1), oval)
