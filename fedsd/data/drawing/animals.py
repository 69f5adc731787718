"""Animals, each drawn by one function on a pen."""

import math

from fedsd.data.drawing.pen import Pen


def cat(p: Pen) -> None:
    """Draw a cat's face."""
    fur = p.pick("orange", "grey", "slate", "tan")
    for s in (-1, 1):
        p.poly(fur, (0.5 + s * 0.10, 0.30), (0.5 + s * 0.38, 0.03), (0.5 + s * 0.41, 0.48))
        p.poly("pink", (0.5 + s * 0.20, 0.28), (0.5 + s * 0.33, 0.14), (0.5 + s * 0.35, 0.36))
    p.ellipse(fur, 0.5, 0.56, 0.43, 0.38)
    for s in (-1, 1):
        p.ellipse("lime", 0.5 + s * 0.18, 0.50, 0.085, 0.085)
        p.ellipse("black", 0.5 + s * 0.18, 0.50, 0.03, 0.08)
        p.line("black", 0.018, (0.5 + s * 0.20, 0.68), (0.5 + s * 0.47, 0.63))
        p.line("black", 0.018, (0.5 + s * 0.20, 0.73), (0.5 + s * 0.46, 0.77))
    p.poly("rose", (0.44, 0.62), (0.56, 0.62), (0.5, 0.69))
    p.arc("black", 0.022, (0.43, 0.71, 0.07, 0.07), 0, 150)
    p.arc("black", 0.022, (0.57, 0.71, 0.07, 0.07), 30, 180)


def dog(p: Pen) -> None:
    """Draw a dog's face with hanging ears."""
    fur, ear = p.pick("tan", "wood", "cream"), p.pick("brown", "slate")
    p.ellipse(fur, 0.5, 0.50, 0.36, 0.42)
    p.ellipse(ear, 0.14, 0.44, 0.12, 0.30, 14)
    p.ellipse(ear, 0.86, 0.44, 0.12, 0.30, -14)
    p.ellipse("cream" if fur != "cream" else "tan", 0.5, 0.70, 0.22, 0.19)
    p.eye(0.36, 0.42, 0.052)
    p.eye(0.64, 0.42, 0.052)
    p.ellipse("black", 0.5, 0.61, 0.09, 0.065)
    p.line("black", 0.025, (0.5, 0.66), (0.5, 0.74))
    p.sector("rose", (0.5, 0.75, 0.08, 0.15), 0, 180)


def rabbit(p: Pen) -> None:
    """Draw a rabbit's face with long ears."""
    fur = p.pick("silver", "tan", "pale")
    for s in (-1, 1):
        p.ellipse(fur, 0.5 + s * 0.17, 0.25, 0.11, 0.25, s * 8)
        p.ellipse("pink", 0.5 + s * 0.17, 0.26, 0.055, 0.18, s * 8)
    p.ellipse(fur, 0.5, 0.68, 0.34, 0.30)
    p.eye(0.37, 0.62, 0.045)
    p.eye(0.63, 0.62, 0.045)
    p.ellipse("rose", 0.5, 0.72, 0.05, 0.035)
    p.rect("white", 0.45, 0.82, 0.55, 0.93)
    p.line("black", 0.022, (0.39, 0.77), (0.5, 0.82), (0.61, 0.77))


def bear(p: Pen) -> None:
    """Draw a bear's face."""
    fur = p.pick("brown", "brown", "wood", "slate")
    for x in (0.18, 0.82):
        p.ellipse(fur, x, 0.21, 0.155, 0.155)
        p.ellipse("tan", x, 0.22, 0.08, 0.08)
    p.ellipse(fur, 0.5, 0.54, 0.44, 0.41)
    p.ellipse("tan", 0.5, 0.70, 0.20, 0.17)
    p.eye(0.33, 0.47, 0.045)
    p.eye(0.67, 0.47, 0.045)
    p.ellipse("black", 0.5, 0.63, 0.075, 0.05)
    p.arc("black", 0.025, (0.5, 0.70, 0.08, 0.07), 20, 160)


def pig(p: Pen) -> None:
    """Draw a pig's face with its snout."""
    for s in (-1, 1):
        p.poly("rose", (0.5 + s * 0.16, 0.22), (0.5 + s * 0.44, 0.04), (0.5 + s * 0.42, 0.40))
    p.ellipse("pink", 0.5, 0.55, 0.45, 0.41)
    p.ellipse("rose", 0.5, 0.65, 0.20, 0.145)
    p.ellipse("brown", 0.43, 0.65, 0.04, 0.06)
    p.ellipse("brown", 0.57, 0.65, 0.04, 0.06)
    p.eye(0.30, 0.44, 0.045)
    p.eye(0.70, 0.44, 0.045)


