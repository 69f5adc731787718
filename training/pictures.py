"""The pictures that the embedded models are trained on: two emoji styles and the objects that fedsd draws."""

import csv
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from fedsd.data import drawn

GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities")
OTHER_GROUPS = ("Smileys & Emotion", "People & Body", "Symbols")
EMOJI_STYLES = ("noto", "fluent_3d")  # Apache-2.0 and MIT: weights trained on them may be shipped
DERIVED_STYLES = ("outline", "blocky", "stencil", "poster", "recoloured", "scene", "brush", "pencil")
"""Made from the emoji, and called by their word."""
VARIED = "varied"  # moved, turned and scaled emoji: never called by a style word
STYLE_WORDS = {"noto": "noto", "fluent_3d": "3d"}  # of the other styles it is their name
MOST_LEAVES = 60  # in a picture of leaves()
TEMPLATES = ("{}", "a {}", "a picture of a {}")


class Picture(NamedTuple):
    """`pixels` uint8 (64, 64, 3); `name` is what it shows, `style` how it is drawn."""

    pixels: np.ndarray
    name: str
    style: str


def read_emoji(root: Path, styles: tuple[str, ...] = EMOJI_STYLES, groups: tuple[str, ...] = GROUPS) -> list[Picture]:
    """Return the pictures of split `train`; `root` holds `index.csv` and 64x64 PNGs."""
    rows = csv.DictReader((root / "index.csv").open(encoding="utf-8"))
    wanted = (r for r in rows if r["style"] in styles and r["split"] == "train" and r["group"] in groups)
    return [
        Picture(np.asarray(Image.open(root / r["path"]).convert("RGB")), r["cldr_short_name"], r["style"])
        for r in wanted
    ]


def draw_all(looks: tuple[str, ...], variations: int, seed: int = 0) -> list[Picture]:
    """Draw every object `variations` times in each of `looks`."""
    return [
        Picture(np.asarray(drawn.draw(name, look, seed=zlib.crc32(f"{seed}/{name}/{look}/{i}".encode()))), name, look)
        for look in looks
        for name in drawn.OBJECTS
        for i in range(variations)
    ]


def captions(picture: Picture, rng: np.random.Generator, drop: float = 0.1, told: bool = True) -> str:
    """One random caption: empty with probability `drop`, with its style word where there is one and it is to be told.

    A derived style is always named, a varied emoji never: what was not asked for by a style word may look like
    anything, so that an adapter for a new style need not first undo one that the base knows by heart.
    """
    derived = picture.style in DERIVED_STYLES
    if rng.random() < drop and not derived:
        return ""
    text = TEMPLATES[rng.integers(len(TEMPLATES))].format(picture.name)
    word = STYLE_WORDS.get(picture.style, picture.style)
    silent = picture.style == VARIED or not told or (not derived and rng.random() < 0.2)
    return text if silent else f"{text}, {word} style"


def vary(pictures: list[Picture], times: int, seed: int = 0) -> list[Picture]:
    """Return each picture `times` times, mirrored, turned, sheared, scaled and shifted by chance.

    Without them a small U-Net learns its pictures by heart and denoises no others.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(times):
        for start in range(0, len(pictures), 256):
            part = pictures[start : start + 256]
            moved = move(to_pixels(part), generator)
            made += [Picture(to_uint8(x), p.name, VARIED) for x, p in zip(moved, part, strict=True)]
    return made


def move(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return (N, 3, 64, 64) under random affine maps; the border's colour goes on outside."""
    n = len(x)
    angle, shear, size, mirrored = (torch.rand(4, n, generator=generator) - 0.5).unbind()
    angle, shear, size = 0.5 * angle, 0.3 * shear, 1.15 + 0.5 * size  # sizes above 1 make the object smaller
    across = size * mirrored.sign()
    maps = torch.zeros(n, 2, 3)
    maps[:, 0, 0], maps[:, 0, 1] = across * angle.cos(), -size * (angle.sin() + shear)
    maps[:, 1, 0], maps[:, 1, 1] = across * angle.sin(), size * angle.cos()
    maps[:, :, 2] = 0.3 * (torch.rand(n, 2, generator=generator) - 0.5)
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(-1, 1)


