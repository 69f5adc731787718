"""Plants, sky and food, each drawn by one function on a pen."""

import math

from fedsd.data.drawing.pen import Box, Pen, Point


def sun(p: Pen) -> None:
    """Draw a sun: a disc with rays."""
    n = p.rng.choice((8, 10, 12))
    for i in range(n):
        a, w = 2 * math.pi * i / n, math.pi / n * 0.6
        tip, base = 0.48, 0.30
        p.poly(
            "orange",
            (0.5 + tip * math.cos(a), 0.5 + tip * math.sin(a)),
            (0.5 + base * math.cos(a + w), 0.5 + base * math.sin(a + w)),
            (0.5 + base * math.cos(a - w), 0.5 + base * math.sin(a - w)),
        )
    p.ellipse("yellow", 0.5, 0.5, 0.28, 0.28)


def moon(p: Pen) -> None:
    """Draw a crescent moon."""
    bite = p.vary(0.30, 0.12)
    outer = [_on((0.5, 0.5, 0.45, 0.45), a) for a in range(50, 311, 10)]
    inner = [_on((0.5 + bite, 0.5, -0.9 * (bite + 0.15), 0.345), a) for a in range(-90, 91, 10)]
    p.poly("yellow", *outer, *inner)
    p.ellipse("tan", 0.22, 0.42, 0.05, 0.05)
    p.ellipse("tan", 0.27, 0.64, 0.035, 0.035)


def star(p: Pen) -> None:
    """Draw a star of five points."""
    inner = p.vary(0.22, 0.12)
    radii = (0.48, inner) * 5
    angles = [math.radians(-90 + 36 * i) for i in range(10)]
    p.poly(
        p.pick("yellow", "yellow", "orange"),
        *((0.5 + r * math.cos(a), 0.5 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)),
    )


def cloud(p: Pen) -> None:
    """Draw a cloud of overlapping puffs."""
    colour = p.pick("sky", "pale", "silver")
    p.rect(colour, 0.08, 0.5, 0.92, 0.74, 0.12)
    p.ellipse(colour, 0.30, 0.48, p.vary(0.17), 0.17)
    p.ellipse(colour, 0.52, 0.40, p.vary(0.21), 0.21)
    p.ellipse(colour, 0.72, 0.50, p.vary(0.16), 0.16)


def rainbow(p: Pen) -> None:
    """Draw a rainbow between two small clouds."""
    for i, colour in enumerate(("red", "orange", "yellow", "green", "blue", "purple")):
        p.arc(colour, 0.066, (0.5, 0.72, 0.44 - 0.06 * i, 0.46 - 0.06 * i), 180, 360)
    for x in (0.16, 0.84):
        p.ellipse("pale", x - 0.07, 0.74, 0.09, 0.08)
        p.ellipse("pale", x + 0.07, 0.74, 0.09, 0.08)
        p.ellipse("pale", x, 0.70, 0.09, 0.09)


def mountain(p: Pen) -> None:
    """Draw two mountains with snow on their tops."""
    rock = p.pick("slate", "purple", "grey", "brown")
    p.poly("forest", (0.40, 0.90), (0.70, 0.38), (0.99, 0.90))
    p.poly(rock, (0.02, 0.90), (0.40, 0.10), (0.78, 0.90))
    p.poly("pale", (0.40, 0.10), (0.542, 0.40), (0.47, 0.34), (0.41, 0.42), (0.34, 0.35), (0.258, 0.40))


def tree(p: Pen) -> None:
    """Draw a leafy tree with a trunk."""
    leaf = p.pick("green", "green", "forest", "lime")
    p.poly("brown", (0.43, 0.55), (0.57, 0.55), (0.61, 0.97), (0.39, 0.97))
    p.ellipse(leaf, 0.30, 0.45, p.vary(0.20), 0.19)
    p.ellipse(leaf, 0.70, 0.45, p.vary(0.20), 0.19)
    p.ellipse(leaf, 0.50, 0.28, p.vary(0.27), 0.25)
    p.ellipse(leaf, 0.50, 0.48, 0.24, 0.18)


def fir(p: Pen) -> None:
    """Draw a fir: three triangles on a trunk."""
    leaf, w = p.pick("forest", "green", "teal"), p.vary(0.36)
    p.rect("brown", 0.43, 0.80, 0.57, 0.98)
    p.poly(leaf, (0.5, 0.42), (0.5 + w, 0.84), (0.5 - w, 0.84))
    p.poly(leaf, (0.5, 0.22), (0.5 + w * 0.8, 0.60), (0.5 - w * 0.8, 0.60))
    p.poly(leaf, (0.5, 0.02), (0.5 + w * 0.58, 0.36), (0.5 - w * 0.58, 0.36))


