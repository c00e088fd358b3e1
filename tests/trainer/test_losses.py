"""The paper's losses have closed-form values on small inputs."""

import math

import pytest
import torch
from fid.trainer import losses


def test_adversarial_losses_at_zero_and_far_logits():
    zero = torch.zeros(4)
    assert losses.adversarial_d(zero, zero).item() == pytest.approx(2 * math.log(2))
    assert losses.adversarial_g(zero).item() == pytest.approx(math.log(2))
    # -log sigmoid(x) = softplus(-x): log(1 + e) at logit -1
    assert losses.adversarial_g(torch.tensor([-1.0])).item() == pytest.approx(math.log(1 + math.e), rel=1e-6)
    assert losses.adversarial_d(torch.tensor([50.0]), torch.tensor([-50.0])).item() == pytest.approx(0, abs=1e-6)


def test_r1_of_a_linear_discriminator():
    slope = torch.tensor([3.0, 4.0])
    w = torch.randn(5, 2, requires_grad=True)
    assert losses.r1_penalty(w @ slope, w, gamma=10).item() == pytest.approx(10 / 2 * 25)


def test_r1_has_a_gradient_for_the_discriminator():
    slope = torch.tensor([3.0, 4.0], requires_grad=True)
    w = torch.randn(5, 2, requires_grad=True)
    losses.r1_penalty(w @ slope, w, gamma=2).backward()
    torch.testing.assert_close(slope.grad, 2 * slope.detach())


def test_identity_losses():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    assert losses.identity_l1(a, b).item() == pytest.approx(0.4 + 0.8)
    assert losses.identity_cosine(a, b).item() == pytest.approx(0.4)
    assert losses.identity_cosine(b, b).item() == pytest.approx(0, abs=1e-6)


def test_landmarks_losses():
    points = torch.tensor([[[0.0, 0.0], [10.0, 0.0]], [[1.0, 1.0], [2.0, 2.0]]]) / 100
    target = torch.tensor([[[3.0, 4.0], [10.0, 12.0]], [[1.0, 1.0], [2.0, 2.0]]]) / 100
    assert losses.landmarks_l2(points, target).item() == pytest.approx(0.13 / 2)
    assert losses.landmarks_squared(points, target).item() == pytest.approx((0.05**2 + 0.12**2) / 4)
    assert losses.landmarks_squared(target, target).item() == losses.landmarks_l2(target, target).item() == 0


def test_gaps_say_how_far_eyes_and_lips_are_open_wherever_the_face_is():
    pairs, weights = torch.tensor([[0, 1], [2, 1]]), torch.tensor([4.0, 1.0])
    points = torch.tensor([[[0.50, 0.40], [0.50, 0.42], [0.60, 0.42]]])
    target = torch.tensor([[[0.50, 0.40], [0.50, 0.45], [0.60, 0.45]]])  # the first gap is 0.03 wider
    assert losses.gaps_squared(points, target, pairs, weights).item() == pytest.approx((4 * 0.03) ** 2 / 2)
    assert losses.gaps_squared(points, points + 0.1, pairs, weights).item() == pytest.approx(0, abs=1e-12)


def test_ms_ssim_of_equal_and_of_constant_images():
    image = torch.rand(2, 3, 192, 192, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(losses.ms_ssim(image, image), torch.ones(2))
    # Constant images: contrast and structure are 1 at every scale, luminance counts at the last one only.
    a, b = 0.5, 0.25
    c1 = (0.01 * 2) ** 2
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    value = losses.ms_ssim(torch.full((1, 3, 192, 192), a), torch.full((1, 3, 192, 192), b)).item()
    assert value == pytest.approx(luminance**0.1333, rel=1e-3)
    with pytest.raises(ValueError, match="too small for 5 scales"):
        losses.ms_ssim(image[..., :100, :100], image[..., :100, :100])


def test_mix_and_reconstruction():
    a, b = torch.full((1, 3, 192, 192), 0.5), torch.full((1, 3, 192, 192), 0.25)
    similarity = losses.ms_ssim(a, b).item()
    expected = 0.84 * (1 - similarity) + 0.16 * 0.25
    assert losses.mix(a, b).item() == pytest.approx(expected, rel=1e-4)
    pair, other = torch.cat((a, a)), torch.cat((b, b))
    assert losses.reconstruction(pair, other, torch.tensor([False, False])).item() == 0
    assert losses.reconstruction(pair, other, torch.tensor([True, False])).item() == pytest.approx(
        expected / 2, rel=1e-4
    )


def test_mix_gradient_is_the_finite_difference():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 48, 48, generator=generator, dtype=torch.double, requires_grad=True)
    target = torch.rand(1, 1, 48, 48, generator=generator, dtype=torch.double)
    (gradient,) = torch.autograd.grad(losses.mix(image, target, scales=3).sum(), image)
    direction = torch.randn(image.shape, generator=generator, dtype=torch.double)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (losses.mix(image + s * step * direction, target, scales=3) for s in (1, -1))
        slope = (ahead - behind).sum() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-8)


def test_coarse_colour_ignores_detail():
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8).expand(1, 3, 16, 16)
    assert losses.coarse_colour(checks, torch.zeros(1, 3, 16, 16)).item() == 0
    assert losses.coarse_colour(checks + 0.25, checks).item() == pytest.approx(0.25)


def test_skin_colour_is_the_logarithm_of_linear_light():
    image = torch.tensor([0.5, 0.0, -0.5]).view(1, 3, 1, 1).expand(1, 3, 64, 64).clone()
    expected = [2.2 * math.log(0.75), 2.2 * math.log(0.5), 2.2 * math.log(0.25)]
    assert losses.skin_colour(image)[0].tolist() == pytest.approx(expected, abs=1e-5)
    image[:, :, :6] = 1.0  # above the face
    assert losses.skin_colour(image)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_with_skin_changes_the_face_and_nothing_else():
    image = torch.full((1, 3, 64, 64), -0.2)
    change = torch.tensor([[-0.6, 0.0, 0.4]])
    changed = losses.with_skin(image, change)
    moved = losses.skin_colour(changed) - losses.skin_colour(image)
    torch.testing.assert_close(moved, change, rtol=0.15, atol=1e-5)
    assert torch.equal(changed[:, :, :8], image[:, :, :8])
    torch.testing.assert_close(changed[:, :, 36, 32], (0.8 * (change / 2.2).exp() - 1))


def test_border_colours_are_those_of_the_border():
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, 8:, 8:-8] = 1  # everything but the left, right and upper border cells
    border = losses.border_colours(image)
    assert border.shape == (1, 3 * (8 + 8 + 6))
    torch.testing.assert_close(border, torch.full_like(border, 0.53).log())