def frog(p: Pen) -> None:
    """Draw a frog's face."""
    green = p.pick("green", "lime")
    for x in (0.26, 0.74):
        p.ellipse(green, x, 0.24, 0.19, 0.19)
    p.ellipse(green, 0.5, 0.60, 0.48, 0.36)
    for x in (0.26, 0.74):
        p.ellipse("white", x, 0.23, 0.125, 0.125)
        p.ellipse("black", x, 0.24, 0.065, 0.065)
    p.arc("black", 0.03, (0.5, 0.58, 0.34, 0.18), 10, 170)
    p.ellipse("pink", 0.16, 0.62, 0.06, 0.04)
    p.ellipse("pink", 0.84, 0.62, 0.06, 0.04)


def owl(p: Pen) -> None:
    """Draw an owl."""
    body, wing = p.pick("brown", "wood", "purple", "grey"), p.pick("slate", "brown")
    p.poly(body, (0.18, 0.02), (0.5, 0.16), (0.82, 0.02), (0.84, 0.36), (0.16, 0.36))
    p.ellipse(body, 0.5, 0.57, 0.37, 0.41)
    p.ellipse("cream", 0.5, 0.72, 0.22, 0.22)
    p.ellipse(wing, 0.17, 0.64, 0.10, 0.25, 8)
    p.ellipse(wing, 0.83, 0.64, 0.10, 0.25, -8)
    for x in (0.34, 0.66):
        p.ellipse("white", x, 0.34, 0.16, 0.16)
        p.ellipse("orange", x, 0.34, 0.115, 0.115)
        p.ellipse("black", x, 0.34, 0.07, 0.07)
        p.ellipse("orange", x * 0.6 + 0.2, 0.97, 0.07, 0.035)
    p.poly("yellow", (0.43, 0.42), (0.57, 0.42), (0.5, 0.55))


def fish(p: Pen) -> None:
    """Draw a fish from the side."""
    body, fin = p.pick("orange", "blue", "teal", "rose"), p.pick("red", "yellow", "purple")
    p.poly(fin, (0.68, 0.50), (0.98, 0.24), (0.92, 0.50), (0.98, 0.78))
    p.poly(fin, (0.28, 0.28), (0.46, 0.08), (0.62, 0.32))
    p.poly(fin, (0.36, 0.72), (0.50, 0.90), (0.58, 0.70))
    p.ellipse(body, 0.41, 0.51, 0.38, p.vary(0.25))
    p.line("white", 0.045, (0.33, 0.33), (0.38, 0.51), (0.33, 0.69))
    p.line("white", 0.045, (0.52, 0.34), (0.57, 0.51), (0.52, 0.68))
    p.ellipse("white", 0.19, 0.45, 0.068, 0.068)
    p.ellipse("black", 0.18, 0.45, 0.038, 0.038)


def whale(p: Pen) -> None:
    """Draw a whale that spouts."""
    blue = p.pick("blue", "sky", "navy")
    p.line("sky", 0.05, (0.34, 0.32), (0.34, 0.12), (0.22, 0.05))
    p.line("sky", 0.05, (0.34, 0.18), (0.40, 0.08), (0.48, 0.05))
    p.poly(blue, (0.78, 0.62), (0.82, 0.36), (0.66, 0.22), (0.86, 0.24), (0.98, 0.14), (0.98, 0.36), (0.94, 0.66))
    p.sector(blue, (0.49, 0.56, 0.46, 0.34), 0, 180)
    p.sector(blue, (0.36, 0.58, 0.33, 0.27), 180, 360)
    p.sector("pale", (0.40, 0.66, 0.33, 0.22), 10, 180)
    p.eye(0.20, 0.55, 0.04)
    p.ellipse(blue, 0.52, 0.80, 0.16, 0.06, 30)