def flower(p: Pen) -> None:
    """Draw a flower with petals, stem and two leaves."""
    petal, n = p.pick("rose", "pink", "purple", "red", "blue"), p.rng.choice((5, 6, 7))
    p.line("green", 0.05, (0.5, 0.4), (0.5, 0.98))
    p.ellipse("green", 0.36, 0.78, 0.16, 0.06, 28)
    p.ellipse("green", 0.64, 0.84, 0.16, 0.06, -28)
    for i in range(n):
        a = 2 * math.pi * i / n - math.pi / 2
        p.ellipse(petal, 0.5 + 0.19 * math.cos(a), 0.31 + 0.19 * math.sin(a), 0.14, 0.10, math.degrees(a))
    p.ellipse("yellow", 0.5, 0.31, 0.105, 0.105)


def tulip(p: Pen) -> None:
    """Draw a tulip."""
    petal = p.pick("red", "rose", "yellow", "purple")
    p.line("green", 0.055, (0.5, 0.45), (0.5, 0.98))
    p.blob("green", (0.5, 0.98), (0.30, 0.80), (0.26, 0.55), (0.42, 0.74))
    p.blob("green", (0.5, 0.98), (0.70, 0.84), (0.76, 0.62), (0.58, 0.78))
    p.poly(petal, (0.28, 0.08), (0.40, 0.22), (0.5, 0.04), (0.60, 0.22), (0.72, 0.08), (0.73, 0.32))
    p.sector(petal, (0.5, 0.30, 0.235, 0.22), -5, 185)


def mushroom(p: Pen) -> None:
    """Draw a mushroom with a spotted cap."""
    cap = p.pick("red", "red", "orange", "brown")
    p.blob("cream", (0.40, 0.45), (0.60, 0.45), (0.62, 0.75), (0.68, 0.93), (0.5, 0.96), (0.32, 0.93), (0.38, 0.75))
    p.sector(cap, (0.5, 0.54, 0.46, p.vary(0.46, 0.08)), 180, 360)
    for x, y, r in ((0.5, 0.25, 0.085), (0.27, 0.41, 0.065), (0.74, 0.39, 0.075)):
        p.ellipse("white", x, y, p.vary(r), r)


def cactus(p: Pen) -> None:
    """Draw a cactus with two arms in a pot."""
    green, y = p.pick("green", "forest"), p.vary(0.42)
    p.line(green, 0.13, (0.5, 0.55), (0.22, 0.55), (0.22, y - 0.06))
    p.line(green, 0.13, (0.5, 0.45), (0.78, 0.45), (0.78, y - 0.16))
    p.rect(green, 0.39, 0.04, 0.61, 0.80, 0.11)
    p.line("lime", 0.025, (0.47, 0.14), (0.47, 0.68))
    p.line("lime", 0.025, (0.54, 0.14), (0.54, 0.68))
    p.poly(p.pick("orange", "brown", "red"), (0.30, 0.72), (0.70, 0.72), (0.64, 0.98), (0.36, 0.98))


def leaf(p: Pen) -> None:
    """Draw a leaf with its veins."""
    colour = p.pick("green", "lime", "orange", "forest")
    p.blob(colour, (0.12, 0.88), (0.16, 0.48), (0.50, 0.16), (0.93, 0.07), (0.84, 0.50), (0.52, 0.84))
    p.line("brown", 0.035, (0.04, 0.96), (0.40, 0.60), (0.80, 0.20))
    p.line("brown", 0.025, (0.34, 0.66), (0.32, 0.42))
    p.line("brown", 0.025, (0.36, 0.64), (0.60, 0.66))
    p.line("brown", 0.025, (0.54, 0.46), (0.54, 0.27))
    p.line("brown", 0.025, (0.56, 0.44), (0.74, 0.46))


def apple(p: Pen) -> None:
    """Draw an apple with stalk and leaf."""
    skin = p.pick("red", "red", "lime", "green", "yellow")
    p.line("brown", 0.05, (0.5, 0.30), (0.53, 0.08))
    p.blob(
        skin, (0.5, 0.27), (0.70, 0.20), (0.92, 0.42), (0.84, 0.74), (0.64, 0.95), (0.5, 0.91), (0.36, 0.95),
        (0.16, 0.74), (0.08, 0.42), (0.30, 0.20),
    )  # fmt: skip
    p.ellipse("green", 0.67, 0.12, 0.14, 0.065, -25)
    p.ellipse("white", 0.26, 0.42, 0.05, 0.09, 25)


