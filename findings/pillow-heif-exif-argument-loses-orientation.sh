#!/bin/sh
# Saved with exif=... of orientation 6, a HEIC file of pillow-heif opens unturned with no orientation, while JPEG and AVIF of the same call open turned.
# pillow-heif 1.8.1, Pillow 13.0.0. One would guess: the argument `exif` of Image.save means the same in every format
# (Pillow's AVIF writes `irot` from it); here only an orientation inside the image's own getexif() is kept.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 pillow-heif==1.8.1
"$folder/venv/bin/python" - <<'PYTHON'
import io, sys
import PIL, pillow_heif
from PIL import Image, ImageOps

pillow_heif.register_heif_opener()
print("Pillow", PIL.__version__, "pillow-heif", pillow_heif.__version__)


def shown(kind, own):
    image = Image.new("RGB", (160, 96), "white")
    exif = image.getexif() if own else Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 96 wide, 160 high
    file = io.BytesIO()
    image.save(file, kind, **({} if own else {"exif": exif}))
    return ImageOps.exif_transpose(Image.open(file)).size


sizes = {kind: shown(kind, own=False) for kind in ("JPEG", "AVIF", "HEIF")}
print("exif given to save:", sizes)
print("HEIF, orientation in the image's own getexif():", shown("HEIF", own=True))
expected = {"JPEG": (96, 160), "AVIF": (96, 160), "HEIF": (160, 96)}
sys.exit(sizes != expected or shown("HEIF", own=True) != (96, 160))
PYTHON