def bird(p: Pen) -> None:
    """Draw a small bird from the side."""
    body, wing = p.pick("blue", "red", "yellow", "sky"), p.pick("navy", "brown", "teal")
    p.line("orange", 0.035, (0.46, 0.80), (0.44, 0.97))
    p.line("orange", 0.035, (0.58, 0.80), (0.58, 0.97))
    p.poly(wing, (0.70, 0.56), (0.99, 0.36), (0.98, 0.60), (0.76, 0.74))
    p.ellipse(body, 0.52, 0.60, 0.33, 0.25, -12)
    p.poly("orange", (0.16, 0.26), (0.01, 0.36), (0.16, 0.42))
    p.ellipse(body, 0.31, 0.32, 0.21, 0.20)
    p.ellipse("cream", 0.42, 0.70, 0.18, 0.12, -8)
    p.ellipse(wing, 0.64, 0.56, 0.20, 0.12, -22)
    p.eye(0.25, 0.29, 0.045)


def chick(p: Pen) -> None:
    """Draw a chick in its egg shell."""
    p.poly("orange", (0.44, 0.02), (0.5, 0.10), (0.56, 0.02), (0.56, 0.16), (0.44, 0.16))
    p.ellipse("yellow", 0.5, 0.42, 0.34, 0.32)
    p.eye(0.37, 0.36, 0.045)
    p.eye(0.63, 0.36, 0.045)
    p.poly("orange", (0.41, 0.45), (0.59, 0.45), (0.5, 0.56))
    p.sector("pale", (0.5, 0.62, 0.38, 0.36), 0, 180)
    p.poly(
        "pale", (0.12, 0.64), (0.16, 0.54), (0.26, 0.64), (0.38, 0.54), (0.5, 0.65), (0.62, 0.54), (0.74, 0.64),
        (0.84, 0.54), (0.88, 0.64),
    )  # fmt: skip


def penguin(p: Pen) -> None:
    """Draw a penguin."""
    coat = p.pick("black", "navy", "slate")
    p.ellipse("orange", 0.36, 0.94, 0.13, 0.055)
    p.ellipse("orange", 0.64, 0.94, 0.13, 0.055)
    p.ellipse(coat, 0.18, 0.58, 0.085, 0.24, 18)
    p.ellipse(coat, 0.82, 0.58, 0.085, 0.24, -18)
    p.ellipse(coat, 0.5, 0.50, 0.34, 0.46)
    p.ellipse("white", 0.5, 0.64, 0.245, 0.28)
    p.ellipse("white", 0.40, 0.30, 0.13, 0.14)
    p.ellipse("white", 0.60, 0.30, 0.13, 0.14)
    p.eye(0.40, 0.28, 0.042)
    p.eye(0.60, 0.28, 0.042)
    p.poly("orange", (0.40, 0.37), (0.60, 0.37), (0.5, 0.48))


def turtle(p: Pen) -> None:
    """Draw a turtle from the side."""
    skin, shell = p.pick("lime", "green"), p.pick("brown", "forest", "teal")
    p.ellipse(skin, 0.30, 0.78, 0.09, 0.13)
    p.ellipse(skin, 0.66, 0.78, 0.09, 0.13)
    p.ellipse(skin, 0.87, 0.46, 0.12, 0.12)
    p.line(skin, 0.13, (0.74, 0.66), (0.86, 0.50))
    p.poly(skin, (0.10, 0.66), (0.01, 0.76), (0.14, 0.74))
    p.sector(shell, (0.46, 0.70, 0.40, p.vary(0.48, 0.06)), 180, 360)
    p.rect(skin, 0.05, 0.65, 0.87, 0.74, 0.04)
    for x in (0.26, 0.46, 0.66):
        p.ellipse("tan", x, 0.52 if x != 0.46 else 0.43, 0.075, 0.075)
    p.eye(0.91, 0.43, 0.032)


def snail(p: Pen) -> None:
    """Draw a snail with a spiral shell."""
    skin, shell = p.pick("tan", "lime", "yellow"), p.pick("brown", "rose", "orange", "purple")
    p.line(skin, 0.04, (0.82, 0.55), (0.76, 0.26))
    p.line(skin, 0.04, (0.86, 0.55), (0.93, 0.27))
    p.ellipse("black", 0.76, 0.24, 0.035, 0.035)
    p.ellipse("black", 0.93, 0.25, 0.035, 0.035)
    p.rect(skin, 0.04, 0.72, 0.93, 0.89, 0.08)
    p.ellipse(skin, 0.84, 0.66, 0.105, 0.21)
    p.ellipse(shell, 0.42, 0.50, 0.34, 0.34)
    turns = [(i / 40 * 4 * math.pi, 0.27 * (1 - i / 40)) for i in range(37)]
    p.line("cream", 0.04, *((0.42 + r * math.cos(a), 0.50 + r * math.sin(a)) for a, r in turns))


