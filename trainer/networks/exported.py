"""An exported bundle in the place of the networks in torch: the very graphs that the runtime runs, one face at a time.

So `fid-train evaluate` measures what ships, FP16 weights and 8-bit pictures included.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ...runtime.commands.progress import progress_of
from ...runtime.composer import Composer
from ...runtime.face.exposure import exposed
from ...runtime.identity import Identity, encoder_name
from ..pixels import as_crops, from_uint8, to_uint8


class BundleNetworks:
    """E_attr and M of a bundle, called as `trained.Trainable` is."""

    def __init__(self, composer: Composer) -> None:
        self.composer = composer

    def __call__(self, identity: Tensor, crop: Tensor, portrait: Tensor) -> Tensor:
        """Identity codes [N, D], attribute and identity crops [N, 3, S, S] in [-1, 1] -> w [N, 512]."""
        codes, crops, portraits = identity.cpu().numpy(), as_crops(to_uint8(crop)), as_crops(to_uint8(portrait))
        w = []
        for code, attributes, person in zip(codes, crops, portraits, strict=True):
            who = Identity(code, encoder_name(self.composer.bundle))
            if self.composer.bundle.takes_appearance:
                who = replace(who, appearance=self.composer.attribute_code(exposed(person)))
            w.append(self.composer.w(who, self.composer.attribute_code(attributes)))
        return torch.from_numpy(np.stack(w)).to(identity.device)

    def offsets(self, portraits: np.ndarray) -> Tensor | None:
        """Return what the composer's rounds find on identity crops uint8 [N, 256, 256, 3]: offsets in W+ [N, n_styles,
        512]; None where it has no rounds."""
        if not self.composer.rounds:
            return None
        offsets = []
        for crop in progress_of("looking closer", portraits, len(portraits)):
            offset = self.composer.identity_of(crop, refine=True).w_plus_offset
            assert offset is not None
            offsets.append(offset)
        return torch.from_numpy(np.stack(offsets))


class BundleSynthesis(nn.Module):
    """G of a bundle, called as `mobilestylegan.Synthesis` is: w [N, 512] or W+ [N, n_styles, 512] -> [N, 3, R, R] in
    [-1, 1]."""

    def __init__(self, composer: Composer) -> None:
        super().__init__()
        self.composer, self.resolution = composer, composer.resolution

    def forward(self, w: Tensor) -> Tensor:
        return from_uint8(np.stack([self.composer.image(code) for code in w.cpu().numpy()])).to(w.device)


class BundleIdentity(nn.Module):
    """E_id of a bundle that has one of its own: crop [N, 3, S, S] in [-1, 1] -> unit codes [N, code_size]."""

    def __init__(self, composer: Composer) -> None:
        super().__init__()
        self.composer, self.code_size = composer, composer.bundle.identity_size

    def forward(self, crop: Tensor) -> Tensor:
        codes = [self.composer.identity_code(one) for one in as_crops(to_uint8(crop))]
        return torch.from_numpy(np.stack(codes)).to(crop.device)


class BundleMapping(nn.Module):
    """The mapping network of a bundle that has a generator of its own: z [N, 512] -> w [N, 512]."""

    def __init__(self, composer: Composer) -> None:
        super().__init__()
        self.session = composer.open_mapping()

    def forward(self, z: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(z=z.cpu().numpy())["w"]).to(z.device)
