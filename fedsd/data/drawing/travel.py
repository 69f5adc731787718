"""Buildings and vehicles, each drawn by one function on a pen."""

import math

from fedsd.data.drawing.pen import Pen


def house(p: Pen) -> None:
    """Draw a house with a roof, a door and windows."""
    wall, roof = p.pick("cream", "tan", "sky", "yellow", "pink"), p.pick("red", "brown", "slate", "blue")
    p.rect("brown", 0.70, 0.10, 0.82, 0.40)
    p.rect(wall, 0.13, 0.44, 0.87, 0.96)
    p.poly(roof, (0.02, 0.48), (0.5, p.vary(0.06, 0.5)), (0.98, 0.48))
    p.rect(p.pick("brown", "teal", "red"), 0.42, 0.62, 0.60, 0.96)
    p.rect("blue", 0.20, 0.58, 0.35, 0.74)
    p.rect("blue", 0.67, 0.58, 0.81, 0.74)
    p.ellipse("yellow", 0.56, 0.80, 0.022, 0.022)


def castle(p: Pen) -> None:
    """Draw a castle with two towers."""
    stone, roof = p.pick("grey", "tan", "silver", "pink"), p.pick("red", "blue", "purple")
    p.rect(stone, 0.25, 0.50, 0.75, 0.96)
    for x in (0.30, 0.46, 0.62):
        p.rect(stone, x - 0.01, 0.42, x + 0.09, 0.52)
    for x in (0.05, 0.69):
        p.rect(stone, x, 0.34, x + 0.26, 0.96)
        p.poly(roof, (x - 0.04, 0.36), (x + 0.13, 0.04), (x + 0.30, 0.36))
        p.rect("slate", x + 0.09, 0.48, x + 0.17, 0.62)
    p.rect("brown", 0.40, 0.72, 0.60, 0.96)
    p.sector("brown", (0.5, 0.73, 0.10, 0.12), 180, 360)


def lighthouse(p: Pen) -> None:
    """Draw a lighthouse with stripes."""
    stripe = p.pick("red", "blue", "red")
    p.poly("yellow", (0.56, 0.20), (0.98, 0.06), (0.98, 0.36))
    p.poly("yellow", (0.44, 0.20), (0.02, 0.06), (0.02, 0.36))
    p.poly("pale", (0.40, 0.30), (0.60, 0.30), (0.70, 0.90), (0.30, 0.90))
    for y in (0.36, 0.58, 0.78):
        a, b = 0.10 + (y - 0.30) / 6, 0.10 + (y - 0.18) / 6
        p.poly(stripe, (0.5 - a, y), (0.5 + a, y), (0.5 + b, y + 0.12), (0.5 - b, y + 0.12))
    p.rect("yellow", 0.42, 0.14, 0.58, 0.28)
    p.rect("slate", 0.36, 0.27, 0.64, 0.32)
    p.poly(stripe, (0.38, 0.15), (0.5, 0.01), (0.62, 0.15))
    p.ellipse("grey", 0.5, 0.93, 0.32, 0.06)


def windmill(p: Pen) -> None:
    """Draw a windmill."""
    p.poly(p.pick("cream", "tan", "sky", "pale"), (0.38, 0.34), (0.62, 0.34), (0.74, 0.97), (0.26, 0.97))
    p.sector(p.pick("red", "brown", "blue"), (0.5, 0.36, 0.17, 0.20), 180, 360)
    p.rect("brown", 0.43, 0.74, 0.57, 0.97)
    turn = p.rng.uniform(20, 70)
    for a in (math.radians(turn + 90 * i) for i in range(4)):
        c, s = math.cos(a), math.sin(a)
        corners = ((0.08, 0.0), (0.46, 0.0), (0.46, 0.13), (0.12, 0.13))
        p.poly("wood", *((0.5 + c * x - s * y, 0.38 + s * x + c * y) for x, y in corners))
        p.line("brown", 0.03, (0.5, 0.38), (0.5 + 0.46 * c, 0.38 + 0.46 * s))
    p.ellipse("slate", 0.5, 0.38, 0.045, 0.045)