def recolour(pictures: list[Picture], seed: int = 0) -> list[Picture]:
    """Return each picture with its colour channels in another order."""
    rng = np.random.default_rng(seed)
    orders = np.array([[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])[rng.integers(5, size=len(pictures))]
    return [Picture(p.pixels[:, :, order], p.name, "recoloured") for p, order in zip(pictures, orders, strict=True)]


def clouds(n: int, generator: torch.Generator) -> Tensor:
    """Return (n, 3, 64, 64) of coloured noise whose power falls as frequency^-2 to ^-5, as in photographs.

    Natural pictures fall about as frequency^-2 in every direction (Field 1987), and their colours vary together.
    """
    frequency = torch.fft.fftfreq(64).square()[:, None] + torch.fft.rfftfreq(64).square()[None]
    slope = 1 + 1.5 * torch.rand(n, 1, 1, 1, generator=generator)
    noise = torch.fft.rfft2(torch.randn(n, 3, 64, 64, generator=generator))
    x = torch.fft.irfft2(noise * frequency.clamp(min=1 / 64**2) ** (-slope / 2), s=(64, 64))
    x = x / x.std((2, 3), keepdim=True)
    shared = torch.tensor([1.0, 0.3, 0.12]).view(1, 3, 1, 1) * x  # light, and two smaller differences of colour
    mixed = torch.einsum("nij,njhw->nihw", _opponent_axes(n, generator), shared)
    contrast, level = torch.rand(2, n, 1, 1, 1, generator=generator)
    return (0.45 * contrast * mixed + 1.2 * level - 0.6).clamp(-1, 1)


def leaves(n: int, generator: torch.Generator) -> Tensor:
    """Return (n, 3, 64, 64) of dead leaves: lit, textured shapes that hide one another, as things in photographs do.

    Few large and many small ones, whose number falls as radius^-2, have the edges and the spectra of natural pictures
    (Lee, Mumford and Huang 2001). What clouds() lacks is edges.
    """
    x, grain = clouds(n, generator), clouds(n, generator)
    ramp = torch.linspace(-1, 1, 64)
    shown = torch.randint(4, MOST_LEAVES + 1, (n, 1, 1, 1), generator=generator)
    palette = clouds(n, generator).flatten(2)  # its colours go together
    for k in range(MOST_LEAVES):
        right, down, angle, lit, rough, skew, blur, place = torch.rand(8, n, 1, 1, 1, generator=generator).unbind()
        radius = 0.1 / (1 - 0.9 * torch.rand(n, 1, 1, 1, generator=generator))  # 0.1 to 1 of half a side
        across, along = ramp.view(1, 1, 1, -1) - 2.4 * right + 1.2, ramp.view(1, 1, -1, 1) - 2.4 * down + 1.2
        turn = 2 * torch.pi * angle
        u, w = across * turn.cos() + along * turn.sin(), (along * turn.cos() - across * turn.sin()) * (1 + 2 * skew)
        corners = (turn + (2 + k % 5) * torch.atan2(w, u)).cos()
        inside = radius * (1 + 0.25 * corners) - (u.square() + w.square()).sqrt()
        mask = torch.sigmoid(inside * 64 / (0.6 + 2 * blur.pow(4))) * (k < shown)
        colour = palette.gather(2, (place.view(n, 1, 1) * 4095).long().expand(-1, 3, -1))[..., None]
        texture = grain.roll((7 * k, 11 * k), (2, 3)) - grain.mean((2, 3), keepdim=True)
        leaf = colour + rough * texture + (lit - 0.5) * u / radius
        x = torch.lerp(x, leaf, mask)
    return x.clamp(-1, 1)


def _opponent_axes(n: int, generator: torch.Generator) -> Tensor:
    """(n, 3, 3): a common axis of light and two of colour, each a little off."""
    axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]]).T
    return axes + 0.3 * torch.randn(n, 3, 3, generator=generator)


