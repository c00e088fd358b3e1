"""What `fid-train fit` can be told, and its presets: one table. Needs no torch."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class FitConfig:
    """What `fid-train fit` does; the resolved configuration is printed and kept in every checkpoint.

    Batches are those of all processes together. The defaults are the `live` preset.
    """

    resolution: int = 256  # of the generator that training sees
    attribute_encoder: str = "light"  # or "inception", the paper's
    train_attributes: bool = True  # or E_attr stays as --init has it, and the dataset's codes are computed once
    appearance: int = 48  # numbers that the mapper takes of the identity image's attribute code; 0: none
    w_plus: bool = False  # the mapper answers in W+, a w for every style
    psi: float = 0.8  # truncation of faces drawn online
    steps: int = 2500
    warm_steps: int = 1500  # the first steps see self batches only
    self_batch: int = 16  # faces whose w is regressed; 0: none
    cross_batch: int = 8
    cross_every: int = 3  # a cross batch every so many steps
    self_images: bool = False  # between cross batches, self pairs go through the generator too
    real_identities: float = 3.0  # how far identity codes are led, at most, towards ones drawn from real people's
    photo_share: float = 0.25  # share of cross attributes and identities taken from the user's photographs, where given
    augmentation: bool = True  # of attribute images
    rate: float = 5e-4
    cross_rate: float = 4e-4  # after the warm start
    cosine: bool = True  # rates fall along a cosine; else they stay
    beta2: float = 0.99  # of Adam; beta1 is 0.9
    weight_decay: float = 1e-4
    w_weight: float = 1.0  # self: mean squared error of w in standard deviations of W
    transfer_weight: float = 0.5  # cross: the same, against `data.Transfer`
    identity_loss: str = "cosine"  # or "l1", equation (4)
    identity_weight: float = 1.0
    landmarks_loss: str = "squared"  # or "l2", equation (5); of fractions of the crop
    landmarks_weight: float = 1000.0
    expression_weight: float = 0.0  # of the gaps of eyes, brows and lips, as a share of the landmarks' weight
    reconstruction_weight: float = 0.0  # self pairs through the generator, equation (7)
    colour_weight: float = 0.5  # cross: coarse colour
    skin_weight: float = 0.3  # by the probe; not 0: people keep the tone of their skin, in coarse colour too
    probe_weight: float = 0.5  # identity and landmarks of many more pairs by the probe, as a share of their weights
    probe_steps: int = 1000  # of the probe alone, at the start
    probe_faces: int = 2048  # it learns from, when there is no dataset
    probe_turns: int = 4  # of the probe in every step
    probe_slope_weight: float = 0.3  # of the true slope of the identity loss, which costs a backward pass more
    probe_memory: int = 4096  # compositions that it goes on learning from
    adversarial_weight: float = 0.05  # 0: no W discriminator
    adversarial_rate: float | None = None  # the mapper's adversarial loss is optimised apart, at this rate
    d_rate: float = 2e-4
    d_beta1: float = 0.5
    r1_gamma: float = 1.0
    ema: float = 0.995
    bf16: bool = False  # autocast
    seed: int = 1


# The paper's text gives four lambdas for the three losses of equation (8): 1, 1, 0.001, 0.02. The authors' published
# code (github.com/YotamNitzan/ID-disentanglement, trainer.py) says which they are: adversarial, identity, landmarks,
# reconstruction; and in which units: the mean of the code's differences, and the mean squared difference of coordinates
# in px of a 160 px crop. `losses` has the sum of a code's differences and squared distances in sides of the crop. The
# L1 part of the reconstruction stays a mean over pixels in -1..1, where the code takes 0..1 and sums over the batch.
PAPER = FitConfig(
    attribute_encoder="inception",
    appearance=0,
    psi=1.0,
    steps=100_000,
    warm_steps=0,
    self_batch=0,
    cross_batch=6,
    self_images=True,
    real_identities=0.0,
    augmentation=False,
    rate=5e-5,
    cross_rate=5e-5,
    cosine=False,
    beta2=0.999,
    weight_decay=0.0,
    w_weight=0.0,
    transfer_weight=0.0,
    identity_loss="l1",
    identity_weight=1 / 128,  # the numbers of a code
    landmarks_loss="squared",
    landmarks_weight=0.001 * 160**2 / 2,
    reconstruction_weight=0.02,
    colour_weight=0.0,
    skin_weight=0.0,
    probe_weight=0.0,
    probe_slope_weight=0.0,
    adversarial_weight=1.0,
    adversarial_rate=5e-6,
    d_rate=2e-5,
    d_beta1=0.9,
    r1_gamma=10.0,
)

PRESETS = {
    "live": FitConfig(),
    "paper": PAPER,
    "paper-1024": replace(
        PAPER,
        resolution=1024,
        cross_batch=2,
        rate=PAPER.rate / 10,
        cross_rate=PAPER.cross_rate / 10,
        adversarial_rate=5e-7,
        d_rate=PAPER.d_rate / 10,
    ),
    "no-landmarks": replace(PAPER, landmarks_weight=0.0),
    "no-discriminator": replace(PAPER, adversarial_weight=0.0),
}
