from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsd.cli.grids import LEAST_TILE, PAPER, grid, parameters_text, round_grids, save_grid, timeline


def tiles(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of one colour."""
    rows, columns = np.nonzero((np.asarray(sheet) == colour).all(2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90)


def plain(colour: tuple[int, int, int], side: int = 64) -> Image.Image:
    return Image.new("RGB", (side, side), colour)


def test_pictures_stand_in_rows_and_columns_enlarged_by_whole_pixels() -> None:
    sheet = grid([("base", [plain(RED), plain(GREEN)]), ("ours", [plain(BLUE), plain(GREY)])], ["cat", "dog"])
    boxes = [tiles(sheet, colour) for colour in (RED, GREEN, BLUE, GREY)]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(128, 128)}
    assert boxes[0][1] == boxes[1][1] and boxes[2][1] == boxes[3][1] > boxes[0][3]
    assert boxes[0][0] == boxes[2][0] and boxes[1][0] == boxes[3][0] > boxes[0][2]
    assert sheet.getpixel((1, 1)) == PAPER


def test_arrays_and_pil_images_give_the_same_sheet() -> None:
    array = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    from_array, from_image = grid([("a", [array])], ["x"]), grid([("a", [Image.fromarray(array)])], ["x"])
    assert from_array.tobytes() == from_image.tobytes()
    # 200 pixels are enough as they are: the very pixels are in the sheet
    left = from_array.width - 12 - 200
    top = from_array.height - 12 - 200
    np.testing.assert_array_equal(np.asarray(from_array)[top : top + 200, left : left + 200], array)
    assert array.shape[0] >= LEAST_TILE


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sheet = np.asarray(grid([("a", [array])], ["x"]))
    top, left = sheet.shape[0] - 12 - 128, sheet.shape[1] - 12 - 128
    np.testing.assert_array_equal(sheet[top : top + 128, left : left + 128], array.repeat(2, 0).repeat(2, 1))


def test_labels_are_written_and_long_ones_wrapped_within_their_space() -> None:
    short, long = grid([("a", [plain(RED)])], ["cat"]), grid([("a", [plain(RED)])], ["a hot air balloon 木 " * 9])
    assert short.width == long.width and long.height > short.height
    header = np.asarray(long)[: tiles(long, RED)[1]]
    assert (header < 128).any()
    empty = grid([("", [plain(RED)])], [""])
    assert not (np.asarray(empty)[: tiles(empty, RED)[1]] < 128).any()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="row 'ours' has 1 pictures for 2 columns; give one each"):
        grid([("ours", [plain(RED)])], ["cat", "dog"])
    with pytest.raises(ValueError, match=r"must have one size, got \[\(32, 32\), \(64, 64\)\]; resize"):
        grid([("ours", [plain(RED), plain(RED, 32)])], ["cat", "dog"])
    with pytest.raises(ValueError, match=r"uint8 \(H, W, 3\); got float64 \(8, 8, 3\)"):
        grid([("ours", [np.zeros((8, 8, 3))])], ["cat"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="at least one row and one column, got 0 and 1"):
        grid([], ["cat"])


def test_a_saved_sheet_carries_its_parameters(tmp_path: Path) -> None:
    text = parameters_text("猫, a cat", {"Steps": 25, "Seed": 0}, negative="blur")
    assert text == "猫, a cat\nNegative prompt: blur\nSteps: 25, Seed: 0"
    save_grid(plain(RED), tmp_path / "grids" / "r01.png", text)
    with Image.open(tmp_path / "grids" / "r01.png") as opened:
        assert opened.info["parameters"] == text
    assert parameters_text("a cat", {"Steps": 25}) == "a cat\nSteps: 25"


def test_the_timeline_shows_the_rounds_in_order(tmp_path: Path) -> None:
    for server_round, colour in ((2, GREEN), (10, BLUE), (1, RED)):
        save_grid(grid([("a", [plain(colour)])], ["cat"]), tmp_path / f"r{server_round:02d}.png", "")
    (tmp_path / "rough.png").write_bytes(b"")
    assert list(round_grids(tmp_path)) == [1, 2, 10]
    with Image.open(timeline(tmp_path)) as film:
        assert film.n_frames == 3
        seen = []
        for frame in range(3):
            film.seek(frame)
            middle = film.convert("RGB").getpixel((film.width - 40, film.height - 40))
            seen.append(max(range(3), key=lambda channel: middle[channel]))
    assert seen == [0, 1, 2]


def test_a_timeline_needs_a_sheet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no sheet named rNN\.png; sample a round first"):
        timeline(tmp_path)
