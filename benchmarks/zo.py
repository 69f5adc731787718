"""Zeroth-order tokens beside gradients: class score, error of the estimators, memory and time, four clients.

    python benchmarks/zo.py quality    [--data DIR]     the token's class score over that of textual inversion
    python benchmarks/zo.py estimators [--data DIR]     error of each estimator at equal forward passes
    python benchmarks/zo.py federated  [--data DIR]     steps of four clients together, and of one alone
    python benchmarks/zo.py memory                      peak memory and seconds a step at the size of SD 1.5

DIR is a folder of emoji with an index.csv (path, style, cldr_short_name, split); without it styles are drawn.

The class score is the share of pictures, of names that were not trained on, that the embedded open_clip model puts
nearest to the real pictures of the style that was learnt, among all styles of the comparison.

Memory: each variant is a process of its own with random weights in the shapes of SD 1.5, latents of 64x64, batch 1,
cached latents and no autoencoder. What counts is the highest resident memory during two steps, weights included, less
that of the interpreter with its libraries; building the model and quantising it come before and do not count.
"""

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from points import given, record
from transformers import CLIPTextConfig, CLIPTextModel

from fedsd.base.denoise import encode_pixels, encode_prompts, generate, tokenize
from fedsd.base.load import Base, load, load_clip
from fedsd.base.quantised import quantised
from fedsd.base.tokenizer import WORDS, build_tokenizer
from fedsd.base.tokens import Placeholder, Token, token_embedding, with_token, word_vectors
from fedsd.base.training import Descent, Pictures, Shared, descend, errors, noised
from fedsd.data import drawn
from fedsd.data.example import Layout
from fedsd.data.folder import read
from fedsd.data.images import pixels
from fedsd.methods import textual_inversion, zo_token
from fedsd.metrics.features import ImageTower, extract
from fedsd.seeded import directions, gradient
from fedsd.tangent_mean import tangent_mean

PLACEHOLDER = Placeholder(template="{caption}, {token} style")
DESCENT = Descent(steps=100, batch_size=8, min_snr_gamma=0.0, precision="float32", caption_dropout=0.0)
BY_GRADIENT = textual_inversion.Settings(DESCENT, PLACEHOLDER, lr=2e-2)
ZO = zo_token.Settings(replace(DESCENT, steps=360), PLACEHOLDER, lr=2e-2, timesteps=(0, 1000), bits=8)
RATES = (4e-2, 8e-2, 1.6e-1, 3.2e-1)  # at which `federated` is tried
EMOJI = ("openmoji_black", "fluent_high_contrast", "noto", "fluent_3d")
GROUPS = "Animals & Nature|Food & Drink|Travel & Places|Objects|Activities"
TRAINED = 32  # pictures of a style that are trained on; the rest are held out

Style = tuple[torch.Tensor, list[str]]  # pixels (N, 3, H, W) in [-1, 1], and names


def styles(data: Path | None, size: int, most: int = 64) -> dict[str, Style]:
    """Return up to `most` pictures of each style, in a fixed order that mixes their names."""
    order = np.random.default_rng(0)
    if data is None:
        names = [drawn.OBJECTS[i] for i in order.permutation(len(drawn.OBJECTS))[:most]]
        shown = {
            style: np.stack([np.asarray(drawn.draw(name, style, 0, size), np.float32) for name in names])
            for style in drawn.STYLES
        }
        return {s: (torch.from_numpy(p).permute(0, 3, 1, 2) / 127.5 - 1, names) for s, p in shown.items()}
    found = {}
    for style in EMOJI:
        layout = Layout(
            index="index.csv", caption_column="cldr_short_name", styles=(style,), where=f"split=train;group={GROUPS}"
        )
        examples = read(data, layout)
        chosen = [examples[i] for i in np.random.default_rng(0).permutation(len(examples))[:most]]
        found[style] = torch.from_numpy(pixels(chosen, size)), [example.caption for example in chosen]
    return found


def of_style(base: Base, style: Style, part: slice) -> Pictures:
    """Return some pictures of a style as latents."""
    return Pictures(encode_pixels(base, style[0][part]), style[1][part])


