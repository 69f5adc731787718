"""The styles that clients bring: pencil sketch, cartoon, painting and pixel art, plainly different at a glance."""

import colorsys
import math
import random
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fedsd.data.drawing.looks import FINE, filled, silhouette, stencil, stroke
from fedsd.data.drawing.pen import Colour, Shape

_PAPER = (243, 240, 230)
_BLOCKS = 16
_PALETTE = np.array(
    [
        (26, 28, 44), (93, 39, 93), (177, 62, 83), (239, 125, 87), (255, 205, 117), (167, 240, 112), (56, 183, 100),
        (37, 113, 121), (41, 54, 111), (59, 93, 201), (65, 166, 246), (115, 239, 247), (244, 244, 244), (148, 176, 194),
        (86, 108, 134), (51, 60, 87), (140, 82, 48), (214, 160, 110), (235, 130, 190),
    ],
    dtype=np.int32,
)  # fmt: skip
_DARK_GROUNDS = ((138, 62, 54), (112, 60, 82), (128, 78, 50))
_LIGHT_GROUNDS = ((240, 212, 160), (236, 196, 150), (236, 200, 184))
_GROUNDS = ((188, 222, 160), (160, 205, 232), (205, 184, 230), (240, 208, 160))


def sketch(shapes: list[Shape], size: int, rng: random.Random) -> Image.Image:
    """Render grey pencil: repeated jittered outlines and hatching on off-white paper, (size, size) RGB."""
    fine = size * 3
    canvas = Image.new("RGB", (fine, fine), _PAPER)
    tones = [_hatching(fine, rng, step) for step in (0.028, 0.045, 0.075)]
    pen = ImageDraw.Draw(canvas)
    for shape in shapes:
        part, (x, y) = stencil(shape, fine)
        if part is None:
            continue
        if shape.width > 0:
            stroke(pen, shape, fine, (66, 66, 69), extra=0.034)
        canvas.paste(_PAPER, (x, y), part)
        light = _light(shape.colour)
        if light < 0.9:
            tone = tones[0 if light < 0.35 else 1 if light < 0.62 else 2]
            canvas.paste(tone.crop((x, y, x + part.width, y + part.height)), (x, y), part)
        if shape.width == 0 or shape.width < 0.03:
            _pencil(pen, shape, fine, rng)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 4, (size, size, 1))
    return _image(np.asarray(canvas.reduce(3), float) + noise)


def cartoon(shapes: list[Shape], size: int, rng: random.Random) -> Image.Image:
    """Render saturated fills with thick black outlines on a flat coloured ground, (size, size) RGB."""
    fine = size * FINE
    canvas = Image.new("RGB", (fine, fine), _contrast(shapes, rng))
    pen = ImageDraw.Draw(canvas)
    ink = 0.038
    for shape in shapes:
        stroke_width = min(ink, 0.18 * _extent(shape))
        if shape.width == 0:
            edge = Shape((*shape.points, *shape.points[:2]), shape.colour, stroke_width)
            stroke(pen, shape, fine, _vivid(shape.colour))
            stroke(pen, edge, fine, (12, 10, 14))
        else:
            stroke(pen, shape, fine, (12, 10, 14), extra=min(ink, shape.width))
            stroke(pen, shape, fine, _vivid(shape.colour))
    return canvas.reduce(FINE)


def painted(shapes: list[Shape], size: int, rng: random.Random) -> Image.Image:
    """Render oriented brush dabs in a warm palette over the whole of a woven canvas, (size, size) RGB."""
    fine = size * 2
    ground = rng.choice(_DARK_GROUNDS if _brightness(shapes) > 0.58 else _LIGHT_GROUNDS)
    model = _warm(filled(shapes, fine, ground))
    colours = np.asarray(model.reduce(2), int)
    angles = _directions(colours, rng)
    canvas = model.filter(ImageFilter.BoxBlur(1))
    noise = np.random.default_rng(rng.getrandbits(32))
    pen = ImageDraw.Draw(canvas)
    for count, length, width in ((240, 0.13, 0.055), (760, 0.06, 0.024)):
        _dabs(pen, colours, angles, noise, (count, length * fine, width * fine))
    rows = np.arange(size)
    texture = 5.0 * ((rows[:, None] + rows[None, :]) % 2) + noise.normal(0, 4, (size, size))
    return _image(np.asarray(canvas.reduce(2), float) + texture[:, :, None] - 2.5)


def pixel(shapes: list[Shape], size: int, rng: random.Random) -> Image.Image:
    """Render 16 x 16 blocks of a restricted palette with a dark outline on a plain ground, (size, size) RGB."""
    side = _BLOCKS * 4
    small = [replace(s, points=tuple((0.06 + 0.88 * x, 0.06 + 0.88 * y) for x, y in s.points)) for s in shapes]
    rgb = np.asarray(filled(small, side, (0, 0, 0)), np.int32)
    inside = np.asarray(silhouette(small, side)) > 0
    index = np.argmin(((rgb[:, :, None] - _PALETTE) ** 2).sum(-1), axis=-1)
    votes = np.eye(len(_PALETTE))[index] * inside[:, :, None]
    votes = votes.reshape(_BLOCKS, 4, _BLOCKS, 4, -1).sum((1, 3))
    solid = votes.sum(-1) >= 7
    rare = (1 + votes.sum((0, 1))) ** -0.4
    blocks = _PALETTE[(votes * rare).argmax(-1)]
    padded = np.pad(solid, 1)
    near = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    picture = np.where(solid[:, :, None], blocks, np.array(rng.choice(_GROUNDS)))
    picture[near & ~solid] = _PALETTE[0]
    return _image(picture).resize((size, size), Image.Resampling.NEAREST)


