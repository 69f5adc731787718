"""Things of the house and of everyday life, each drawn by one function on a pen."""

import math

from fedsd.data.drawing.pen import Pen


def umbrella(p: Pen) -> None:
    """Draw an open umbrella."""
    one, two = p.pick("red", "blue", "purple", "teal"), p.pick("yellow", "white", "pink", "sky")
    p.line("brown", 0.045, (0.5, 0.05), (0.5, 0.86))
    p.arc("brown", 0.045, (0.41, 0.86, 0.09, 0.10), 0, 180)
    p.sector(one, (0.5, 0.50, 0.47, 0.42), 180, 360)
    p.sector("cream" if two == "white" else two, (0.5, 0.50, 0.24, 0.42), 180, 360)
    p.sector(one, (0.5, 0.50, 0.08, 0.42), 180, 360)


def cup(p: Pen) -> None:
    """Draw a cup with a handle and steam."""
    colour = p.pick("red", "blue", "teal", "orange", "sky")
    for x in (0.30, 0.45, 0.60):
        p.line("silver", 0.035, (x, 0.27), (x + 0.04, 0.20), (x - 0.02, 0.12), (x + 0.02, 0.05))
    p.arc(colour, 0.075, (0.76, 0.56, 0.16, 0.14), -100, 110)
    p.poly(colour, (0.10, 0.38), (0.80, 0.38), (0.72, 0.82), (0.62, 0.90), (0.28, 0.90), (0.18, 0.82))
    p.ellipse("pale", 0.45, 0.38, 0.35, 0.075)
    p.ellipse("brown", 0.45, 0.39, 0.29, 0.05)


def key(p: Pen) -> None:
    """Draw a key."""
    metal = p.pick("yellow", "orange", "grey")
    p.line(metal, 0.09, (0.42, 0.42), (0.93, 0.93))
    p.line(metal, 0.08, (0.74, 0.74), (0.86, 0.62))
    p.line(metal, 0.08, (0.86, 0.86), (0.97, 0.75))
    p.ellipse(metal, 0.28, 0.28, 0.25, 0.25)
    p.ellipse("white", 0.27, 0.27, 0.12, 0.12)


def clock(p: Pen) -> None:
    """Draw a round clock with two hands."""
    rim, hour = p.pick("red", "blue", "brown", "slate", "teal"), p.rng.uniform(0, 2 * math.pi)
    p.ellipse(rim, 0.5, 0.5, 0.48, 0.48)
    p.ellipse("cream", 0.5, 0.5, 0.39, 0.39)
    for i in range(12):
        a = 2 * math.pi * i / 12
        p.ellipse("slate", 0.5 + 0.33 * math.cos(a), 0.5 + 0.33 * math.sin(a), 0.022, 0.022)
    for a, length, width in ((hour, 0.20, 0.055), (hour * 12, 0.28, 0.035)):
        p.line("black", width, (0.5, 0.5), (0.5 + length * math.cos(a), 0.5 + length * math.sin(a)))
    p.ellipse("red", 0.5, 0.5, 0.04, 0.04)


def book(p: Pen) -> None:
    """Draw an open book."""
    cover = p.pick("red", "blue", "brown", "green", "purple")
    p.poly(cover, (0.02, 0.24), (0.5, 0.32), (0.98, 0.24), (0.98, 0.82), (0.5, 0.92), (0.02, 0.82))
    p.poly("cream", (0.07, 0.17), (0.5, 0.29), (0.5, 0.85), (0.07, 0.76))
    p.poly("pale", (0.93, 0.17), (0.5, 0.29), (0.5, 0.85), (0.93, 0.76))
    for y in (0.34, 0.46, 0.58):
        p.line("grey", 0.025, (0.14, y - 0.03), (0.43, y + 0.05))
        p.line("grey", 0.025, (0.57, y + 0.05), (0.86, y - 0.03))


def lamp(p: Pen) -> None:
    """Draw a table lamp."""
    shade = p.pick("yellow", "orange", "teal", "rose")
    p.rect("brown", 0.46, 0.45, 0.54, 0.86)
    p.ellipse("brown", 0.5, 0.90, 0.24, 0.07)
    p.poly(shade, (0.34, 0.04), (0.66, 0.04), (0.88, 0.52), (0.12, 0.52))
    p.line("brown", 0.022, (0.72, 0.52), (0.72, 0.70))