def tent(p: Pen) -> None:
    """Draw a tent."""
    cloth = p.pick("orange", "green", "blue", "red")
    p.line("brown", 0.03, (0.44, 0.06), (0.60, 0.20))
    p.line("brown", 0.03, (0.56, 0.06), (0.44, 0.20))
    p.poly(cloth, (0.5, 0.12), (0.98, 0.90), (0.02, 0.90))
    p.poly("black", (0.5, 0.34), (0.68, 0.90), (0.32, 0.90))
    p.poly("yellow", (0.5, 0.34), (0.50, 0.62), (0.38, 0.90), (0.26, 0.90))
    p.poly("yellow", (0.5, 0.34), (0.50, 0.62), (0.62, 0.90), (0.74, 0.90))


def car(p: Pen) -> None:
    """Draw a car from the side."""
    paint, x = p.pick("red", "blue", "yellow", "green", "orange"), p.vary(0.28)
    p.poly(paint, (0.14, 0.52), (x, 0.26), (0.68, 0.26), (0.85, 0.52))
    p.poly("sky", (0.24, 0.50), (x + 0.04, 0.32), (0.46, 0.32), (0.46, 0.50))
    p.poly("sky", (0.52, 0.50), (0.52, 0.32), (0.65, 0.32), (0.76, 0.50))
    p.rect(paint, 0.02, 0.49, 0.98, 0.72, 0.08)
    p.ellipse("yellow", 0.94, 0.57, 0.035, 0.045)
    for wheel in (0.25, 0.75):
        p.ellipse("black", wheel, 0.72, 0.135, 0.135)
        p.ellipse("silver", wheel, 0.72, 0.065, 0.065)


def bus(p: Pen) -> None:
    """Draw a bus from the side."""
    paint = p.pick("yellow", "red", "green", "orange")
    p.rect(paint, 0.02, 0.16, 0.98, 0.78, 0.07)
    for x in (0.07, 0.25, 0.43, 0.61):
        p.rect("sky", x, 0.25, x + 0.14, 0.45)
    p.rect("sky", 0.80, 0.25, 0.94, 0.68)
    p.rect("slate", 0.04, 0.54, 0.76, 0.59)
    for x in (0.24, 0.72):
        p.ellipse("black", x, 0.78, 0.125, 0.125)
        p.ellipse("silver", x, 0.78, 0.06, 0.06)


def train(p: Pen) -> None:
    """Draw a steam engine from the side."""
    paint, trim = p.pick("red", "blue", "green", "black"), p.pick("orange", "yellow")
    for x, y, r in ((0.76, 0.12, 0.08), (0.60, 0.07, 0.06)):
        p.ellipse("silver", x, y, r, r * 0.9)
    p.poly("slate", (0.72, 0.22), (0.90, 0.22), (0.86, 0.46), (0.76, 0.46))
    p.rect(paint, 0.30, 0.42, 0.94, 0.72, 0.06)
    p.rect(paint, 0.06, 0.26, 0.40, 0.72)
    p.rect(trim, 0.02, 0.20, 0.44, 0.28)
    p.rect("sky", 0.13, 0.34, 0.32, 0.50)
    p.rect(trim, 0.54, 0.42, 0.60, 0.72)
    p.poly("slate", (0.88, 0.68), (0.99, 0.90), (0.84, 0.90))
    p.rect("slate", 0.05, 0.70, 0.92, 0.77)
    p.ellipse("black", 0.22, 0.80, 0.15, 0.15)
    p.ellipse("red", 0.22, 0.80, 0.07, 0.07)
    for x in (0.52, 0.74):
        p.ellipse("black", x, 0.85, 0.10, 0.10)
        p.ellipse("red", x, 0.85, 0.045, 0.045)