def pear(p: Pen) -> None:
    """Draw a pear."""
    skin = p.pick("lime", "lime", "yellow")
    p.line("brown", 0.045, (0.5, 0.18), (0.55, 0.02))
    p.blob(
        skin, (0.5, 0.12), (0.63, 0.20), (0.66, 0.42), (0.80, 0.64), (0.74, 0.90), (0.5, 0.98), (0.26, 0.90),
        (0.20, 0.64), (0.34, 0.42), (0.37, 0.20),
    )  # fmt: skip
    p.ellipse("green", 0.69, 0.09, 0.13, 0.055, -18)


def banana(p: Pen) -> None:
    """Draw a banana."""
    p.blob(
        "yellow", (0.08, 0.66), (0.30, 0.66), (0.55, 0.54), (0.72, 0.34), (0.78, 0.12), (0.86, 0.12), (0.92, 0.40),
        (0.78, 0.70), (0.50, 0.88), (0.22, 0.86),
    )  # fmt: skip
    p.line("orange", 0.03, (0.16, 0.75), (0.45, 0.73), (0.68, 0.60), (0.83, 0.36))
    p.line("brown", 0.08, (0.815, 0.13), (0.80, 0.03))
    p.ellipse("brown", 0.09, 0.72, 0.045, 0.06)


def cherry(p: Pen) -> None:
    """Draw two cherries on their stalks."""
    red = p.pick("red", "red", "rose")
    p.line("green", 0.04, (0.27, 0.62), (0.36, 0.34), (0.62, 0.07))
    p.line("green", 0.04, (0.72, 0.66), (0.72, 0.36), (0.62, 0.07))
    p.ellipse("green", 0.44, 0.11, 0.19, 0.075, 12)
    p.ellipse(red, 0.26, 0.73, 0.21, p.vary(0.20))
    p.ellipse(red, 0.72, 0.78, 0.20, p.vary(0.19))
    p.ellipse("white", 0.19, 0.66, 0.04, 0.055, 30)
    p.ellipse("white", 0.65, 0.71, 0.04, 0.055, 30)


def strawberry(p: Pen) -> None:
    """Draw a strawberry with seeds."""
    p.blob(
        p.pick("red", "rose"), (0.5, 0.20), (0.78, 0.22), (0.88, 0.44), (0.70, 0.78), (0.5, 0.97), (0.30, 0.78),
        (0.12, 0.44), (0.22, 0.22),
    )  # fmt: skip
    for x, y in ((0.32, 0.42), (0.5, 0.40), (0.68, 0.42), (0.41, 0.58), (0.59, 0.58), (0.5, 0.76)):
        p.ellipse("yellow", x, y, 0.024, 0.036)
    p.poly(
        "green", (0.18, 0.14), (0.40, 0.17), (0.5, 0.02), (0.60, 0.17), (0.82, 0.14), (0.68, 0.29), (0.5, 0.27),
        (0.32, 0.29),
    )  # fmt: skip


def watermelon(p: Pen) -> None:
    """Draw a slice of watermelon."""
    p.sector("forest", (0.5, 0.25, 0.48, 0.58), 0, 180)
    p.sector("lime", (0.5, 0.25, 0.43, 0.51), 0, 180)
    p.sector("red", (0.5, 0.25, 0.385, 0.45), 0, 180)
    for x, y in ((0.28, 0.36), (0.43, 0.33), (0.58, 0.33), (0.73, 0.36), (0.38, 0.50), (0.5, 0.56), (0.62, 0.50)):
        p.ellipse("black", x, y, 0.022, 0.036)


def carrot(p: Pen) -> None:
    """Draw a carrot with its green."""
    for x in (0.66, 0.78, 0.90):
        p.line("green", 0.075, (0.70, 0.32), (x, 0.06 + (x - 0.66) * 0.95))
    p.blob("orange", (0.60, 0.28), (0.74, 0.27), (0.76, 0.41), (0.52, 0.70), (0.10, 0.96), (0.06, 0.92), (0.30, 0.52))
    for x, y in ((0.52, 0.44), (0.44, 0.66), (0.30, 0.66)):
        p.line("brown", 0.022, (x, y), (x + 0.09, y + 0.06))


