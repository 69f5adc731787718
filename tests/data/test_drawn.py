import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fedsd.data import drawn
from fedsd.data.folder import read


def grey(name: str, look: str, seed: int) -> np.ndarray:
    return np.asarray(drawn.draw(name, look, seed).convert("L"), float)


def test_there_are_enough_objects_and_styles():
    assert len(drawn.OBJECTS) == len(set(drawn.OBJECTS)) >= 48
    assert drawn.STYLES == ("sketch", "cartoon", "painted", "pixel")
    assert drawn.LOOKS == ("flat", "shaded", "soft")


@pytest.mark.parametrize("look", drawn.LOOKS + drawn.STYLES)
def test_every_object_fills_the_canvas_and_the_seed_decides_the_pixels(look):
    for name in drawn.OBJECTS:
        image = drawn.draw(name, look, 7)
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert image.tobytes() == drawn.draw(name, look, 7).tobytes()
        assert image.tobytes() != drawn.draw(name, look, 8).tobytes()


def test_every_object_reaches_across_most_of_the_canvas():
    for name in drawn.OBJECTS:
        for seed in range(3):
            ink = np.any(np.asarray(drawn.draw(name, "flat", seed)) < 245, axis=-1)
            rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            assert max(np.ptp(rows), np.ptp(columns)) >= 50, name


def test_neutral_looks_have_white_corners_and_styles_do_not():
    def corner(look: str) -> np.ndarray:
        return np.asarray(drawn.draw("star", look, 1), float)[:4, :4].mean((0, 1))

    for look in drawn.LOOKS:
        np.testing.assert_allclose(corner(look), 255, atol=1)
    assert all(corner(style).min() < 240 for style in drawn.STYLES)


def test_a_sketch_has_no_colour_and_pixel_art_has_blocks_of_a_small_palette():
    for name in ("house", "cat", "apple"):
        sketch = np.asarray(drawn.draw(name, "sketch", 2), int)
        assert np.ptp(sketch, axis=-1).max() <= 20
        pixel = np.asarray(drawn.draw(name, "pixel", 2))
        np.testing.assert_array_equal(pixel, pixel[::4, ::4].repeat(4, 0).repeat(4, 1))
        assert len(np.unique(pixel.reshape(-1, 3), axis=0)) <= 20


def test_the_same_seed_places_an_object_alike_in_flat_and_shaded():
    flat, shaded = grey("heart", "flat", 5) < 250, grey("heart", "shaded", 5) < 200

    assert (flat & shaded).sum() / (flat | shaded).sum() > 0.9


def test_draw_keeps_other_sizes():
    for style in drawn.LOOKS + drawn.STYLES:
        assert drawn.draw("cup", style, 0, size=50).size == (50, 50)


def test_draw_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="object 'dragon' cannot be drawn: choose one of house, castle"):
        drawn.draw("dragon", "flat", 0)
    with pytest.raises(ValueError, match="look 'oil' is unknown: choose one of flat, shaded, soft, sketch, cartoon"):
        drawn.draw("cup", "oil", 0)
    with pytest.raises(ValueError, match="size 15 is too small to draw in: choose 16 or more"):
        drawn.draw("cup", "flat", 0, size=15)


def test_write_makes_a_folder_per_style_and_class(tmp_path):
    root = tmp_path / "deep" / "set"

    drawn.write(root, ("pixel", "sketch"), 5, seed=3, size=32, objects=("cup", "light bulb"))

    assert [p.relative_to(root).as_posix() for p in sorted(root.rglob("*.png"))] == [
        "pixel/cup/000.png", "pixel/cup/001.png", "pixel/cup/002.png", "pixel/light bulb/000.png",
        "pixel/light bulb/001.png", "sketch/cup/000.png", "sketch/cup/001.png", "sketch/cup/002.png",
        "sketch/light bulb/000.png", "sketch/light bulb/001.png",
    ]  # fmt: skip
    examples = read(root)
    assert {(e.style, e.label) for e in examples} == {
        (s, n) for s in ("pixel", "sketch") for n in ("cup", "light bulb")
    }
    assert len({e.path.read_bytes() for e in examples}) == 10
    assert [p.name for p in root.parent.iterdir()] == ["set"]


def test_write_leaves_the_same_pictures_alone_and_makes_them_again_alike(tmp_path):
    drawn.write(tmp_path / "a", ("pixel",), 2, seed=3)
    picture = tmp_path / "a" / "pixel" / "house" / "000.png"
    before = picture.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns

    drawn.write(tmp_path / "a", ("pixel",), 2, seed=3)
    assert (picture.stat().st_mtime_ns, tmp_path.stat().st_mtime_ns) == before
    drawn.write(tmp_path / "b", ("pixel",), 2, seed=3)
    drawn.write(tmp_path / "c", ("pixel",), 2, seed=4)

    assert (tmp_path / "b" / "pixel" / "house" / "000.png").read_bytes() == picture.read_bytes()
    assert (tmp_path / "c" / "pixel" / "house" / "000.png").read_bytes() != picture.read_bytes()


def test_write_by_many_at_once_gives_one_whole_folder(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: drawn.write(tmp_path / "a", ("pixel",), 6, seed=3), range(4)))

    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert len(read(tmp_path / "a")) == 6


def test_write_never_overwrites_other_pictures(tmp_path):
    drawn.write(tmp_path / "a", ("pixel",), 2, seed=3)
    with pytest.raises(ValueError, match=r"a holds pictures drawn with other settings: delete it or choose another"):
        drawn.write(tmp_path / "a", ("pixel",), 2, seed=4)

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.png").touch()
    with pytest.raises(ValueError, match=r"b holds something that was not drawn here: delete it or choose another"):
        drawn.write(tmp_path / "b", ("pixel",), 2, seed=3)


def test_write_leaves_nothing_behind_when_it_fails(tmp_path):
    with pytest.raises(ValueError, match="object 'dragon' cannot be drawn"):
        drawn.write(tmp_path / "a", ("pixel",), 2, seed=3, objects=("cup", "dragon"))
    with pytest.raises(ValueError, match="per_style = 0, 1 styles and 87 objects make no pictures: give at least 1"):
        drawn.write(tmp_path / "a", ("pixel",), 0, seed=3)

    assert list(tmp_path.iterdir()) == []


def test_the_settings_are_kept_beside_the_pictures(tmp_path):
    drawn.write(tmp_path / "a", ("soft",), 1, seed=9, size=16, objects=("key",))

    assert json.loads((tmp_path / "a" / "drawn.json").read_text()) == {
        "styles": ["soft"], "per_style": 1, "seed": 9, "size": 16, "objects": ["key"],
    }  # fmt: skip
