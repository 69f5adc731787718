import random

import numpy as np

from fedsd.data.drawing.pen import Shape
from fedsd.data.drawing.styles import cartoon, painted, pixel, sketch

RED = (200, 40, 40)
SQUARE = [Shape(((0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)), RED)]


def test_cartoon_draws_a_black_outline_around_a_saturated_fill():
    out = np.asarray(cartoon(SQUARE, 64, random.Random(0)), int)

    assert out[13, 32].max() < 40
    red, green, blue = out[32, 32]
    assert red > 200 and max(green, blue) < 60
    assert np.ptp(out[:5, :5].reshape(-1, 3), axis=0).max() == 0 and out[2, 2].max() > 200


def test_sketch_is_darker_at_the_outline_than_on_the_paper():
    out = np.asarray(sketch(SQUARE, 64, random.Random(0)).convert("L"), float)

    assert out[:8].mean() > 230
    assert out[11:15, 16:48].min(axis=0).mean() < 160
    assert out[20:44, 20:44].mean() < out[:8].mean() - 10


def test_painted_covers_the_whole_canvas_in_warm_colours():
    out = np.asarray(painted(SQUARE, 64, random.Random(0)), float)

    border = np.concatenate([out[:6].reshape(-1, 3), out[-6:].reshape(-1, 3)])
    assert border.std(axis=0).min() > 4
    assert np.all(border.mean(0)[0] > border.mean(0)[2] + 30)


def test_pixel_has_a_dark_outline_one_block_wide():
    out = np.asarray(pixel(SQUARE, 64, random.Random(0)), int)[::4, ::4]

    dark = (out == (26, 28, 44)).all(-1)
    solid = (out == (177, 62, 83)).all(-1)
    rows, columns = np.where(solid)
    assert np.ptp(rows) == np.ptp(columns) and solid.sum() == (np.ptp(rows) + 1) ** 2
    # A frame of four sides without corners.
    assert dark.sum() == 4 * (np.ptp(rows) + 1)