def features(shown: torch.Tensor) -> torch.Tensor:
    """Return unit embeddings (N, D) of pictures in [-1, 1]."""
    whole = ((shown + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return F.normalize(extract(ImageTower(load_clip()).eval(), whole, 64), dim=-1)


def class_score(base: Base, vectors: np.ndarray, style: str, of: dict[str, Style], seed: int) -> float:
    """Return the share of drawn pictures that are nearest to their own style's centre."""
    centres = torch.stack([F.normalize(features(part[0][TRAINED:]).mean(0), dim=0) for part in of.values()])
    carrying = with_token(base, Token(PLACEHOLDER.name, vectors))
    names = of[style][1][TRAINED:]
    made = generate(carrying, PLACEHOLDER.captions(carrying, names), [1000 * seed + i for i in range(len(names))])
    found = features(torch.from_numpy(made).permute(0, 3, 1, 2).float() / 127.5 - 1) @ centres.T
    return float((found.argmax(1) == list(of).index(style)).float().mean())


def quality(opts: argparse.Namespace, command: str) -> None:
    """Learn every style by gradients and by forward passes, and compare the class scores."""
    begun, base, ratios = time.monotonic(), load("tiny"), []
    of = styles(opts.data, base.size)
    print("| seed | style | initial word | textual inversion | zeroth-order | s | s |\n|---|---|---|---|---|---|---|")
    for seed in range(opts.seeds):
        scores = []
        for style in list(of)[: opts.styles]:
            trained = of_style(base, of[style], slice(TRAINED))
            by_gradient = textual_inversion.fit(
                base, trained, Shared(), {}, seed=seed, settings=smaller(BY_GRADIENT, opts)
            )
            by_zo = zo_token.fit(base, trained, Shared(), {}, seed=seed, settings=smaller(ZO, opts))
            tokens = word_vectors(base, "style"), by_gradient.own["token"], by_zo.shared.arrays["token"]
            scores.append([class_score(base, vectors, style, of, seed) for vectors in tokens])
            took = f"{by_gradient.progress.seconds:.0f} | {by_zo.progress.seconds:.0f}"
            print(f"| {seed} | {style} | {' | '.join(f'{s:.3f}' for s in scores[-1])} | {took} |", flush=True)
        _, gradients, zeroth = np.mean(scores, axis=0)
        ratios.append(zeroth / max(gradients, 1e-9))
    if not opts.no_record:
        record(
            "zo.class_score_ratio", float(np.mean(ratios)), ">= 0.95", command=command,
            seconds=time.monotonic() - begun, spread=(min(ratios), max(ratios)), seeds=opts.seeds,
        )  # fmt: skip


def smaller(settings: object, opts: argparse.Namespace) -> object:
    """Return the settings with the number of steps that was asked for, if one was."""
    return replace(settings, descent=replace(settings.descent, steps=opts.steps)) if opts.steps else settings


def estimators(opts: argparse.Namespace, command: str) -> None:
    """Measure E ||g - G||² / ||G||² for each estimator at about 40 passes; G by gradients over many draws."""
    begun, base = time.monotonic(), load("tiny")
    style, part = next(iter(styles(opts.data, base.size).items()))
    trained = of_style(base, part, slice(TRAINED))
    carrying = with_token(base, PLACEHOLDER.at_start(base, None))
    ids, theta = tokenize(carrying, PLACEHOLDER.captions(carrying, trained.captions)), word_vectors(base, "style")
    G = mean_gradient(carrying, trained, ids, opts.draws)
    token_embedding(carrying).vectors.requires_grad_(False)
    found = {}
    print(f"{style}\n| estimator | directions | pictures | passes | error |\n|---|---|---|---|---|")
    for estimator, n, B in (("rge", 2, 1), ("rge", 2, 13), ("rge", 4, 8), ("orthogonal", 4, 8), ("sensitive", 4, 8)):
        settings = replace(ZO, estimator=estimator, directions=n, bits=0)
        model = zo_token.Model(carrying, trained.latents, ids, settings)
        basis = zo_token.sensitive_basis(carrying, ids[:4], settings.share) if estimator == "sensitive" else None
        x = theta.flatten() if basis is None else np.zeros(len(basis), np.float32)
        rng, off, times = np.random.default_rng(0), [], max(1, 40 // (B * (n + 1)))  # a mean of steps of one picture
        for trial in range(opts.trials):
            g = np.zeros_like(x)
            for i in range(times):
                e = directions(trial, i, model.count(B), len(x), settings.rule.kind)
                index = torch.from_numpy(rng.permutation(TRAINED)[:B])
                noise = torch.Generator().manual_seed(1000 * trial + i)
                g += gradient(model.differences(theta, basis, x, e, index, noise)[1], e) / times
            wrong = (g if basis is None else g @ basis) - G
            off.append(float(wrong @ wrong))
        found[estimator, B] = np.mean(off) / float(G @ G)
        print(f"| {estimator} | {n} | {times} x {B} | {times * B * (n + 1)} | {found[estimator, B]:.2f} |", flush=True)
    if not opts.no_record:
        ours = found["sensitive", 8] / found["rge", 1]
        record("zo.error_over_rge", ours, "< 1", command=command, seconds=time.monotonic() - begun)


def mean_gradient(carrying: Base, of: Pictures, ids: torch.Tensor, draws: int) -> np.ndarray:
    """Return the gradient (d,) of the loss over all pictures, each with many draws of timestep and noise."""
    vectors = token_embedding(carrying).vectors.requires_grad_(True)
    for draw in range(draws):
        given = noised(carrying, of.latents, torch.Generator().manual_seed(draw), 0.0)
        errors(carrying, given, carrying.text_encoder(ids).last_hidden_state).mean().div(draws).backward()
    assert vectors.grad is not None
    return vectors.grad.numpy().flatten().copy()


def federated(opts: argparse.Namespace, command: str) -> None:
    """Count each client's steps to a loss: four clients with a quarter of the pictures each, and one of them alone.

    Each at the rate that suits it best: a mean of four is four times less noisy and bears a longer step. Steps are the
    mean over seeds, of which each has another of the four alone.
    """
    begun, base = time.monotonic(), load("tiny")
    part = next(iter(styles(opts.data, base.size).values()))
    clients = [of_style(base, part, slice(i, TRAINED, 4)) for i in range(4)]
    held_out, start = of_style(base, part, slice(TRAINED, None)), word_vectors(base, "style")
    settings = smaller(BY_GRADIENT, opts)
    best = textual_inversion.fit(base, clients[0], Shared(), {}, seed=0, settings=settings).own["token"]
    first, wanted = loss(base, held_out, start), loss(base, held_out, best)
    goal = first - 0.8 * (first - wanted)
    print(f"loss at the start {first:.4f}, by gradients {wanted:.4f}, goal {goal:.4f}")
    found: dict[str, dict[float, list[int]]] = {"alone": {}, "each of four": {}}
    print("| rate | steps alone | steps of each of four |\n|---|---|---|")
    for lr in RATES:
        settings = replace(ZO, descent=replace(DESCENT, steps=5, batch_size=2), directions=2, lr=lr)
        for seed in range(opts.seeds):
            for who, chosen in (("alone", [clients[seed % 4]]), ("each of four", clients)):
                taken = steps_to(base, chosen, held_out, goal, settings, opts.rounds, seed)
                found[who].setdefault(lr, []).append(taken)
        print(f"| {lr:g} | {found['alone'][lr]} | {found['each of four'][lr]} |", flush=True)
    alone, four = (min(of.values(), key=np.mean) for of in found.values())
    print(f"at its best rate: alone {np.mean(alone):.1f}, each of four {np.mean(four):.1f}")
    if not opts.no_record:
        ratios = [together / single for together, single in zip(four, alone, strict=True)]
        record(
            "zo.federated_steps_over_alone", float(np.mean(four) / np.mean(alone)), "< 1", command=command,
            seconds=time.monotonic() - begun, spread=(min(ratios), max(ratios)), seeds=opts.seeds,
        )  # fmt: skip


def steps_to(
    base: Base, clients: list[Pictures], held_out: Pictures, goal: float, settings: zo_token.Settings, rounds: int,
    seed: int,
) -> int:  # fmt: skip
    """Return the steps that each client took until the mean token's loss was at the goal, or `rounds` were over.

    Those that never come there count as having come at the end, which makes their mean too small.
    """
    shared, own = Shared(), [dict[str, np.ndarray]() for _ in clients]
    for server_round in range(rounds):
        done = [
            zo_token.fit(base, of, shared, own[i], seed=1000 * server_round + i + 100_000 * seed, settings=settings)
            for i, of in enumerate(clients)
        ]
        own = [dict(fit.own) for fit in done]
        shared = Shared(arrays=tangent_mean([fit.shared.arrays for fit in done], [1] * len(done)))
        if loss(base, held_out, shared.arrays["token"]) <= goal:
            return (server_round + 1) * settings.descent.steps
    return rounds * settings.descent.steps


def loss(base: Base, of: Pictures, vectors: np.ndarray) -> float:
    """Return the mean loss over four fixed draws of timestep and noise for each picture."""
    carrying = with_token(base, Token(PLACEHOLDER.name, vectors))
    with torch.no_grad():
        states = encode_prompts(carrying, PLACEHOLDER.captions(carrying, of.captions)).repeat(4, 1, 1)
        given = noised(base, of.latents.repeat(4, 1, 1, 1), torch.Generator().manual_seed(0), 0.0)
        return float(errors(base, given, states).mean())


def sd15(bits: int) -> Base:
    """Return a base in the shapes of SD 1.5 with random weights, without an autoencoder."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=WORDS, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                max_position_embeddings=77, bos_token_id=WORDS - 2, eos_token_id=WORDS - 1, pad_token_id=WORDS - 1,
            )
        )  # fmt: skip
    for model in (unet, text_encoder):
        model.to_empty(device="cpu").requires_grad_(False).eval()
        for values in model.parameters():
            values.normal_(0, 0.02)
        for positions in model.buffers():
            positions.copy_(torch.arange(positions.shape[-1]).expand_as(positions))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    base = Base(unet, text_encoder, None, build_tokenizer(77), scheduler, 512, "", torch.device("cpu"))
    return quantised(base, bits) if bits else base


def dreambooth(base: Base, of: Pictures, descent: Descent) -> None:
    """Train all weights of the U-Net with AdamW, in float32."""
    parameters = list(base.unet.requires_grad_(True).parameters())
    group = {"params": parameters, "lr": 5e-6, "setting": "lr"}
    descend(base, of, [torch.optim.AdamW([group])], descent, torch.Generator().manual_seed(0), text_trained=False)


def by_gradient(base: Base, of: Pictures, descent: Descent) -> None:
    """Train a token by gradients."""
    settings = textual_inversion.Settings(descent, PLACEHOLDER, 1e-3)
    textual_inversion.fit(base, of, Shared(), {}, seed=0, settings=settings)


def by_passes(estimator: str) -> Callable[[Base, Pictures, Descent], None]:
    """Return training of a token by three forward passes a step, as many as in the paper."""

    def train(base: Base, of: Pictures, descent: Descent) -> None:
        settings = zo_token.Settings(descent, PLACEHOLDER, 5e-3, directions=2, estimator=estimator, bits=0)
        zo_token.fit(base, of, Shared(), {}, seed=0, settings=settings)

    return train


VARIANTS: dict[str, tuple[int, Callable[[Base, Pictures, Descent], None]]] = {
    "dreambooth": (0, dreambooth), "textual-inversion": (0, by_gradient), "zo-float32": (0, by_passes("rge")),
    "zo-w8": (8, by_passes("rge")), "zo-w8-sensitive": (8, by_passes("sensitive")), "zo-w4": (4, by_passes("rge")),
}  # fmt: skip


def resident(key: str) -> float:
    """Return VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def variant(name: str) -> None:
    """Measure one variant in this process and print what it took."""
    interpreter = resident("VmRSS")
    bits, train = VARIANTS[name]
    base = sd15(bits)
    gc.collect()
    weights = resident("VmRSS") - interpreter
    of = Pictures(torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)), ["a cat"])
    Path("/proc/self/clear_refs").write_text("5")  # begins the high-water mark anew
    begun = time.monotonic()
    train(base, of, replace(DESCENT, steps=2, batch_size=1))
    seconds = (time.monotonic() - begun) / 2
    peak = resident("VmHWM") - interpreter
    print(json.dumps({"mib": peak, "weights": weights, "interpreter": interpreter, "seconds": seconds}))


def memory(opts: argparse.Namespace, command: str) -> None:
    """Run every variant in a process of its own; record how many times less memory a zeroth-order token takes."""
    begun, found = time.monotonic(), {}
    print("| variant | peak MiB | weights MiB | interpreter MiB | s a step |\n|---|---|---|---|---|")
    for name in opts.variants.split(","):
        call = [sys.executable, __file__, "variant", name]
        done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
        row = " | ".join(f"{found[name][key]:.0f}" for key in ("mib", "weights", "interpreter"))
        print(f"| {name} | {row} | {found[name]['seconds']:.1f} |", flush=True)
    if opts.no_record or not {"dreambooth", "textual-inversion", "zo-w8"} <= set(found):
        return
    seconds, ours = time.monotonic() - begun, found["zo-w8"]["mib"]
    for point, other, target in (("dreambooth", "dreambooth", ">= 8.2"), ("ti", "textual-inversion", ">= 2.8")):
        record(f"zo.memory_{point}_over_zo", found[other]["mib"] / ours, target, command=command, seconds=seconds)


def main() -> None:
    """Run the part that was asked for."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("part", choices=("quality", "estimators", "federated", "memory", "variant"))
    args.add_argument("name", nargs="?", choices=VARIANTS)
    args.add_argument("--data", type=Path)
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--styles", type=int, default=4)
    args.add_argument("--steps", type=int, default=0)
    args.add_argument("--draws", type=int, default=40)
    args.add_argument("--trials", type=int, default=30)
    args.add_argument("--rounds", type=int, default=60)
    args.add_argument("--variants", default=",".join(VARIANTS))
    args.add_argument("--no-record", action="store_true")
    opts = args.parse_args()
    if opts.part == "variant":
        variant(opts.name)
        return
    data = " --data DIR" if opts.data else ""
    {"quality": quality, "estimators": estimators, "federated": federated, "memory": memory}[opts.part](
        opts, f"python benchmarks/zo.py {opts.part}{given('--seeds', '--styles', '--steps', '--rounds')}{data}"
    )


if __name__ == "__main__":
    main()
