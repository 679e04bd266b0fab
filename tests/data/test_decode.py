"""Images of any mode keep what they show; damaged metadata is ignored, damaged pixels are not."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from dixit.common import DixitError
from dixit.data.decode import _rgb, open_image

RAMP = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
GRADIENT = Image.radial_gradient("L").resize((32, 32)).convert("RGB")


def saved(image: Image.Image, kind: str = "TIFF", **keys: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **keys)
    return stream.getvalue()


def opened(content: bytes) -> np.ndarray:
    return np.asarray(open_image(io.BytesIO(content), 32, "the image")).astype(int)


@pytest.mark.parametrize("values", [RAMP, RAMP * 255, RAMP * 2 - 1, RAMP * 1.04 - 0.02, RAMP * 10, 250 + 70 * RAMP,
                                    RAMP * 1e6, RAMP * 65535])
def test_a_ramp_of_floats_stays_a_ramp(values):
    row = opened(saved(Image.fromarray(values.astype(np.float32))))[16, :, 0]
    assert np.abs(row - RAMP[0] * 255).max() <= 6 and (np.diff(row) >= 0).all()


def test_floats_that_are_missing_or_all_the_same():
    spoilt = np.where(RAMP < 0.2, np.nan, RAMP).astype(np.float32)
    assert np.abs(opened(saved(Image.fromarray(spoilt)))[16, 8:, 0] - RAMP[0, 8:] * 255).max() <= 1
    spoilt = np.where(RAMP < 0.2, np.float32(-3.4e38), RAMP).astype(np.float32)  # marks missing values in maps
    assert np.abs(opened(saved(Image.fromarray(spoilt)))[16, 8:, 0] - RAMP[0, 8:] * 255).max() <= 1
    for value, grey in ((0, 0), (1, 255), (np.nan, 0), (-7, 0)):
        assert (opened(saved(Image.fromarray(np.full((32, 32), value, np.float32)))) == grey).all()


@pytest.mark.parametrize("values", [RAMP * 255, RAMP * 65535, RAMP * 2e9, RAMP * 2e9 - 1e9])
def test_a_ramp_of_integers_stays_a_ramp(values):
    row = opened(saved(Image.fromarray(values.astype(np.int32))))[16, :, 0]
    assert np.abs(row - RAMP[0] * 255).max() <= 1


def test_integers_of_12_bits_are_scaled():
    assert opened(twelve_bits())[16, :, 0].tolist() == [i * 128 * 255 // 4095 for i in range(32)]


def twelve_bits() -> bytes:
    """A TIFF of 32 x 32 values of 12 bits, two in three bytes."""
    row = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
                   for a, b in ((i * 128, i * 128 + 128) for i in range(0, 32, 2)))
    entries = [(256, 32), (257, 32), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 32), (279, 32 * 48)]
    tags = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in entries)
    return (b"II*\0" + struct.pack("<I", 8 + 32 * 48) + row * 32 + struct.pack("<H", len(entries)) + tags
            + b"\0\0\0\0")


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV",
                                  "LAB", "I", "I;16", "F"])
def test_every_mode_becomes_rgb(mode):
    if mode == "LAB":
        image = ImageCms.profileToProfile(GRADIENT, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"),
                                          outputMode="LAB")
    elif mode == "I;16":
        image = Image.fromarray(np.asarray(GRADIENT.convert("L")).astype(np.uint16) * 257)
    else:
        steps = {"PA": ("RGBA",), "La": ("LA",), "RGBa": ("RGBA",)}.get(mode, ("L",) if mode in ("I", "F") else ())
        image = GRADIENT
        for step in (*steps, mode):
            image = image.convert(step)
    assert image.mode == mode
    got = np.asarray(_rgb(image)).astype(int)
    apart = np.abs(got - np.asarray(GRADIENT).astype(int))
    assert apart.mean() < {"1": 120, "P": 20}.get(mode, 4) and got.std() > 30


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


EXIF = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"  # orientation 6
PNG_DAMAGE = {
    "EXIF cut off": chunk(b"eXIf", EXIF[:9]), "EXIF checksum": chunk(b"eXIf", EXIF.replace(b"\6", b"\1"), 1),
    "EXIF shorter than its length": struct.pack(">I", 26) + b"eXIf" + EXIF[:5],
    "empty EXIF": chunk(b"eXIf", b""), "profile": chunk(b"iCCP", b"x\0\5abc"),
    "empty profile": chunk(b"iCCP", b""), "compressed text": chunk(b"zTXt", b"k\0\0garbage"),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0bad"), "text": chunk(b"iTXt", b"\xff\xff"),
    "text checksum": chunk(b"tEXt", b"a\0b", 3),
    "huge text": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * (1 << 26))),
    "size": chunk(b"pHYs", b"\1"), "gamma": chunk(b"gAMA", b""), "animation": chunk(b"acTL", b"\0")}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("damage", PNG_DAMAGE)
def test_png_with_damaged_metadata_is_read(damage, place):
    whole = saved(GRADIENT, "PNG")
    at = 33 if place == "before" else len(whole) - 12
    assert (opened(whole[:at] + PNG_DAMAGE[damage] + whole[at:]) == opened(whole)).all()


def exif(kind: int, count: int, value: bytes) -> bytes:
    """EXIF whose orientation has a type, a count and a value of four bytes, or of eight that lie behind."""
    inline = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    return b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1" + struct.pack("<HI", kind, count) + inline + b"\0\0\0\0" + value


JPEG_DAMAGE = {
    "orientation -1/0": (0xE1, exif(10, 1, struct.pack("<ii", -1, 0))), "orientation 0": (0xE1, exif(3, 1, b"\0\0")),
    "orientation 99": (0xE1, exif(3, 1, b"\x63\0")), "orientation in words": (0xE1, exif(2, 4, b"top\0")),
    "no number": (0xE1, exif(11, 1, struct.pack("<f", float("nan")))),
    "far away": (0xE1, b"Exif\0\0II*\0\xff\xff\xff\x7f"),
    "garbage": (0xE1, b"Exif\0\0garbage"), "huge count": (0xE1, exif(3, 0x7FFFFFFF, b"\1\0")),
    "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<"), "profile": (0xE2, b"ICC_PROFILE\0"),
    "second image": (0xE2, b"MPF\0bad"), "Photoshop": (0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\1a"),
    "Adobe": (0xEE, b"Adobe"), "comment": (0xFE, b"")}


@pytest.mark.parametrize("damage", JPEG_DAMAGE)
def test_jpeg_with_damaged_metadata_is_read(damage):
    marker, data = JPEG_DAMAGE[damage]
    whole = saved(GRADIENT, "JPEG", quality=95)
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data
    assert (opened(whole[:2] + segment + whole[2:]) == opened(whole)).all()


def test_orientation_is_kept_where_other_metadata_is_damaged():
    upright = saved(GRADIENT.crop((0, 0, 32, 16)), "PNG")
    turned = opened(upright[:33] + chunk(b"eXIf", EXIF) + upright[33:])
    both = opened(upright[:33] + chunk(b"zTXt", b"k", 7) + chunk(b"eXIf", EXIF) + upright[33:])
    assert (turned == both).all() and not (turned == opened(upright)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_pixels_are_refused_with_damaged_metadata_too(kind):
    whole = saved(GRADIENT, kind)
    with pytest.raises(DixitError, match="the image is not a readable image"):
        opened(whole[:len(whole) // 2])
    with pytest.raises(DixitError, match="the image is not a readable image"):
        opened(whole[:33] + PNG_DAMAGE["text"] + whole[33:len(whole) // 2])