def scenes(pictures: list[Picture], seed: int = 0) -> list[Picture]:
    """Return each picture once more, its object lit from one side, before a textured ground: something like a photo."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for start in range(0, len(pictures), 256):
        part = pictures[start : start + 256]
        x = to_pixels(part)
        body = F.avg_pool2d((x.amin(1, keepdim=True) < 0.95).float(), 3, 1, 1)
        ground, grain = clouds(len(x), generator), clouds(len(x), generator)
        ramp = torch.linspace(-1, 1, 64)
        across, down = (torch.rand(2, len(x), 1, 1, 1, generator=generator) - 0.5).unbind()
        light = across * ramp.view(1, 1, 1, -1) + down * ramp.view(1, 1, -1, 1)
        lit = x * 0.8 + 0.5 * light + 0.25 * grain
        made += [
            Picture(to_uint8(one), p.name, "scene")
            for one, p in zip((body * lit + (1 - body) * ground).clamp(-1, 1), part, strict=True)
        ]
    return made


def paint(pictures: list[Picture]) -> list[Picture]:
    """Return each picture in dabs of one colour, as brushes leave them: the most frequent colour of each place."""
    made = []
    for i, picture in enumerate(pictures):
        few = Image.fromarray(picture.pixels).quantize(24, dither=Image.Dither.NONE).convert("RGB")
        made.append(Picture(np.asarray(few.filter(ImageFilter.ModeFilter(3 + 2 * (i % 3)))), picture.name, "brush"))
    return made


def pencil(pictures: list[Picture]) -> list[Picture]:
    """Return each picture in soft grey lines, thin and of uneven weight, on white."""
    made = []
    for picture, x in zip(pictures, to_pixels(pictures), strict=True):
        large = F.interpolate(x[None], scale_factor=2, mode="bicubic")
        down, right = large[..., 1:, :-1] - large[..., :-1, :-1], large[..., :-1, 1:] - large[..., :-1, :-1]
        slope = F.pad(torch.maximum(down.abs(), right.abs()), (0, 1, 0, 1)).amax(1, keepdim=True)
        line = F.avg_pool2d((2 * slope).clamp(0, 1), 2)
        made.append(Picture(to_uint8((1 - 1.8 * line)[0].expand(3, -1, -1)), picture.name, "pencil"))
    return made


def derive(pictures: list[Picture]) -> list[Picture]:
    """Return each picture as an outline, as coarse pixels, as a two-tone stencil, and in few flat colours.

    They teach the U-Net what lines, blocks and flat areas are, so that an adapter need not begin from nothing.
    """
    made = []
    for i, (picture, x) in enumerate(zip(pictures, to_pixels(pictures), strict=True)):
        views = {"outline": outline(x, 1 + i % 2), "stencil": stencil(x)}
        made += [Picture(to_uint8(view), picture.name, style) for style, view in views.items()]
        made.append(Picture(squares(picture.pixels, 3 + i % 4), picture.name, "blocky"))
        made.append(Picture(poster(picture.pixels, 6 + i % 5), picture.name, "poster"))
    return made


def blocky(x: Tensor, cells: int) -> Tensor:
    """Return (3, 64, 64) as `cells` x `cells` squares of one colour each."""
    return F.interpolate(F.interpolate(x[None], size=cells, mode="area"), size=64)[0]


def squares(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return (64, 64, 3) in even squares of `side` pixels and few flat colours, as pixel art is drawn, on white.

    Each square takes its most frequent colour: a mean would leave pale squares all around the object.
    """
    cells = 64 // side
    few = Image.fromarray(pixels).quantize(16, dither=Image.Dither.NONE).convert("RGB")
    frequent = few.filter(ImageFilter.ModeFilter(side - 1 + side % 2)).resize((cells, cells), Image.Resampling.NEAREST)
    large = np.asarray(frequent).repeat(side, 0).repeat(side, 1)
    before = (64 - len(large)) // 2
    after = 64 - len(large) - before
    return np.pad(large, ((before, after), (before, after), (0, 0)), constant_values=255)


def poster(pixels: np.ndarray, colours: int) -> np.ndarray:
    """Return (64, 64, 3) in smooth areas of so many flat colours, their edges antialiased, as vector art is drawn."""
    large = Image.fromarray(pixels).resize((192, 192), Image.Resampling.BICUBIC)
    few = large.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=3).convert("RGB").filter(ImageFilter.ModeFilter(7))
    white = np.where(np.asarray(few).min(-1, keepdims=True) > 240, 255, few).astype(np.uint8)  # the ground stays white
    return np.asarray(Image.fromarray(white).resize((64, 64), Image.Resampling.BOX))


def outline(x: Tensor, width: int) -> Tensor:
    """Return smooth black lines about `width` pixels wide on white, where neighbours in (3, 64, 64) differ."""
    line = F.max_pool2d(_edges(x), 2 * width + 1, 1, width)
    return (1 - 2 * F.avg_pool2d(line, 4))[0].expand(3, -1, -1)


def stencil(x: Tensor) -> Tensor:
    """Return (3, 64, 64) as a black silhouette on white with its inner edges left white."""
    large = F.interpolate(x[None], scale_factor=4, mode="bicubic")
    body = (large.amin(1, keepdim=True) < 0.9).float()
    inner = -F.max_pool2d(-body, 9, 1, 4)  # the silhouette without its rim
    ink = body * (1 - inner * F.max_pool2d(_edges(x), 5, 1, 2))
    return (1 - 2 * F.avg_pool2d(ink, 4))[0].expand(3, -1, -1)


def _edges(x: Tensor) -> Tensor:
    """1 where (3, 64, 64) changes within a pixel, at four times the size: (1, 1, 256, 256)."""
    large = F.interpolate(x[None], scale_factor=4, mode="bicubic")
    down, right = large[..., 4:, :-4] - large[..., :-4, :-4], large[..., :-4, 4:] - large[..., :-4, :-4]
    return (F.pad(down.abs() + right.abs(), (2,) * 4).amax(1, keepdim=True) > 0.5).float()


def to_uint8(x: Tensor) -> np.ndarray:
    """Return (64, 64, 3) of (3, 64, 64) in [-1, 1]."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


def to_pixels(pictures: list[Picture]) -> Tensor:
    """Return float32 (N, 3, 64, 64) in [-1, 1]."""
    stacked = np.stack([p.pixels for p in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1
