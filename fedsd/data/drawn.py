"""Pictures that the project draws itself: common objects in neutral looks and in plainly different styles."""

import json
import os
import random
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fedsd.data.drawing import animals, looks, nature, styles, things, travel
from fedsd.data.drawing.pen import Pen, framed

_DRAW = {
    "house": travel.house, "castle": travel.castle, "lighthouse": travel.lighthouse, "windmill": travel.windmill,
    "tent": travel.tent, "car": travel.car, "bus": travel.bus, "train": travel.train, "lorry": travel.lorry,
    "bicycle": travel.bicycle, "boat": travel.boat, "rocket": travel.rocket, "balloon": travel.balloon,
    "plane": travel.plane, "helicopter": travel.helicopter, "traffic light": travel.signal, "snowman": travel.snowman,
    "sun": nature.sun, "moon": nature.moon, "star": nature.star, "cloud": nature.cloud, "rainbow": nature.rainbow,
    "mountain": nature.mountain, "tree": nature.tree, "fir": nature.fir, "flower": nature.flower,
    "tulip": nature.tulip, "mushroom": nature.mushroom, "cactus": nature.cactus, "leaf": nature.leaf,
    "apple": nature.apple, "pear": nature.pear, "banana": nature.banana, "cherry": nature.cherry,
    "strawberry": nature.strawberry, "watermelon": nature.watermelon, "carrot": nature.carrot, "pizza": nature.pizza,
    "cake": nature.cake, "ice cream": nature.icecream, "doughnut": nature.doughnut, "fried egg": nature.egg,
    "cheese": nature.cheese,
    "cat": animals.cat, "dog": animals.dog, "rabbit": animals.rabbit, "bear": animals.bear, "pig": animals.pig,
    "frog": animals.frog, "owl": animals.owl, "fish": animals.fish, "whale": animals.whale, "bird": animals.bird,
    "chick": animals.chick, "penguin": animals.penguin, "turtle": animals.turtle, "snail": animals.snail,
    "butterfly": animals.butterfly, "ladybird": animals.ladybird, "bee": animals.bee, "snake": animals.snake,
    "octopus": animals.octopus,
    "umbrella": things.umbrella, "cup": things.cup, "key": things.key, "clock": things.clock, "book": things.book,
    "lamp": things.lamp, "chair": things.chair, "hat": things.hat, "heart": things.heart, "bell": things.bell,
    "gift": things.gift, "candle": things.candle, "glasses": things.glasses, "envelope": things.envelope,
    "camera": things.camera, "hammer": things.hammer, "scissors": things.scissors, "pencil": things.pencil,
    "ball": things.ball, "guitar": things.guitar, "crown": things.crown, "lock": things.lock,
    "bottle": things.bottle, "light bulb": things.bulb, "shirt": things.shirt,
}  # fmt: skip
_RENDER = {
    "flat": looks.flat, "shaded": looks.shaded, "soft": looks.soft,
    "sketch": styles.sketch, "cartoon": styles.cartoon, "painted": styles.painted, "pixel": styles.pixel,
}  # fmt: skip

OBJECTS: tuple[str, ...] = tuple(_DRAW)
LOOKS: tuple[str, ...] = ("flat", "shaded", "soft")
STYLES: tuple[str, ...] = ("sketch", "cartoon", "painted", "pixel")
_MANIFEST = "drawn.json"


def draw(name: str, look: str, seed: int, size: int = 64) -> Image.Image:
    """Draw one of OBJECTS in one of LOOKS or STYLES.

    The seed varies position, size, proportions, colours and detail; the same arguments give the same pixels, and
    the same seed gives the same object in every look.

    Args:
        name: one of OBJECTS.
        look: one of LOOKS or STYLES.
        seed: any whole number.
        size: side in pixels, 16 or more.

    Returns:
        An RGB picture of (size, size) pixels.

    Raises:
        ValueError: for an unknown name or look, or a size below 16.
    """
    if name not in _DRAW:
        raise ValueError(f"object {name!r} cannot be drawn: choose one of {', '.join(OBJECTS)}")
    if look not in _RENDER:
        raise ValueError(f"look {look!r} is unknown: choose one of {', '.join(LOOKS + STYLES)}")
    if size < 16:
        raise ValueError(f"size {size} is too small to draw in: choose 16 or more")
    rng = random.Random(f"{name}/{seed}")
    pen = Pen(rng)
    _DRAW[name](pen)
    return _RENDER[look](framed(pen.shapes, rng, fill=0.94 if look in LOOKS else 0.88), size, rng)


def write(
    root: Path,
    styles: Sequence[str],
    per_style: int,
    seed: int,
    size: int = 64,
    objects: Sequence[str] = OBJECTS,
) -> None:
    """Write drawn pictures as a folder per style and class: root/style/class/NNN.png.

    Each style gets per_style pictures, which go through the objects in turn. The whole folder appears at once or not at
    all; a folder that was written with the same settings is left as it is.

    Args:
        root: the folder to make; its parent is made too.
        styles: some of STYLES or LOOKS.
        per_style: pictures per style, at least 1.
        seed: the same seed gives the same pictures.
        size: side in pixels, 16 or more.
        objects: some of OBJECTS.

    Raises:
        ValueError: for an unknown style or object, per_style below 1, or a folder that holds something else.
    """
    if per_style < 1 or not styles or not objects:
        given = f"per_style = {per_style}, {len(styles)} styles and {len(objects)} objects"
        raise ValueError(f"{given} make no pictures: give at least 1 of each")
    settings = {"styles": [*styles], "per_style": per_style, "seed": seed, "size": size, "objects": [*objects]}
    if _written(root, settings):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        for style in styles:
            for k in range(per_style):
                name = objects[k % len(objects)]
                folder = work / style / name
                folder.mkdir(parents=True, exist_ok=True)
                own = zlib.crc32(f"{seed}/{style}/{k}".encode())
                draw(name, style, own, size).save(folder / f"{k // len(objects):03d}.png")
        (work / _MANIFEST).write_text(json.dumps(settings), encoding="utf-8")
        work.chmod(0o755)
        try:
            os.replace(work, root)
        except OSError:
            # Another process was first: fine where it drew the same.
            if not _written(root, settings):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _written(root: Path, settings: dict[str, object]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    manifest = root / _MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")) == settings:
        return True
    held = "pictures drawn with other settings" if manifest.is_file() else "something that was not drawn here"
    raise ValueError(f"{root} holds {held}: delete it or choose another folder")
