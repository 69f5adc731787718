"""A pen that collects coloured shapes in unit coordinates (x to the right, y down, both in [0, 1])."""

import colorsys
import math
import random
from dataclasses import dataclass, replace

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

_HSV = {
    "red": (0.0, 0.82, 0.87),
    "orange": (0.075, 0.85, 0.96),
    "yellow": (0.135, 0.75, 0.98),
    "lime": (0.22, 0.65, 0.80),
    "green": (0.36, 0.65, 0.66),
    "forest": (0.38, 0.62, 0.45),
    "teal": (0.49, 0.60, 0.68),
    "sky": (0.55, 0.42, 0.94),
    "blue": (0.60, 0.70, 0.82),
    "navy": (0.63, 0.60, 0.45),
    "purple": (0.76, 0.55, 0.72),
    "pink": (0.94, 0.42, 0.96),
    "rose": (0.96, 0.62, 0.90),
    "brown": (0.07, 0.62, 0.50),
    "wood": (0.085, 0.52, 0.68),
    "tan": (0.10, 0.38, 0.86),
    "cream": (0.11, 0.16, 0.96),
    "grey": (0.58, 0.06, 0.62),
    "silver": (0.58, 0.07, 0.80),
    "pale": (0.56, 0.09, 0.93),
    "slate": (0.60, 0.20, 0.38),
    "black": (0.62, 0.15, 0.16),
    "white": (0.0, 0.0, 1.0),
}
_FIXED = {"white", "black"}


@dataclass(frozen=True)
class Shape:
    """One primitive: a filled polygon where width is 0, otherwise a stroked line of that width (canvas units)."""

    points: tuple[Point, ...]
    colour: Colour
    width: float = 0.0


class Pen:
    """Collects shapes in painting order; its random numbers vary colours and proportions."""

    def __init__(self, rng: random.Random) -> None:
        """Start an empty drawing whose hue and brightness shift come from rng."""
        self.rng = rng
        self.shapes: list[Shape] = []
        self._hue = rng.uniform(-0.022, 0.022)
        self._value = rng.uniform(0.90, 1.08)

    def vary(self, value: float, share: float = 0.1) -> float:
        """Return value changed by at most that share of itself."""
        return value * (1 + self.rng.uniform(-share, share))

    def pick(self, *names: str) -> str:
        """Return one of the colour names."""
        return self.rng.choice(names)

    def chance(self, probability: float) -> bool:
        """Return True with that probability."""
        return self.rng.random() < probability

    def poly(self, colour: str, *points: Point) -> None:
        """Add a filled polygon."""
        self.shapes.append(Shape(points, self._rgb(colour)))

    def blob(self, colour: str, *points: Point) -> None:
        """Add a filled closed smooth curve (Catmull-Rom) through the points."""
        self.poly(colour, *_smooth(points))

    def ellipse(self, colour: str, cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> None:
        """Add a filled ellipse, turned clockwise by that many degrees."""
        points = _arc((cx, cy, rx, ry), 0, 360)
        self.poly(colour, *(_turned(p, (cx, cy), turn) for p in points))

    def sector(self, colour: str, box: Box, start: float, end: float, pie: bool = False) -> None:
        """Add the filled part of the ellipse (cx, cy, rx, ry) between two angles, clockwise degrees from the right."""
        points = _arc(box, start, end)
        self.poly(colour, *points, *([box[:2]] if pie else []))

    def rect(self, colour: str, x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> None:
        """Add a filled rectangle with corners of radius r."""
        if r <= 0:
            self.poly(colour, (x0, y0), (x1, y0), (x1, y1), (x0, y1))
            return
        corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
        self.poly(colour, *(p for x, y, a in corners for p in _arc((x, y, r, r), a, a + 90, 6)))

    def line(self, colour: str, width: float, *points: Point) -> None:
        """Add a stroked line through the points."""
        self.shapes.append(Shape(points, self._rgb(colour), width))

    def arc(self, colour: str, width: float, box: Box, start: float, end: float) -> None:
        """Add a stroked arc of the ellipse (cx, cy, rx, ry) between two angles, clockwise degrees from the right."""
        self.line(colour, width, *_arc(box, start, end))

    def eye(self, x: float, y: float, r: float = 0.03) -> None:
        """Add a dark eye with a small glint."""
        self.ellipse("black", x, y, r, r)
        self.ellipse("white", x + r * 0.3, y - r * 0.35, r * 0.35, r * 0.35)

    def _rgb(self, name: str) -> Colour:
        h, s, v = _HSV[name]
        if name not in _FIXED:
            h, v = (h + self._hue) % 1.0, min(1.0, v * self._value)
        r, g, b = colorsys.hsv_to_rgb(h, s, v)
        return round(r * 255), round(g * 255), round(b * 255)


def framed(shapes: list[Shape], rng: random.Random, fill: float) -> list[Shape]:
    """Turn, perhaps mirror, and scale the shapes so that the longer side takes about that share of the canvas."""
    turn, side, mirror = rng.uniform(-7, 7), fill * rng.uniform(0.9, 1.0), rng.random() < 0.5
    turned = [[_turned(p, (0.5, 0.5), turn) for p in s.points] for s in shapes]
    xs = [x + d for s, ps in zip(shapes, turned, strict=True) for x, _ in ps for d in (-s.width / 2, s.width / 2)]
    ys = [y + d for s, ps in zip(shapes, turned, strict=True) for _, y in ps for d in (-s.width / 2, s.width / 2)]
    scale = side / max(max(xs) - min(xs), max(ys) - min(ys))
    cx, cy = (min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2
    room = (1 - side) / 2 * 0.8
    dx, dy = rng.uniform(-room, room), rng.uniform(-room, room)
    sx = -scale if mirror else scale
    left, top = 0.5 + dx, 0.5 + dy
    return [
        replace(s, width=s.width * scale, points=tuple((left + (x - cx) * sx, top + (y - cy) * scale) for x, y in ps))
        for s, ps in zip(shapes, turned, strict=True)
    ]


def _arc(box: Box, start: float, end: float, parts: int = 0) -> list[Point]:
    cx, cy, rx, ry = box
    n = parts or max(8, round(abs(end - start) / 10))
    angles = [math.radians(start + (end - start) * i / n) for i in range(n + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _turned(point: Point, centre: Point, degrees: float) -> Point:
    a, x, y = math.radians(degrees), point[0] - centre[0], point[1] - centre[1]
    return centre[0] + x * math.cos(a) - y * math.sin(a), centre[1] + x * math.sin(a) + y * math.cos(a)


def _smooth(points: tuple[Point, ...], parts: int = 6) -> list[Point]:
    n, out = len(points), []
    for i in range(n):
        p0, p1, p2, p3 = (points[(i + k) % n] for k in (-1, 0, 1, 2))
        for j in range(parts):
            t = j / parts
            out.append((_catmull(t, p0[0], p1[0], p2[0], p3[0]), _catmull(t, p0[1], p1[1], p2[1], p3[1])))
    return out


def _catmull(t: float, a: float, b: float, c: float, d: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t * t + (3 * b - a - 3 * c + d) * t**3)