def _hatching(side: int, rng: random.Random, step: float) -> Image.Image:
    layer = Image.new("RGB", (side, side), _PAPER)
    pen = ImageDraw.Draw(layer)
    slope, grey = rng.uniform(0.7, 1.1), rng.randint(120, 145)
    at = -side * 1.2
    while at < side:
        jitter = rng.uniform(-0.01, 0.01) * side
        pen.line((at, 0, at + side * slope + jitter, side), fill=(grey, grey, grey), width=max(1, side // 120))
        at += step * side * rng.uniform(0.8, 1.2)
    return layer


def _pencil(pen: ImageDraw.ImageDraw, shape: Shape, side: int, rng: random.Random) -> None:
    points = [(x * side, y * side) for x, y in shape.points]
    if shape.width == 0:
        points.append(points[0])
    for grey in (52, 80):
        dx, dy, amount = rng.uniform(-0.008, 0.008) * side, rng.uniform(-0.008, 0.008) * side, 0.004 * side
        path = [(x + dx + rng.uniform(-amount, amount), y + dy + rng.uniform(-amount, amount)) for x, y in points]
        pen.line(path, fill=(grey, grey, grey + 3), width=max(1, round(side * 0.016)))


def _contrast(shapes: list[Shape], rng: random.Random) -> Colour:
    largest = max(shapes, key=_extent).colour
    h, _, _ = colorsys.rgb_to_hsv(*(c / 255 for c in largest))
    r, g, b = colorsys.hsv_to_rgb((h + 0.5 + rng.uniform(-0.16, 0.16)) % 1.0, 0.55, 0.95)
    return round(r * 255), round(g * 255), round(b * 255)


def _vivid(colour: Colour) -> Colour:
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    r, g, b = colorsys.hsv_to_rgb(h, min(1.0, s * 1.35 if s > 0.12 else s), min(1.0, v * 1.12))
    return round(r * 255), round(g * 255), round(b * 255)


def _extent(shape: Shape) -> float:
    xs, ys = [x for x, _ in shape.points], [y for _, y in shape.points]
    return min(max(xs) - min(xs), max(ys) - min(ys))


def _brightness(shapes: list[Shape]) -> float:
    picture = np.asarray(filled(shapes, 32, (0, 0, 0)), float) @ np.array([0.299, 0.587, 0.114])
    return float(picture[np.asarray(silhouette(shapes, 32)) > 0].mean() / 255)


def _light(colour: Colour) -> float:
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255


def _warm(picture: Image.Image) -> Image.Image:
    rgb = np.asarray(picture, float)
    grey = rgb.mean(-1, keepdims=True)
    return _image((rgb * 0.82 + grey * 0.10) * np.array([1.06, 0.96, 0.80]) + np.array([16, 8, 0]))


def _directions(colours: np.ndarray, rng: random.Random) -> np.ndarray:
    side = len(colours)
    grey = Image.fromarray(colours.mean(-1).astype(np.uint8)).filter(ImageFilter.BoxBlur(2))
    gy, gx = np.gradient(np.asarray(grey, float))
    y, x = np.indices((side, side)) / side
    swirl = rng.uniform(0, math.pi) + 1.2 * np.sin(3 * x + rng.uniform(0, 6)) + 1.2 * np.cos(3 * y + rng.uniform(0, 6))
    along: np.ndarray = np.where(np.hypot(gx, gy) > 4, np.arctan2(gy, gx) + math.pi / 2, swirl)
    return along


def _dabs(
    pen: ImageDraw.ImageDraw,
    colours: np.ndarray,
    angles: np.ndarray,
    noise: np.random.Generator,
    dab: tuple[int, float, float],
) -> None:
    count, length, width = dab
    side = len(colours)
    grain = sum(np.abs(np.diff(colours, axis=k, prepend=colours.take([0], k))).sum(-1) for k in (0, 1))
    chance = (grain.ravel() > 40) * 1.5 + 1.0
    at = np.stack(np.divmod(noise.choice(side * side, count, p=chance / chance.sum()), side), 1)
    tint = np.clip(colours[at[:, 0], at[:, 1]] + noise.normal(0, 11, (count, 1)), 0, 255).astype(int)
    angle = angles[at[:, 0], at[:, 1]] + noise.normal(0, 0.2, count)
    dx, dy = np.cos(angle) * length / 2, np.sin(angle) * length / 2
    x, y = at[:, 1] * 2 + 1, at[:, 0] * 2 + 1
    ends = np.stack([x - dx, y - dy, x + dx, y + dy], 1).tolist()
    for line, ink in zip(ends, tint.tolist(), strict=True):
        pen.line(line, fill=tuple(ink), width=round(width))


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
