#!/usr/bin/env bash
# c2pa-python stores a recognisable thumbnail of every ingredient inside the signed file, though only a title was given.
#
# Seen with c2pa-python 0.38.1 (c2pa-rs 0.91.3), Python 3.11 and newer, Linux.
# One would guess that an ingredient given as {"title", "relationship"} and a stream is recorded by name and hash, as the
# JSON says. The builder makes a JPEG of the stream as well (setting builder.thumbnail.enabled, on by default) and embeds
# it in the manifest of the new picture, from where anybody reads it back with Reader.resource_to_stream. So a picture
# made from a private photo, or one that hides somebody, carries that photo along. With the setting off nothing is stored.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet c2pa-python==0.38.1 cryptography==46.0.3 pillow==12.0.0 numpy==2.3.5
env/bin/python - <<'PYTHON'
import datetime, importlib.metadata, io, json, sys

import c2pa
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

print("c2pa-python", importlib.metadata.version("c2pa-python"), "c2pa-rs", c2pa.sdk_version())


def credentials():
    """A certificate chain and a key made for this run."""
    now, keys = datetime.datetime.now(datetime.UTC), [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(kind, text) for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME)])
             for text in ("authority", "leaf")]
    chain = []
    for name, key, top in zip(names, keys, (True, False)):
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(9))
        builder = builder.add_extension(x509.BasicConstraints(top, None), True)
        builder = builder.add_extension(x509.KeyUsage(not top, False, False, False, False, top, top, False, False), True)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key())
        builder = builder.add_extension(authority, False)
        if not top:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        chain.insert(0, builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return b"".join(chain), keys[1].private_bytes(*form)


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


rows, columns = np.mgrid[0:600, 0:800]
private = np.stack([rows * 255 // 600, columns * 255 // 800, (rows // 50 + columns // 50) % 2 * 255], 2).astype(np.uint8)
public = np.full((600, 800, 3), 128, np.uint8)
chain, key = credentials()


def signed(settings):
    action = {"action": "c2pa.created", "digitalSourceType":
              "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"}
    manifest = {"claim_generator_info": [{"name": "test", "version": "1"}],
                "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}]}
    context = c2pa.Context(settings=c2pa.Settings.from_dict(settings)) if settings else c2pa.Context()
    builder = c2pa.Builder(manifest, context)
    ingredient = json.dumps({"title": "private.jpg", "relationship": "inputTo"})
    builder.add_ingredient(ingredient, "image/jpeg", io.BytesIO(jpeg(private)))
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, key, None))
    result = io.BytesIO()
    builder.sign(signer, "image/jpeg", io.BytesIO(jpeg(public)), result)
    reader = c2pa.Reader("image/jpeg", io.BytesIO(result.getvalue()))
    told = json.loads(reader.json())
    thumbnail = told["manifests"][told["active_manifest"]]["ingredients"][0].get("thumbnail")
    if thumbnail is None:
        return len(result.getvalue()), None
    stored = io.BytesIO()
    reader.resource_to_stream(thumbnail["identifier"], stored)
    return len(result.getvalue()), np.asarray(Image.open(io.BytesIO(stored.getvalue())).convert("RGB"))


size, stored = signed(None)
print(f"default: {size} bytes, thumbnail of the ingredient: {None if stored is None else stored.shape}")
off, nothing = signed({"builder": {"thumbnail": {"enabled": False}}})
print(f"builder.thumbnail.enabled false: {off} bytes, thumbnail: {nothing}")
if stored is None or nothing is not None:
    sys.exit("the behaviour has changed")
small = np.asarray(Image.fromarray(private).resize(stored.shape[1::-1], Image.Resampling.BICUBIC), np.float32)
error = float(np.abs(small - stored).mean())
print(f"mean difference of the stored picture from the private one: {error:.1f} of 255")
sys.exit(None if error < 20 else "the behaviour has changed")
PYTHON