def lorry(p: Pen) -> None:
    """Draw a lorry from the side."""
    cab, load = p.pick("red", "blue", "green", "orange"), p.pick("cream", "tan", "silver", "yellow")
    p.rect(load, 0.02, 0.18, 0.62, 0.72, 0.02)
    p.poly(cab, (0.64, 0.34), (0.84, 0.34), (0.98, 0.54), (0.98, 0.74), (0.64, 0.74))
    p.poly("sky", (0.70, 0.40), (0.82, 0.40), (0.91, 0.54), (0.70, 0.54))
    p.rect("slate", 0.02, 0.70, 0.98, 0.77)
    for x in (0.20, 0.44, 0.80):
        p.ellipse("black", x, 0.78, 0.11, 0.11)
        p.ellipse("silver", x, 0.78, 0.05, 0.05)


def bicycle(p: Pen) -> None:
    """Draw a bicycle from the side."""
    frame = p.pick("red", "blue", "green", "orange", "purple")
    for x in (0.23, 0.77):
        p.arc("black", 0.05, (x, 0.66, 0.20, 0.20), 0, 360)
        p.ellipse("black", x, 0.66, 0.035, 0.035)
    p.line(frame, 0.05, (0.23, 0.66), (0.36, 0.38), (0.66, 0.38), (0.47, 0.66), (0.23, 0.66))
    p.line(frame, 0.05, (0.34, 0.30), (0.47, 0.66))
    p.line(frame, 0.05, (0.77, 0.66), (0.64, 0.24))
    p.line("black", 0.05, (0.74, 0.22), (0.60, 0.22))
    p.line("brown", 0.07, (0.25, 0.28), (0.41, 0.28))


def boat(p: Pen) -> None:
    """Draw a sailing boat."""
    hull, sail = p.pick("brown", "red", "blue"), p.pick("cream", "pale", "orange", "yellow")
    p.line("brown", 0.04, (0.48, 0.04), (0.48, 0.72))
    p.poly(sail, (0.52, 0.06), (0.92, 0.62), (0.52, 0.62))
    p.poly(sail, (0.44, 0.16), (0.44, 0.62), (0.12, 0.62))
    p.poly(hull, (0.04, 0.69), (0.96, 0.69), (0.80, 0.90), (0.20, 0.90))
    p.rect("sky", 0.02, 0.88, 0.98, 0.96, 0.03)


def rocket(p: Pen) -> None:
    """Draw a rocket with a flame."""
    body, fin = p.pick("silver", "pale", "sky"), p.pick("red", "orange", "blue")
    p.blob("orange", (0.40, 0.76), (0.60, 0.76), (0.62, 0.86), (0.5, 1.0), (0.38, 0.86))
    p.ellipse("yellow", 0.5, 0.82, 0.06, 0.09)
    p.poly(fin, (0.34, 0.50), (0.14, 0.80), (0.36, 0.76))
    p.poly(fin, (0.66, 0.50), (0.86, 0.80), (0.64, 0.76))
    p.blob(body, (0.5, 0.01), (0.66, 0.24), (0.69, 0.50), (0.64, 0.78), (0.36, 0.78), (0.31, 0.50), (0.34, 0.24))
    p.poly(fin, (0.5, 0.0), (0.58, 0.10), (0.64, 0.22), (0.36, 0.22), (0.42, 0.10))
    p.ellipse("slate", 0.5, 0.40, 0.115, 0.115)
    p.ellipse("sky" if body != "sky" else "yellow", 0.5, 0.40, 0.075, 0.075)


