import random

import numpy as np
import pytest

from fedsd.data.drawing.pen import Pen, Shape, framed


def test_rect_and_line_are_kept_as_they_are():
    pen = Pen(random.Random(0))
    pen.rect("white", 0.1, 0.2, 0.5, 0.6)
    pen.line("black", 0.05, (0.0, 0.0), (1.0, 1.0))

    assert pen.shapes[0] == Shape(((0.1, 0.2), (0.5, 0.2), (0.5, 0.6), (0.1, 0.6)), (255, 255, 255))
    assert pen.shapes[1].points == ((0.0, 0.0), (1.0, 1.0))
    assert pen.shapes[1].width == 0.05


def test_an_ellipse_lies_on_its_equation_and_turns():
    pen = Pen(random.Random(0))
    pen.ellipse("red", 0.5, 0.4, 0.3, 0.1)
    pen.ellipse("red", 0.5, 0.4, 0.3, 0.1, 90)

    x, y = np.array(pen.shapes[0].points).T
    np.testing.assert_allclose(((x - 0.5) / 0.3) ** 2 + ((y - 0.4) / 0.1) ** 2, 1, atol=1e-9)
    x, y = np.array(pen.shapes[1].points).T
    np.testing.assert_allclose(((x - 0.5) / 0.1) ** 2 + ((y - 0.4) / 0.3) ** 2, 1, atol=1e-9)


def test_a_blob_passes_through_its_points():
    pen = Pen(random.Random(0))
    corners = ((0.1, 0.1), (0.9, 0.2), (0.8, 0.9), (0.2, 0.7))
    pen.blob("red", *corners)

    np.testing.assert_allclose(pen.shapes[0].points[::6], corners)


def test_white_and_black_never_change_and_colours_do():
    pens = [Pen(random.Random(seed)) for seed in range(5)]
    for pen in pens:
        pen.rect("white", 0, 0, 1, 1)
        pen.rect("black", 0, 0, 1, 1)
        pen.rect("red", 0, 0, 1, 1)

    assert len({pen.shapes[0].colour for pen in pens}) == len({pen.shapes[1].colour for pen in pens}) == 1
    assert len({pen.shapes[2].colour for pen in pens}) == 5


def test_framed_fills_the_asked_share_with_line_widths_in_proportion():
    pen = Pen(random.Random(0))
    pen.rect("red", 0.4, 0.4, 0.5, 0.5)
    pen.line("black", 0.02, (0.42, 0.45), (0.48, 0.45))

    for seed in range(20):
        shapes = framed(pen.shapes, random.Random(seed), fill=0.9)
        points = np.concatenate([s.points for s in shapes])
        side = np.ptp(points, axis=0).max()
        assert 0.81 - 1e-9 <= side <= 0.9 + 1e-9
        assert points.min() >= 0 and points.max() <= 1
        length = np.hypot(*np.subtract(*shapes[1].points))
        assert shapes[1].width / length == pytest.approx(0.02 / 0.06)