def pizza(p: Pen) -> None:
    """Draw a slice of pizza."""
    p.poly("yellow", (0.08, 0.20), (0.92, 0.20), (0.5, 0.98))
    p.rect(p.pick("wood", "tan"), 0.03, 0.08, 0.97, 0.25, 0.08)
    for x, y in ((0.35, 0.38), (0.63, 0.40), (0.49, 0.64)):
        p.ellipse("red", x, y, 0.095, 0.095)
    for x, y in ((0.49, 0.33), (0.40, 0.54), (0.60, 0.58)):
        p.ellipse("green", x, y, 0.03, 0.03)


def cake(p: Pen) -> None:
    """Draw a birthday cake with candles."""
    icing, body = p.pick("pink", "white", "sky"), p.pick("wood", "brown", "rose")
    p.ellipse("silver", 0.5, 0.90, 0.48, 0.075)
    p.rect(body, 0.12, 0.45, 0.88, 0.92, 0.05)
    p.rect("cream", 0.12, 0.66, 0.88, 0.73)
    p.rect(icing, 0.10, 0.40, 0.90, 0.53, 0.05)
    for x in (0.20, 0.40, 0.60, 0.80):
        p.ellipse(icing, x, 0.54, 0.09, 0.07)
    for x in (0.30, 0.5, 0.70):
        p.rect(p.pick("blue", "lime", "purple"), x - 0.03, 0.20, x + 0.03, 0.42)
        p.ellipse("orange", x, 0.13, 0.035, 0.075)


def icecream(p: Pen) -> None:
    """Draw an ice cream cone with two scoops."""
    top, low = p.pick("pink", "cream", "rose"), p.pick("brown", "lime", "sky")
    p.poly("wood", (0.27, 0.50), (0.73, 0.50), (0.5, 0.99))
    p.line("brown", 0.022, (0.38, 0.52), (0.58, 0.80))
    p.line("brown", 0.022, (0.62, 0.52), (0.42, 0.80))
    p.ellipse(low, 0.5, 0.44, 0.27, 0.17)
    p.ellipse(top, 0.5, 0.24, 0.22, 0.19)
    p.ellipse("red", 0.5, 0.055, 0.055, 0.055)


def doughnut(p: Pen) -> None:
    """Draw a doughnut with sprinkles."""
    p.ellipse("wood", 0.5, 0.52, 0.47, 0.45)
    p.ellipse(p.pick("pink", "brown", "sky", "rose"), 0.5, 0.49, 0.42, 0.40)
    p.ellipse("wood", 0.5, 0.51, 0.18, 0.16)
    p.ellipse("white", 0.5, 0.52, 0.135, 0.12)
    for i in range(9):
        a = 2 * math.pi * (i + p.rng.uniform(-0.2, 0.2)) / 9
        x, y = 0.5 + 0.30 * math.cos(a), 0.49 + 0.28 * math.sin(a)
        p.line(p.pick("yellow", "blue", "lime", "white"), 0.035, (x - 0.03, y - 0.02), (x + 0.03, y + 0.02))


def egg(p: Pen) -> None:
    """Draw a fried egg in a pan."""
    p.line("black", 0.10, (0.70, 0.70), (0.97, 0.97))
    p.ellipse("slate", 0.43, 0.43, 0.42, 0.42)
    p.ellipse("grey", 0.43, 0.43, 0.36, 0.36)
    p.blob("white", (0.20, 0.32), (0.42, 0.17), (0.66, 0.28), (0.68, 0.52), (0.50, 0.66), (0.32, 0.62), (0.16, 0.52))
    p.ellipse("orange", p.vary(0.43, 0.06), 0.42, 0.125, 0.125)


def cheese(p: Pen) -> None:
    """Draw a wedge of cheese with holes."""
    p.poly("orange", (0.04, 0.48), (0.96, 0.48), (0.96, 0.86), (0.04, 0.86))
    p.poly("yellow", (0.04, 0.48), (0.66, 0.12), (0.96, 0.48))
    for x, y, r in ((0.22, 0.66, 0.085), (0.50, 0.75, 0.065), (0.74, 0.62, 0.09), (0.60, 0.33, 0.06)):
        p.ellipse("brown", x, y, p.vary(r), r)


def _on(box: Box, degrees: float) -> Point:
    a = math.radians(degrees)
    return box[0] + box[2] * math.cos(a), box[1] + box[3] * math.sin(a)
