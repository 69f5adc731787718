"""The neutral looks, on white: plain fills, fills lit from above, and soft edges."""

import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from fedsd.data.drawing.pen import Colour, Shape

FINE = 4
_WHITE = (255, 255, 255)


def flat(shapes: list[Shape], size: int, rng: random.Random) -> Image.Image:
    """Render plain fills without outline on white, (size, size) RGB."""
    return filled(shapes, size * FINE, _WHITE).reduce(FINE)


def shaded(shapes: list[Shape], size: int, rng: random.Random) -> Image.Image:
    """Render fills that darken downwards above a small shadow, on white, (size, size) RGB."""
    fine = size * 3
    mask = silhouette(shapes, fine)
    shadow = Image.new("L", mask.size, 0)
    shadow.paste(mask, (round(fine * 0.02), round(fine * 0.035)))
    shadow = shadow.filter(ImageFilter.BoxBlur(fine * 0.02))
    canvas = Image.composite(Image.new("RGB", mask.size, (176, 180, 190)), Image.new("RGB", mask.size, _WHITE), shadow)
    for shape in shapes:
        part, corner = stencil(shape, fine)
        if part is not None:
            canvas.paste(_lit(shape.colour, part.size), corner, part)
    return canvas.reduce(3)


def soft(shapes: list[Shape], size: int, rng: random.Random) -> Image.Image:
    """Render pastel fills with blurred edges and a gentle highlight, on white, (size, size) RGB."""
    fine = size * 2
    picture = filled(shapes, fine, _WHITE)
    glow = Image.new("L", picture.size, 0)
    cx, cy, r = fine * rng.uniform(0.30, 0.42), fine * rng.uniform(0.25, 0.35), fine * 0.22
    ImageDraw.Draw(glow).ellipse((cx - r, cy - r, cx + r, cy + r), fill=130)
    glow = ImageChops.multiply(glow.filter(ImageFilter.BoxBlur(fine * 0.1)), silhouette(shapes, fine))
    picture = Image.blend(picture, Image.new("RGB", picture.size, _WHITE), 0.16)
    picture.paste(_WHITE, (0, 0), glow)
    return picture.filter(ImageFilter.GaussianBlur(fine * 0.014)).reduce(2)


def filled(shapes: list[Shape], side: int, ground: Colour) -> Image.Image:
    """Paint the shapes in order on a plain ground, (side, side) RGB without smoothing."""
    canvas = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(canvas)
    for shape in shapes:
        stroke(pen, shape, side, shape.colour)
    return canvas


def silhouette(shapes: list[Shape], side: int) -> Image.Image:
    """Return the union of the shapes as a mask, (side, side) L, 0 or 255."""
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    for shape in shapes:
        stroke(pen, shape, side, 255)
    return mask


def stencil(shape: Shape, side: int) -> tuple[Image.Image | None, tuple[int, int]]:
    """Return the mask of one shape cut to its bounding box, and the box's corner; None where it is off the canvas."""
    pad = shape.width * side / 2 + 2
    xs, ys = [x * side for x, _ in shape.points], [y * side for _, y in shape.points]
    x0, y0 = max(0, int(min(xs) - pad)), max(0, int(min(ys) - pad))
    x1, y1 = min(side, int(max(xs) + pad) + 1), min(side, int(max(ys) + pad) + 1)
    if x1 <= x0 or y1 <= y0:
        return None, (0, 0)
    mask = Image.new("L", (x1 - x0, y1 - y0), 0)
    moved = tuple((x - x0 / side, y - y0 / side) for x, y in shape.points)
    stroke(ImageDraw.Draw(mask), Shape(moved, shape.colour, shape.width), side, 255)
    return mask, (x0, y0)


def stroke(pen: ImageDraw.ImageDraw, shape: Shape, side: int, ink: Colour | int, extra: float = 0.0) -> None:
    """Fill a polygon, or draw a line with round ends and that much extra width, on a canvas of side pixels."""
    points = [(x * side, y * side) for x, y in shape.points]
    if shape.width == 0:
        pen.polygon(points, fill=ink)
        return
    width = max(1.0, (shape.width + extra) * side)
    pen.line(points, fill=ink, width=round(width), joint="curve")
    for x, y in (points[0], points[-1]):
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=ink)


def _lit(colour: Colour, size: tuple[int, int]) -> Image.Image:
    level = np.linspace(0.0, 1.0, size[1])[:, None]
    base = np.array(colour, float)
    column = np.where(level < 0.45, base + (255 - base) * (0.45 - level) * 0.75, base * (1 - (level - 0.45) * 0.68))
    return Image.fromarray(column.astype(np.uint8)[:, None]).resize(size)
