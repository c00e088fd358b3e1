"""Show colours of HDR and wide gamut on a computer screen: one table a kind, made of the standards' curves."""

from __future__ import annotations

import numpy as np

SIDE = 65  # of the table; tetrahedral interpolation between its points is off by 0.2 of 255 in the mean
ROWS = 64  # of a picture at a time, so that a large one takes no multiple of its memory
PEAK_NITS = 1000.0  # of what HDR is graded on; brighter is white
WHITE_NITS = 100.0  # what becomes white on a screen, the reference white of BT.1886 and of SDR grading
SCREEN_GAMMA = 2.2

# FFmpeg's numbers (ISO/IEC 23091-2): transfer characteristics, then colour primaries.
PQ, HLG, SRGB, GAMMA_22 = 16, 18, 13, 4
BT2020, DISPLAY_P3 = 9, 12
ADOBE_RGB = -1998  # has no number there
_WHITE = (0.3127, 0.3290)  # D65
_PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # BT.709
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    ADOBE_RGB: ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)),
    DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128  # SMPTE ST 2084, section 5
_A, _B, _C = 0.17883277, 0.28466892, 0.55991073  # BT.2100, table 5


def needs_table(primaries: int, transfer: int) -> bool:
    """Return whether pictures with these numbers of FFmpeg look wrong when they are taken as BT.709."""
    return transfer in (PQ, HLG) or primaries in (BT2020, DISPLAY_P3, ADOBE_RGB)


def screen_colour(signal: np.ndarray, primaries: int, transfer: int) -> np.ndarray:
    """Return non-linear R'G'B' float [..., 3], 0..1, of these primaries and this transfer as BT.709 R'G'B', 0..1.

    HDR is brought to light by its own curve (ST 2084; BT.2100 with the system gamma 1.2 of a 1000-nit display),
    compressed by the EETF of BT.2390 along the largest of the three channels, which keeps hues, and encoded for a
    screen. Other transfers keep theirs; only their primaries change. Out of the gamut is clipped.
    """
    matrix = to_bt709(primaries)
    if transfer in (SRGB, GAMMA_22):
        signal = np.clip(signal, 0.0, 1.0)
        straight = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
        linear = straight if transfer == SRGB else signal**2.2
        linear = np.clip(linear @ matrix.T, 0.0, 1.0)
        return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    if transfer not in (PQ, HLG):
        linear = np.clip(signal, 0.0, 1.0) ** 2.4  # BT.1886
        return np.clip(linear @ matrix.T, 0.0, 1.0) ** (1 / 2.4)
    nits = np.minimum(pq_to_nits(signal) if transfer == PQ else hlg_to_nits(signal), PEAK_NITS)
    largest = nits.max(axis=-1, keepdims=True)
    compressed = nits * (tone_mapped(largest) / np.maximum(largest, 1e-6))
    return np.clip(compressed @ matrix.T / WHITE_NITS, 0.0, 1.0) ** (1 / SCREEN_GAMMA)


def tone_mapped(nits: np.ndarray) -> np.ndarray:
    """Return light of 0 to `PEAK_NITS` as 0 to `WHITE_NITS`: the same up to a knee, then a Hermite spline in PQ.

    Report ITU-R BT.2390, section 5.4.1, with black at 0.
    """
    top = float(nits_to_pq(np.array(PEAK_NITS)))
    level = nits_to_pq(nits) / top
    white = float(nits_to_pq(np.array(WHITE_NITS))) / top
    knee = 1.5 * white - 0.5
    t = (level - knee) / (1.0 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    return pq_to_nits(np.where(level < knee, level, spline) * top)


def pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """Return the light, cd/m2, of a PQ signal 0..1 (ST 2084, equation 4.1)."""
    power = np.clip(signal, 0.0, 1.0) ** (1 / _M2)
    return 10000.0 * (np.maximum(power - _C1, 0.0) / (_C2 - _C3 * power)) ** (1 / _M1)


def nits_to_pq(nits: np.ndarray) -> np.ndarray:
    """Return the PQ signal 0..1 of light in cd/m2, 0..10000 (ST 2084, equation 5.2)."""
    power = (np.clip(nits, 0.0, 10000.0) / 10000.0) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def hlg_to_nits(signal: np.ndarray) -> np.ndarray:
    """Return the light, cd/m2, that a 1000-nit display shows for an HLG signal [..., 3] 0..1 (BT.2100, table 5)."""
    signal = np.clip(signal, 0.0, 1.0)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - _C) / _A) + _B) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return PEAK_NITS * scene * luminance[..., None] ** 0.2


def to_bt709(primaries: int) -> np.ndarray:
    """Return the matrix float [3, 3] from linear R, G, B of these primaries to those of BT.709 (white is D65)."""
    return np.linalg.solve(_to_xyz(1), _to_xyz(primaries if primaries in _PRIMARIES else 1))


def screen_picture(image: np.ndarray, primaries: int, transfer: int) -> np.ndarray:
    """Return a picture R'G'B' uint8 [height, width, 3] by `screen_colour`, computed pixel by pixel: a megapixel takes
    0.2 s, and a table whose points Pillow joins by cubes is off by up to 9 levels."""
    result = np.empty_like(image)
    for top in range(0, len(image), ROWS):
        signal = image[top : top + ROWS] / np.float32(255.0)
        result[top : top + ROWS] = np.rint(255.0 * screen_colour(signal, primaries, transfer))
    return result


def cube_file(primaries: int, transfer: int) -> str:
    """Return the table of `screen_colour` as the text of a .cube file, which FFmpeg's filter `lut3d` reads."""
    step = np.linspace(0.0, 1.0, SIDE)
    blue, green, red = np.meshgrid(step, step, step, indexing="ij")  # red runs fastest
    values = screen_colour(np.stack([red, green, blue], -1).reshape(-1, 3), primaries, transfer)
    return f"LUT_3D_SIZE {SIDE}\n" + "".join(f"{r:.6f} {g:.6f} {b:.6f}\n" for r, g, b in values.tolist())


def _to_xyz(primaries: int) -> np.ndarray:
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in _PRIMARIES[primaries]]).T
    x, y = _WHITE
    return columns * np.linalg.solve(columns, (x / y, 1.0, (1 - x - y) / y))
