"""How good the embedded base is: KID of its "noto style" pictures to real ones, and how often the object is right.

python benchmarks/base.py --emoji DIR --realism SCRIPT [--out DIR]
"""

import argparse
import time
from pathlib import Path

import numpy as np
from judge import Judge, nearest_names, write_pictures
from PIL import Image
from points import record

from fedsd.base import denoise, load
from fedsd.cli.grids import grid, save_grid
from fedsd.cli.sampling import seed_of
from fedsd.data.example import Layout
from fedsd.data.folder import read

GROUPS = "Animals & Nature|Food & Drink|Travel & Places|Objects|Activities"


def main() -> None:
    """Draw 200 pictures, compare, and record both points."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--emoji", type=Path, required=True)
    args.add_argument("--realism", type=Path, required=True)
    args.add_argument("--out", type=Path, default=Path("runs/benchmark-base"))
    args.add_argument("--steps", type=int, default=20)
    args.add_argument("--guidance", type=float, default=1.5)
    args.add_argument("--no-record", action="store_true")
    opts = args.parse_args()
    judge, begun = Judge(opts.realism), time.time()
    layout = Layout(
        "index.csv", caption_column="cldr_short_name", where=f"split=train;group={GROUPS}", styles=("noto",)
    )
    real = read(opts.emoji, layout)
    real_features = judge.features(write_pictures([Image.open(e.path).convert("RGB") for e in real], opts.out / "real"))
    names = [e.caption for e in real]
    chosen = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:200]]
    base = load.load("tiny")
    prompts = [f"{name}, noto style" for name in chosen]
    made = denoise.generate(base, prompts, [seed_of(p, 0) for p in prompts], steps=opts.steps, guidance=opts.guidance)
    fake_features = judge.features(write_pictures([Image.fromarray(p) for p in made], opts.out / "noto"))
    mean, std = judge.kid(real_features, fake_features)
    right = np.mean(
        [a == b for a, b in zip(nearest_names(fake_features[:100], real_features, names), chosen[:100], strict=True)]
    )
    by_name, few = {e.caption: e for e in real}, chosen[:10]
    shown = [Image.open(by_name[name].path).convert("RGB") for name in few]
    save_grid(grid([("base", list(made[:10])), ("noto, real", shown)], few), opts.out / "base.png", "")
    print(f"KID x 1000 {mean:.1f} +- {std:.1f}  names right {right:.2f}  {time.time() - begun:.0f} s")
    if not opts.no_record:
        command = "python benchmarks/base.py --emoji DIR --realism SCRIPT"
        record(
            "base.kid_noto",
            mean,
            "<= 60",
            command=command,
            seconds=time.time() - begun,
            spread=(mean - std, mean + std),
        )
        record("base.names_right", right, ">= 0.5", command=command, seconds=time.time() - begun)


if __name__ == "__main__":
    main()
