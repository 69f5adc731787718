import random

import numpy as np

from fedsd.data.drawing.looks import filled, flat, shaded, silhouette, soft, stencil
from fedsd.data.drawing.pen import Shape

RED = (200, 40, 40)
SQUARE = [Shape(((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)), RED)]


def test_flat_is_the_plain_colour_inside_and_white_outside():
    out = np.asarray(flat(SQUARE, 16, random.Random(0)))

    np.testing.assert_array_equal(out[5:11, 5:11], np.broadcast_to(RED, (6, 6, 3)))
    np.testing.assert_array_equal(out[:3], 255)


def test_shaded_darkens_downwards_and_throws_a_shadow():
    out = np.asarray(shaded(SQUARE, 64, random.Random(0)).convert("L"), float)

    column = out[18:46, 32]
    assert np.all(np.diff(column) <= 0) and column[0] - column[-1] > 30
    assert out[49, 32] < 250 and out[12, 32] == 255


def test_soft_blurs_the_edge_that_flat_keeps_sharp():
    def steps(image) -> int:
        row = np.asarray(image.convert("L"), float)[60]
        return int(((row > row.min() + 8) & (row < 247)).sum())

    square = [Shape(((0.2, 0.2), (0.8, 0.2), (0.8, 0.97), (0.2, 0.97)), RED)]
    assert steps(flat(square, 64, random.Random(0))) <= 2
    assert steps(soft(square, 64, random.Random(0))) >= 4


def test_silhouette_is_the_union_of_fills_and_lines():
    line = Shape(((0.1, 0.9), (0.9, 0.9)), RED, 0.1)

    mask = np.asarray(silhouette([*SQUARE, line], 40)) > 0

    np.testing.assert_array_equal(mask, np.any(np.asarray(filled([*SQUARE, line], 40, (0, 0, 0))) > 0, axis=-1))
    assert mask[20, 20] and mask[36, 20] and not mask[5, 20]


def test_stencil_cuts_one_shape_out_of_the_whole_mask():
    # Corners off the pixel grid, where no rounding decides.
    square = Shape(((0.26, 0.26), (0.71, 0.26), (0.71, 0.71), (0.26, 0.71)), RED)
    part, (x, y) = stencil(square, 40)

    whole = np.zeros((40, 40), np.uint8)
    whole[y : y + part.height, x : x + part.width] = np.asarray(part)
    np.testing.assert_array_equal(whole, np.asarray(silhouette([square], 40)))
    assert stencil(Shape(((2.0, 2.0), (3.0, 2.0), (3.0, 3.0)), RED), 40)[0] is None