def chair(p: Pen) -> None:
    """Draw a chair from the side."""
    wood = p.pick("brown", "wood", "red", "teal")
    for x0, x1 in ((0.24, 0.20), (0.78, 0.84)):
        p.line(wood, 0.075, (x0, 0.60), (x1, 0.97))
    p.line(wood, 0.08, (0.24, 0.60), (0.17, 0.04))
    p.rect(p.pick("orange", "tan", "sky"), 0.17, 0.52, 0.87, 0.65, 0.05)
    for y in (0.12, 0.26, 0.40):
        p.line(wood, 0.065, (0.17 + y * 0.1, y), (0.38 + y * 0.1, y))
    p.line(wood, 0.06, (0.38, 0.04), (0.43, 0.54))


def hat(p: Pen) -> None:
    """Draw a top hat with a band."""
    felt = p.pick("black", "navy", "brown", "purple")
    p.ellipse(felt, 0.5, 0.80, 0.48, 0.12)
    p.poly(felt, (0.22, 0.14), (0.78, 0.14), (0.73, 0.80), (0.27, 0.80))
    p.poly(p.pick("red", "yellow", "sky"), (0.252, 0.58), (0.748, 0.58), (0.732, 0.76), (0.268, 0.76))
    p.ellipse("grey", 0.5, 0.14, 0.28, 0.06)


def heart(p: Pen) -> None:
    """Draw a heart."""
    t = [2 * math.pi * i / 40 for i in range(40)]
    xs = [16 * math.sin(a) ** 3 for a in t]
    ys = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in t]
    points = ((0.5 + 0.029 * x, 0.46 - 0.029 * y) for x, y in zip(xs, ys, strict=True))
    p.poly(p.pick("red", "rose", "red", "purple"), *points)
    p.ellipse("white", 0.25, 0.27, 0.05, 0.085, 35)


def bell(p: Pen) -> None:
    """Draw a bell."""
    p.ellipse("brown", 0.5, 0.88, 0.10, 0.09)
    p.ellipse("orange", 0.5, 0.10, 0.08, 0.08)
    p.blob(
        "yellow", (0.5, 0.09), (0.72, 0.22), (0.76, 0.54), (0.92, 0.80), (0.5, 0.82), (0.08, 0.80), (0.24, 0.54),
        (0.28, 0.22),
    )  # fmt: skip
    p.rect("orange", 0.07, 0.74, 0.93, 0.84, 0.05)


def gift(p: Pen) -> None:
    """Draw a wrapped gift with a bow."""
    paper, ribbon = p.pick("red", "blue", "green", "purple"), p.pick("yellow", "pink", "sky")
    p.rect(paper, 0.10, 0.46, 0.90, 0.97, 0.03)
    p.rect(paper, 0.04, 0.29, 0.96, 0.48, 0.03)
    p.rect(ribbon, 0.42, 0.29, 0.58, 0.97)
    p.line("slate", 0.02, (0.06, 0.48), (0.94, 0.48))
    p.ellipse(ribbon, 0.33, 0.17, 0.20, 0.10, 28)
    p.ellipse(ribbon, 0.67, 0.17, 0.20, 0.10, -28)
    p.ellipse(paper, 0.32, 0.17, 0.09, 0.04, 28)
    p.ellipse(paper, 0.68, 0.17, 0.09, 0.04, -28)
    p.ellipse(ribbon, 0.5, 0.25, 0.075, 0.07)


def candle(p: Pen) -> None:
    """Draw a burning candle in a holder."""
    p.ellipse("orange", 0.5, 0.17, 0.10, 0.16)
    p.ellipse("yellow", 0.5, 0.21, 0.05, 0.09)
    p.line("black", 0.025, (0.5, 0.30), (0.5, 0.38))
    p.rect(p.pick("cream", "red", "sky", "pink"), 0.36, 0.36, 0.64, 0.86, 0.03)
    p.arc("wood", 0.06, (0.80, 0.80, 0.10, 0.09), 0, 360)
    p.rect("wood", 0.14, 0.82, 0.78, 0.95, 0.05)