def balloon(p: Pen) -> None:
    """Draw a hot-air balloon."""
    one, two = p.pick("red", "blue", "purple", "orange"), p.pick("yellow", "cream", "lime", "sky")
    p.line("brown", 0.02, (0.28, 0.60), (0.42, 0.84))
    p.line("brown", 0.02, (0.72, 0.60), (0.58, 0.84))
    p.poly(one, (0.17, 0.56), (0.83, 0.56), (0.60, 0.74), (0.40, 0.74))
    p.ellipse(one, 0.5, 0.38, 0.38, 0.36)
    p.ellipse(two, 0.5, 0.40, 0.22, 0.36)
    p.ellipse(one, 0.5, 0.40, 0.08, 0.36)
    p.rect("wood", 0.40, 0.82, 0.60, 0.98, 0.02)


def plane(p: Pen) -> None:
    """Draw an aeroplane from the side."""
    body, wing = p.pick("pale", "silver", "sky", "yellow"), p.pick("red", "blue", "orange")
    p.poly(wing, (0.06, 0.14), (0.18, 0.14), (0.32, 0.42), (0.12, 0.44))
    p.poly(wing, (0.46, 0.40), (0.38, 0.16), (0.48, 0.16), (0.64, 0.40))
    p.blob(body, (0.06, 0.40), (0.40, 0.37), (0.80, 0.38), (0.98, 0.50), (0.84, 0.60), (0.40, 0.61), (0.12, 0.52))
    p.poly(wing, (0.44, 0.52), (0.64, 0.52), (0.42, 0.88), (0.28, 0.88))
    for x in (0.36, 0.46, 0.56, 0.66):
        p.ellipse("blue", x, 0.46, 0.025, 0.025)
    p.poly("slate", (0.80, 0.41), (0.90, 0.45), (0.80, 0.48))


def helicopter(p: Pen) -> None:
    """Draw a helicopter from the side."""
    paint = p.pick("red", "blue", "green", "orange")
    p.line("slate", 0.035, (0.10, 0.16), (0.96, 0.16))
    p.line("slate", 0.04, (0.56, 0.16), (0.56, 0.34))
    p.poly(paint, (0.44, 0.40), (0.06, 0.40), (0.06, 0.48), (0.44, 0.62))
    p.poly(paint, (0.02, 0.24), (0.12, 0.24), (0.14, 0.46), (0.04, 0.46))
    p.ellipse(paint, 0.62, 0.53, 0.30, 0.22)
    p.sector("sky", (0.68, 0.52, 0.20, 0.15), -90, 10, pie=True)
    p.line("slate", 0.03, (0.52, 0.72), (0.50, 0.84))
    p.line("slate", 0.03, (0.72, 0.72), (0.74, 0.84))
    p.line("slate", 0.045, (0.34, 0.86), (0.90, 0.86), (0.95, 0.80))


def signal(p: Pen) -> None:
    """Draw a traffic light."""
    p.rect("grey", 0.45, 0.72, 0.55, 0.99)
    p.rect(p.pick("black", "slate", "forest"), 0.28, 0.02, 0.72, 0.80, 0.08)
    for y, colour in ((0.16, "red"), (0.41, "yellow"), (0.66, "green")):
        p.ellipse(colour, 0.5, y, 0.105, 0.105)


def snowman(p: Pen) -> None:
    """Draw a snowman with a hat and a scarf."""
    p.line("brown", 0.03, (0.26, 0.56), (0.06, 0.40))
    p.line("brown", 0.03, (0.74, 0.56), (0.94, 0.40))
    p.ellipse("pale", 0.5, 0.74, 0.30, 0.24)
    p.ellipse("pale", 0.5, 0.36, 0.21, 0.20)
    p.rect(p.pick("red", "green", "blue"), 0.32, 0.49, 0.68, 0.57, 0.03)
    p.rect("black", 0.36, 0.02, 0.64, 0.20)
    p.rect("black", 0.26, 0.17, 0.74, 0.23)
    p.eye(0.42, 0.33, 0.03)
    p.eye(0.58, 0.33, 0.03)
    p.poly("orange", (0.49, 0.37), (0.49, 0.44), (0.68, 0.42))
    for y in (0.66, 0.78):
        p.ellipse("black", 0.5, y, 0.03, 0.03)
