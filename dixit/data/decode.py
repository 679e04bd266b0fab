"""Decode an image file of any common kind to a square RGB image.

Metadata that cannot be read (EXIF, colour profiles, text) is ignored; pixels that cannot be read are an error.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

from dixit.common import DixitError, first_line

VERSION = 1  # raise it when a file of DEEP_SUFFIXES or a row of a hub data set gives other pixels than before
MAX_PIXELS = 50_000_000  # a small file can decompress to many gigabytes
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # no EPS or PDF: Pillow reads those with a program
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
DEEP_SUFFIXES = (".tif", ".tiff", ".ppm")  # may hold floats or integers of 32 bits
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_NEEDED = re.compile(b"PLTE|tRNS|IDAT|IEND|eXIf")
# EXIF orientation -> how to turn the image upright
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}


def open_image(source: str | Path | io.BytesIO, size: int, name: str = "") -> Image.Image:
    """Open an image file as size x size RGB: rotated by its EXIF tag, composited on white, scaled to fit and padded.

    Reads palettes, greyscale of 8 to 32 bits or floats, CMYK, LAB, transparency and the first frame of an animation.
    Raises DixitError, whose message begins with `name` (default: the path), if the pixels cannot be read completely.
    """
    name = name or str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings; what matters is an error below
            try:
                return fit(_decode(source), size)
            except (Image.DecompressionBombError, FileNotFoundError):
                raise
            except Exception:  # perhaps the fault is only in the metadata
                content = source.getvalue() if isinstance(source, io.BytesIO) else Path(source).read_bytes()
                plain = _without_metadata(content)
                if plain == content:
                    raise
                try:
                    return fit(_decode(io.BytesIO(plain)), size)
                except Exception:
                    pass  # the first error is the one to name
                raise
    except Image.DecompressionBombError:
        raise DixitError(f"{name} has over {MAX_PIXELS // 10**6} million pixels; make it smaller") from None
    except FileNotFoundError:
        raise DixitError(f"{name} does not exist") from None
    except Exception as error:  # a hostile file can raise almost any kind of error in Pillow's decoders
        reason = first_line(error)
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"not one of {', '.join(FORMATS)}"
            if isinstance(source, str | Path) and Path(source).stat().st_size == 0:
                reason = "the file is empty"
        raise DixitError(f"{name} is not a readable image ({reason}); replace or remove it") from None


def fit(image: Image.Image, size: int) -> Image.Image:
    """Scale an RGB image to fit into a white square of `size` pixels; the aspect ratio is kept."""
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    return square


def _decode(source: str | Path | io.BytesIO) -> Image.Image:
    """Open a file upright, as RGB of its own size."""
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with Image.open(source, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        bits = image.tag_v2.get(ExifTags.Base.BitsPerSample) if isinstance(image, TiffImageFile) else None
        image.load()
        turn = TURNS.get(_orientation(image))
        if image.mode.startswith("I") and bits == (12,):
            return _rgb(Image.fromarray((np.asarray(image) / 4095 * 255).astype(np.uint8)), turn)
        return _rgb(image, turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises almost any kind of error
        return 1


def _rgb(image: Image.Image, turn: Image.Transpose | None = None) -> Image.Image:
    """Convert an image of any mode to RGB, transparency composited on white, and turn it."""
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow's own conversion would clip instead of scale
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    if image.mode == "LAB":
        image = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"),
                                          outputMode="RGB") or image
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of a wide range as uint8.

    Integers: 16 bits are scaled; values of 32 bits that fit into 8 or 16 are taken as such. Floats: 0 to 1 is scaled,
    0 to 255 taken as it is. Any other range is stretched from its least value, black, to its greatest, white. NaN is
    black, infinity white.
    """
    if mode not in ("F", "I"):
        return (values / 257).astype(np.uint8)
    values = values.astype(np.float64)
    finite = values[np.abs(values) < 1e30]  # larger ones mark missing values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    slack = 0.05  # what resampling overshoots
    if mode == "I" and 0 <= low and high <= 65535:
        black, white = 0.0, 255.0 if high <= 255 else 65535.0
    elif mode == "F" and -slack <= low and high <= 1 + slack:
        black, white = 0.0, 1.0
    elif mode == "F" and -255 * slack <= low and 100 < high <= 255 * (1 + slack):
        black, white = 0.0, 255.0
    else:
        black, white = low, high if high > low else low + 1
    grey = (np.nan_to_num(values, nan=black, posinf=white, neginf=black).clip(black, white) - black) / (white - black)
    return (grey * 255 if mode == "I" else (grey * 255).round()).astype(np.uint8)


def _without_metadata(content: bytes) -> bytes:
    """A PNG or JPEG with only what its pixels need, and its EXIF; other content unchanged."""
    if content.startswith(PNG_START):
        return _png_without_metadata(content)
    if content.startswith(b"\xff\xd8\xff"):
        return _jpeg_without_metadata(content)
    return content


def _png_without_metadata(content: bytes) -> bytes:
    """Keeps the critical chunks (upper case), transparency, and a sound eXIf chunk."""
    kept, at = [PNG_START], len(PNG_START)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at:at + 12 + length]
        sound = len(chunk) == 12 + length and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper() or kind == b"tRNS" or kind == b"eXIf" and sound:
            kept.append(chunk)
        # Of a metadata chunk that was cut off the length is wrong: go on at the next chunk that is kept.
        after = PNG_NEEDED.search(content, at + 9) if not sound and kind[:1].islower() else None
        at = after.start() - 4 if after else at + 12 + length
    return b"".join(kept)


def _jpeg_without_metadata(content: bytes) -> bytes:
    """Drops the APP segments but JFIF, EXIF and Adobe, and comments, up to the first scan."""
    kept, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        marker, length = content[at + 1], int.from_bytes(content[at + 2:at + 4], "big")
        segment = content[at:at + 2 + length]
        exif = marker == 0xE1 and segment[4:10] == b"Exif\0\0"
        adobe = marker == 0xEE and length >= 14  # says how the colours are coded
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE) or adobe or exif:
            kept.append(segment)
        at += 2 + length
    return b"".join([*kept, content[at:]])