def glasses(p: Pen) -> None:
    """Draw a pair of glasses."""
    frame = p.pick("black", "red", "brown", "navy")
    for x in (0.26, 0.74):
        p.ellipse(frame, x, 0.52, 0.25, 0.22)
        p.ellipse("sky", x, 0.52, 0.185, 0.155)
        p.line("white", 0.035, (x - 0.08, 0.55), (x + 0.04, 0.43))
    p.arc(frame, 0.06, (0.5, 0.50, 0.09, 0.09), 200, 340)


def envelope(p: Pen) -> None:
    """Draw a sealed envelope."""
    paper = p.pick("cream", "pale", "tan", "sky")
    p.rect(paper, 0.02, 0.20, 0.98, 0.82, 0.03)
    p.line("brown", 0.03, (0.04, 0.80), (0.40, 0.50))
    p.line("brown", 0.03, (0.96, 0.80), (0.60, 0.50))
    p.line("brown", 0.03, (0.03, 0.22), (0.5, 0.58), (0.97, 0.22))
    p.ellipse(p.pick("red", "rose"), 0.5, 0.55, 0.09, 0.09)


def camera(p: Pen) -> None:
    """Draw a camera."""
    body = p.pick("slate", "red", "teal", "brown")
    p.rect(body, 0.34, 0.14, 0.66, 0.34, 0.04)
    p.rect("red" if body != "red" else "black", 0.10, 0.18, 0.24, 0.30, 0.02)
    p.rect(body, 0.02, 0.26, 0.98, 0.86, 0.07)
    p.rect("silver", 0.02, 0.36, 0.98, 0.46)
    p.ellipse("black", 0.5, 0.58, 0.24, 0.24)
    p.ellipse("sky", 0.5, 0.58, 0.15, 0.15)
    p.ellipse("navy", 0.5, 0.58, 0.09, 0.09)
    p.ellipse("yellow", 0.85, 0.34, 0.05, 0.05)


def hammer(p: Pen) -> None:
    """Draw a hammer."""
    p.line(p.pick("wood", "brown", "red"), 0.11, (0.50, 0.30), (0.50, 0.95))
    p.poly("slate", (0.30, 0.08), (0.68, 0.08), (0.92, 0.22), (0.96, 0.34), (0.66, 0.30), (0.30, 0.30))
    p.rect("grey", 0.08, 0.04, 0.30, 0.34, 0.03)


def scissors(p: Pen) -> None:
    """Draw open scissors."""
    grip = p.pick("red", "blue", "orange", "teal")
    for s in (-1, 1):
        p.poly("grey", (0.5 + s * 0.30, 0.02), (0.5 - s * 0.09, 0.60), (0.5 + s * 0.02, 0.64), (0.5 + s * 0.37, 0.10))
        p.arc(grip, 0.075, (0.5 + s * 0.19, 0.80, 0.14, 0.15), 0, 360)
        p.line(grip, 0.08, (0.5 + s * 0.10, 0.68), (0.5 - s * 0.02, 0.56))
    p.ellipse("black", 0.5, 0.55, 0.035, 0.035)


def pencil(p: Pen) -> None:
    """Draw a pencil with a rubber."""
    colour = p.pick("yellow", "red", "blue", "green")
    p.poly("pink", (0.80, 0.04), (0.96, 0.20), (0.88, 0.28), (0.72, 0.12))
    p.poly("silver", (0.72, 0.12), (0.88, 0.28), (0.81, 0.35), (0.65, 0.19))
    p.poly(colour, (0.65, 0.19), (0.81, 0.35), (0.32, 0.84), (0.16, 0.68))
    p.poly("cream", (0.16, 0.68), (0.32, 0.84), (0.04, 0.96))
    p.poly("black", (0.08, 0.84), (0.16, 0.92), (0.04, 0.96))


def ball(p: Pen) -> None:
    """Draw a beach ball."""
    one = p.pick("red", "blue", "purple")
    p.ellipse("pale", 0.5, 0.5, 0.47, 0.47)
    for start, colour in ((-90, one), (30, "yellow"), (150, "teal")):
        p.sector(colour, (0.5, 0.5, 0.47, 0.47), start, start + 62, pie=True)
    p.ellipse("white", 0.5, 0.5, 0.08, 0.08)


