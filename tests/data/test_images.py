import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsd.data.example import Example
from fedsd.data.images import open_image, pixels


def example(path: Path) -> Example:
    return Example(path, "a cup", "pixel", "cup")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_open_image_reads_each_allowed_format(picture, suffix):
    image = open_image(picture(f"a.{suffix}", (255, 255, 255), (6, 4)))

    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), np.full((4, 6, 3), 255, np.uint8))


def test_open_image_goes_by_content_not_by_name(picture, tmp_path):
    picture("a.png").rename(tmp_path / "a.jpg")

    assert open_image(tmp_path / "a.jpg").getpixel((0, 0)) == (200, 30, 30)


def test_open_image_lays_transparency_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (100, 0, 0, 128))
    image.save(tmp_path / "a.png")

    opened = np.asarray(open_image(tmp_path / "a.png"))

    # Half of (100, 0, 0) and half of white, alpha 128 / 255.
    np.testing.assert_array_equal(opened, np.array([[[255, 255, 255], [177, 127, 127]]], np.uint8))


def test_open_image_lays_palette_transparency_on_white(tmp_path):
    image = Image.new("P", (1, 1), 0)
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "a.png", transparency=0)

    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_open_image_turns_upright_by_exif(tmp_path):
    image = Image.new("RGB", (3, 1), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)

    opened = open_image(tmp_path / "a.png")

    assert opened.size == (1, 3)
    assert [opened.getpixel((0, y))[0] for y in range(3)] == [255, 0, 0]


def test_open_image_scales_16_bit_grey(tmp_path):
    Image.fromarray(np.array([[0, 0x7F00, 0xFFFF]], np.uint16)).save(tmp_path / "a.png")

    opened = np.asarray(open_image(tmp_path / "a.png"))

    np.testing.assert_array_equal(opened[0, :, 0], [0, 127, 255])


def test_open_image_refuses_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png: there is no such picture file: copy it there"):
        open_image(tmp_path / "gone.png")


def test_open_image_refuses_an_empty_file(tmp_path):
    (tmp_path / "zero.png").touch()

    with pytest.raises(ValueError, match=r"zero\.png: the file is empty \(0 bytes\): copy it again or delete it"):
        open_image(tmp_path / "zero.png")


def test_open_image_refuses_other_content(tmp_path):
    (tmp_path / "page.png").write_text("<html>")
    Image.new("RGB", (4, 4)).save(tmp_path / "film.gif")

    for name in ("page.png", "film.gif"):
        with pytest.raises(ValueError, match=rf"{name}: not a readable PNG, JPEG, WebP or BMP picture: convert it"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_open_image_refuses_a_truncated_file(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(ValueError, match=rf"cut\.{suffix}: .*: (copy it again or delete it|convert it or delete it)"):
        open_image(path)


def test_open_image_refuses_a_corrupt_file(tmp_path):
    path = tmp_path / "bad.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)

    with pytest.raises(ValueError, match=r"bad\.png: truncated or corrupt \(.*\): copy it again or delete it"):
        open_image(path)


def test_open_image_refuses_a_picture_over_the_limit(bomb):
    with pytest.raises(ValueError, match=r"bomb-7000\.png: 7000 x 7000 pixels, over the limit of 40000000"):
        open_image(bomb(7000))
    with pytest.raises(ValueError, match=r"bomb-40\.png: 40 x 40 pixels, over the limit of 1599 .*: scale it down"):
        open_image(bomb(40), max_pixels=1599)
    assert open_image(bomb(40), max_pixels=1600).size == (40, 40)


@pytest.mark.parametrize("side", [11_000, 20_000])
def test_open_image_refuses_a_decompression_bomb_within_bounded_memory(bomb, side):
    path = bomb(side)
    assert path.stat().st_size < 100_000
    code = f"""
import resource
from pathlib import Path
from fedsd.data.images import open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    open_image(Path({str(path)!r}))
except ValueError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    grown, message = done.stdout.split(" ", 1)

    # Decoded, the smaller one takes 118,000 KiB.
    assert int(grown) < 10_000
    assert "over the limit of 40000000 (a decompression bomb?): scale it down or delete it" in message


def test_pixels_are_channels_first_between_minus_one_and_one(picture):
    out = pixels([example(picture("a.png", (255, 0, 51))), example(picture("b.png", (0, 255, 204)))], 8)

    assert out.dtype == np.float32
    channels = np.array([[1, -1, -0.6], [-1, 1, 0.6]], np.float32)
    np.testing.assert_allclose(out, np.broadcast_to(channels[:, :, None, None], (2, 3, 8, 8)), atol=1e-6)


def test_pixels_cut_the_centre_of_a_wide_picture(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "tall.png")

    out = pixels([example(tmp_path / "wide.png"), example(tmp_path / "tall.png")], 10)

    np.testing.assert_array_equal(out, np.ones((2, 3, 10, 10), np.float32))


def test_pixels_enlarge_tiny_pictures(tmp_path):
    Image.fromarray(np.array([[[0] * 3, [255] * 3]] * 2, np.uint8)).save(tmp_path / "tiny.png")

    out = pixels([example(tmp_path / "tiny.png")], 64)

    assert out.shape == (1, 3, 64, 64)
    assert out[0, 0, 30, 0] == -1 and out[0, 0, 30, 63] == 1
    assert np.all(np.diff(out[0, 0, 30, 16:48]) >= 0)


def test_pixels_refuse_no_pictures_and_no_size(picture):
    with pytest.raises(ValueError, match="no pictures to read: give at least one example"):
        pixels([], 8)
    with pytest.raises(ValueError, match="size 0 is no picture size: give at least 1 pixel"):
        pixels([example(picture("a.png"))], 0)
