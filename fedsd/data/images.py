"""Picture files into arrays, with every damaged or dangerous file refused by name."""

import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedsd.data.example import Example
from fedsd.data.problem import Problem, shown

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_AGAIN = "copy it again or delete it"
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, zlib.error)


def open_image(path: Path, max_pixels: int = 40_000_000) -> Image.Image:
    """Open one picture as RGB, upright, with transparency laid on white.

    The format is told by content, never by the file's name. The size is read from the header and checked before
    anything is decoded, so a decompression bomb costs no memory.

    Args:
        path: a PNG, JPEG, WebP or BMP file; of an animation the first frame is taken.
        max_pixels: largest width times height to decode.

    Returns:
        A decoded RGB picture.

    Raises:
        ValueError: if the file is missing, empty, of another format, too large, truncated or corrupt; the message
            names the file, what is wrong and the remedy.
    """
    if not path.is_file():
        raise ValueError(Problem(shown(path), "there is no such picture file", "copy it there or take it off the list"))
    if path.stat().st_size == 0:
        raise ValueError(Problem(shown(path), "the file is empty (0 bytes)", _AGAIN))
    with _opened(path, max_pixels) as image:
        if image.width * image.height > max_pixels:
            raise ValueError(_too_large(path, f"{image.width} x {image.height}", max_pixels))
        try:
            image.load()
            return _on_white(ImageOps.exif_transpose(image))
        except _DAMAGE as error:
            raise ValueError(Problem(shown(path), f"truncated or corrupt ({error})", _AGAIN)) from error


def pixels(examples: Sequence[Example], size: int) -> np.ndarray:
    """Read the pictures of examples as one array.

    Each is resized so that its shorter side has size pixels (Lanczos downwards, bicubic upwards) and cut to the
    square in its centre.

    Args:
        examples: the pictures to read, at least one.
        size: side of the squares in pixels.

    Returns:
        float32 array (N, 3, size, size) in [-1, 1].

    Raises:
        ValueError: if there are no examples, size is below 1, or a picture cannot be read.
    """
    if not examples:
        raise ValueError("no pictures to read: give at least one example")
    if size < 1:
        raise ValueError(f"size {size} is no picture size: give at least 1 pixel")
    out = np.empty((len(examples), 3, size, size), np.float32)
    for i, example in enumerate(examples):
        square = _square(open_image(example.path), size)
        out[i] = np.asarray(square, np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    return out


def _opened(path: Path, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its own limit; the limit here is stricter and refuses.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(path, "far more", max_pixels)) from error
    except UnidentifiedImageError as error:
        what = "not a readable PNG, JPEG, WebP or BMP picture"
        raise ValueError(Problem(shown(path), what, "convert it or delete it")) from error
    except _DAMAGE as error:
        raise ValueError(Problem(shown(path), f"cannot be read ({error})", _AGAIN)) from error


def _too_large(path: Path, found: str, limit: int) -> Problem:
    what = f"{found} pixels, over the limit of {limit} (a decompression bomb?)"
    return Problem(shown(path), what, "scale it down or delete it")


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 when it converts, which turns most pictures white.
        image = Image.fromarray((np.clip(np.asarray(image, np.int64), 0, 65535) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    how = Image.Resampling.LANCZOS if side > size else Image.Resampling.BICUBIC
    return image.resize((size, size), how, box=(left, top, left + side, top + side))