def guitar(p: Pen) -> None:
    """Draw a guitar."""
    wood = p.pick("wood", "orange", "red", "brown")
    p.line("slate", 0.085, (0.40, 0.60), (0.88, 0.12))
    p.line("black", 0.12, (0.86, 0.14), (0.95, 0.05))
    p.ellipse(wood, 0.46, 0.54, 0.18, 0.18)
    p.ellipse(wood, 0.29, 0.71, 0.26, 0.26)
    p.ellipse("black", 0.41, 0.59, 0.085, 0.085)
    p.line("black", 0.05, (0.16, 0.72), (0.28, 0.84))
    p.line("cream", 0.02, (0.22, 0.78), (0.88, 0.12))


def crown(p: Pen) -> None:
    """Draw a crown with jewels."""
    p.poly("yellow", (0.04, 0.20), (0.28, 0.50), (0.5, 0.12), (0.72, 0.50), (0.96, 0.20), (0.88, 0.84), (0.12, 0.84))
    p.rect("orange", 0.11, 0.72, 0.89, 0.86)
    for x, y in ((0.05, 0.18), (0.5, 0.11), (0.95, 0.18)):
        p.ellipse("red", x, y, 0.055, 0.055)
    for x in (0.26, 0.5, 0.74):
        p.ellipse(p.pick("blue", "green", "rose"), x, 0.66, 0.055, 0.055)


def lock(p: Pen) -> None:
    """Draw a padlock."""
    body = p.pick("yellow", "orange", "blue", "red")
    p.arc("grey", 0.10, (0.5, 0.36, 0.21, 0.28), 180, 360)
    p.line("grey", 0.10, (0.29, 0.36), (0.29, 0.50))
    p.line("grey", 0.10, (0.71, 0.36), (0.71, 0.50))
    p.rect(body, 0.15, 0.45, 0.85, 0.97, 0.07)
    p.ellipse("black", 0.5, 0.66, 0.075, 0.075)
    p.poly("black", (0.47, 0.66), (0.53, 0.66), (0.56, 0.85), (0.44, 0.85))


def bottle(p: Pen) -> None:
    """Draw a bottle with a label."""
    glass = p.pick("green", "teal", "brown", "blue")
    p.rect("tan", 0.435, 0.02, 0.565, 0.12)
    p.blob(
        glass, (0.43, 0.09), (0.57, 0.09), (0.575, 0.26), (0.69, 0.42), (0.70, 0.93), (0.5, 0.98), (0.30, 0.93),
        (0.31, 0.42), (0.425, 0.26),
    )  # fmt: skip
    p.rect("cream", 0.31, 0.52, 0.69, 0.80)
    p.ellipse(p.pick("red", "purple", "orange"), 0.5, 0.66, 0.09, 0.09)


def bulb(p: Pen) -> None:
    """Draw a light bulb."""
    p.ellipse("yellow", 0.5, 0.36, 0.34, 0.34)
    p.poly("yellow", (0.22, 0.52), (0.78, 0.52), (0.64, 0.74), (0.36, 0.74))
    left = ((0.44, 0.72), (0.38, 0.42), (0.46, 0.48))
    p.line("orange", 0.03, *left, (0.5, 0.40), *((1 - x, y) for x, y in reversed(left)))
    p.rect("grey", 0.36, 0.72, 0.64, 0.90, 0.04)
    p.line("slate", 0.025, (0.37, 0.81), (0.63, 0.81))
    p.ellipse("slate", 0.5, 0.93, 0.10, 0.05)


def shirt(p: Pen) -> None:
    """Draw a T-shirt."""
    cloth, mark = p.pick("red", "blue", "green", "orange", "sky"), p.pick("white", "yellow")
    p.poly(
        cloth, (0.30, 0.08), (0.42, 0.16), (0.58, 0.16), (0.70, 0.08), (0.98, 0.30), (0.85, 0.47), (0.75, 0.40),
        (0.75, 0.95), (0.25, 0.95), (0.25, 0.40), (0.15, 0.47), (0.02, 0.30),
    )  # fmt: skip
    p.rect(mark, 0.25, 0.52, 0.75, 0.66)
    p.arc("slate", 0.025, (0.5, 0.08, 0.15, 0.13), 15, 165)