def butterfly(p: Pen) -> None:
    """Draw a butterfly from above."""
    upper, lower = p.pick("orange", "blue", "purple", "rose"), p.pick("yellow", "sky", "pink")
    for s in (-1, 1):
        p.line("black", 0.025, (0.5, 0.22), (0.5 + s * 0.13, 0.06))
        p.ellipse(upper, 0.5 + s * 0.26, 0.35, 0.24, 0.19, s * -35)
        p.ellipse(lower, 0.5 + s * 0.21, 0.69, 0.20, 0.15, s * 45)
        p.ellipse("white", 0.5 + s * 0.31, 0.31, 0.065, 0.065)
        p.ellipse(upper, 0.5 + s * 0.22, 0.70, 0.06, 0.06)
    p.ellipse("black", 0.5, 0.52, 0.055, 0.33)


def ladybird(p: Pen) -> None:
    """Draw a ladybird from above."""
    for y in (0.40, 0.60, 0.80):
        p.line("black", 0.035, (0.06, y - 0.04), (0.94, y - 0.04))
    for s in (-1, 1):
        p.line("black", 0.03, (0.5, 0.14), (0.5 + s * 0.15, 0.02))
    p.ellipse("black", 0.5, 0.22, 0.22, 0.17)
    p.ellipse(p.pick("red", "red", "orange"), 0.5, 0.60, 0.38, 0.37)
    p.line("black", 0.035, (0.5, 0.24), (0.5, 0.97))
    for s in (-1, 1):
        for x, y in ((0.20, 0.46), (0.14, 0.68), (0.25, 0.83)):
            p.ellipse("black", 0.5 + s * x, y, 0.065, 0.065)
        p.ellipse("white", 0.5 + s * 0.10, 0.19, 0.045, 0.045)


def bee(p: Pen) -> None:
    """Draw a bee from the side."""
    p.ellipse("sky", 0.44, 0.24, 0.13, 0.22, -18)
    p.ellipse("sky", 0.66, 0.26, 0.12, 0.21, 22)
    p.poly("black", (0.88, 0.52), (0.99, 0.60), (0.88, 0.68))
    p.ellipse("yellow", 0.52, 0.60, 0.40, 0.27)
    for x, h in ((0.42, 0.25), (0.58, 0.25), (0.74, 0.20)):
        p.line("black", 0.075, (x, 0.60 - h), (x, 0.60 + h))
    p.line("black", 0.025, (0.20, 0.40), (0.10, 0.24))
    p.line("black", 0.025, (0.28, 0.37), (0.24, 0.20))
    p.eye(0.22, 0.54, 0.045)
    p.arc("black", 0.022, (0.22, 0.64, 0.06, 0.05), 20, 150)


def snake(p: Pen) -> None:
    """Draw a winding snake."""
    skin = p.pick("green", "lime", "purple", "orange")
    body = [(0.12 + 0.70 * i / 30, 0.62 + 0.20 * math.sin(i / 30 * 3.6 * math.pi + 0.4)) for i in range(31)]
    p.line(skin, 0.15, *body, (0.84, 0.42), (0.80, 0.26))
    for x, y in body[2::5]:
        p.ellipse("yellow", x, y, 0.042, 0.042)
    p.line("red", 0.03, (0.62, 0.19), (0.46, 0.20))
    p.ellipse(skin, 0.76, 0.19, 0.17, 0.115)
    p.eye(0.72, 0.14, 0.038)


def octopus(p: Pen) -> None:
    """Draw an octopus."""
    skin = p.pick("purple", "rose", "orange", "red")
    for x, dx in ((0.24, -0.16), (0.37, -0.08), (0.5, 0.0), (0.63, 0.08), (0.76, 0.16)):
        p.line(skin, 0.105, (x, 0.55), (x + dx, 0.76), (x + dx * 1.1 + 0.02, 0.90))
    p.ellipse(skin, 0.5, 0.36, 0.33, 0.33)
    p.rect(skin, 0.20, 0.40, 0.80, 0.66, 0.10)
    for x in (0.38, 0.62):
        p.ellipse("white", x, 0.42, 0.085, 0.095)
        p.ellipse("black", x, 0.44, 0.045, 0.055)
    p.arc("black", 0.03, (0.5, 0.55, 0.08, 0.06), 20, 160)
