"""Train the text encoder and the U-Net of the embedded base, together and from nothing.

The state (weights, averages, optimiser, counters) is written to `--out/state.pt` every few minutes, and a later call
goes on from there: `--hours` counts this sitting alone. On a GPU use `--batch 512 --hours 0.15`. On a processor one
process per core is twice as fast as threads: `torchrun --standalone --nproc-per-node 2 training/train_denoiser.py`.
For a share of the samples the caption does not say the style; an embedding of it is added to the time embedding
instead, as SPIRE's clients do (arXiv 2506.12303), so that the U-Net can be steered there. They are not shipped.
The loss is the v-prediction loss (Salimans and Ho 2022, arXiv 2202.00512) at uniform timesteps. Matrices and
convolutions are stepped by Muon (Jordan et al. 2024), the rest by AdamW.
"""

import argparse
import os
import time
import zlib
from pathlib import Path

import numpy as np
import pictures as pictures_module
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from pictures import (
    EMOJI_STYLES,
    OTHER_GROUPS,
    VARIED,
    Picture,
    captions,
    derive,
    draw_all,
    paint,
    pencil,
    read_emoji,
    recolour,
    scenes,
    to_pixels,
    vary,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from fedsd.base.tokenizer import build_tokenizer
from fedsd.data import drawn

WIDTH = 80  # of the text encoder and of cross-attention
MAX_TOKENS = 32  # SD 1.x has 77; short captions make every training step cheaper
AVERAGE_EVERY = 4  # steps between two updates of the averaged weights
SHARES = {
    "emoji": 0.29, "varied": 0.08, "drawn": 0.04, "blocky": 0.14, "poster": 0.15, "outline": 0.09, "stencil": 0.08,
    "recoloured": 0.04, "scene": 0.03, "brush": 0.03, "pencil": 0.03,
}  # fmt: skip
"""Of the samples. Blocks are learnt slowest: with a share of 0.06 the base drew none that were even."""

STEERED = 0.4  # share of the samples whose style is told by an embedding and not by the caption
STEERING_RATE = 5  # the embeddings' learning rate, as a multiple of the others'


def build_text_encoder() -> CLIPTextModel:
    """Return CLIP's text transformer at 80 channels and 4 layers over CLIP's own vocabulary."""
    config = CLIPTextConfig(
        vocab_size=49408, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=4, num_attention_heads=5,
        max_position_embeddings=MAX_TOKENS, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """Return the U-Net: three levels, attention at the lower two and, going up, at the top one."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, cross_attention_dim=WIDTH,
        block_out_channels=(32, 80, 120), norm_num_groups=8, attention_head_dim=(2, 4, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def build_scheduler() -> DDIMScheduler:
    """Return SD 1.x's noise schedule for v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction", timestep_spacing="trailing",
    )  # fmt: skip


class Trainer:
    """Everything one step needs; `save` and `load` keep it across sittings."""

    def __init__(self, pictures: list[Picture], latents: Tensor, lr: float, device: str) -> None:
        torch.manual_seed(0)
        self.device, self.lr, self.samples, self.seconds = device, lr, 0, 0.0
        self.unet = build_unet().to(device, memory_format=torch.channels_last)
        self.text_encoder = build_text_encoder().to(device)
        self.text_encoder.get_input_embeddings().weight.data.mul_(2)  # std 0.04: names start well apart
        self.styles = sorted({p.style for p in pictures} - {VARIED})
        self.embeddings = torch.nn.Embedding(1 + len(self.styles), self.unet.time_embedding.linear_2.out_features, 0)
        torch.nn.init.zeros_(self.embeddings.weight)  # row 0, of no style, stays so
        self.unet.time_embedding.register_forward_hook(lambda _, __, out: out + self.steering)
        self.modules = torch.nn.ModuleDict({
            "unet": self.unet, "text_encoder": self.text_encoder, "style_embeddings": self.embeddings.to(device),
        })  # fmt: skip
        self.averages = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        self.matrices = [(p, _as_matrix(p)) for name, p in self.modules.named_parameters() if _is_matrix(name, p)]
        others = [p for name, p in self.modules.named_parameters() if not _is_matrix(name, p)]
        self.optimisers = (
            torch.optim.Muon([m for _, m in self.matrices], lr=lr, weight_decay=1e-3, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, weight_decay=1e-3, betas=(0.9, 0.99), fused=True),
        )
        self.abar = build_scheduler().alphas_cumprod.to(device)
        self.tokenizer = build_tokenizer(MAX_TOKENS)
        self.pictures, self.latents = pictures, latents
        kinds = [_kind(picture) for picture in pictures]
        self.weights = np.array([SHARES[kind] / kinds.count(kind) for kind in kinds])
        self.weights /= self.weights.sum()

    def batch(self, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents (size, 4, 16, 16), token ids (size, MAX_TOKENS) and rows of the style embeddings (size,)."""
        index = rng.choice(len(self.pictures), size, p=self.weights)
        chosen = [self.pictures[i] for i in index]
        steered = [picture.style in self.styles and rng.random() < STEERED for picture in chosen]
        texts = [captions(picture, rng, told=not hidden) for picture, hidden in zip(chosen, steered, strict=True)]
        rows = [1 + self.styles.index(p.style) if hidden else 0 for p, hidden in zip(chosen, steered, strict=True)]
        ids = self.tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        return self.latents[index].to(self.device), ids.input_ids.to(self.device), torch.tensor(rows).to(self.device)

    def loss(self, x0: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
        """Mean squared error of v = sqrt(abar) eps - sqrt(1 - abar) x0."""
        self.steering = STEERING_RATE * self.embeddings(rows)
        t = torch.randint(0, len(self.abar), (len(x0),), device=self.device)
        a, s = self.abar[t].sqrt().view(-1, 1, 1, 1), (1 - self.abar[t]).sqrt().view(-1, 1, 1, 1)
        eps = torch.randn_like(x0)
        x_t = (a * x0 + s * eps).contiguous(memory_format=torch.channels_last)
        states = self.text_encoder(ids).last_hidden_state
        return F.mse_loss(self.unet(x_t, t, states).sample, a * eps - s * x0)

    def step(self, size: int, rng: np.random.Generator) -> float:
        """One optimiser step; returns its loss."""
        loss = self.loss(*self.batch(size, rng))
        self.modules.zero_grad()
        loss.backward()
        size *= self.share_gradients()
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        for parameter, matrix in self.matrices:
            matrix.grad = None if parameter.grad is None else _flat(parameter.grad)
        for optimiser in self.optimisers:
            optimiser.step()
        self.samples += size
        if self.samples // size % AVERAGE_EVERY == 0:
            self.average(min(0.996, 1 - 1 / (1 + self.samples / size / 40)))
        return loss.item()

    def share_gradients(self) -> int:
        """Average the gradients over all processes; returns how many there are."""
        if not dist.is_initialized():
            return 1
        gradients = [p.grad for p in self.modules.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, flat.div_(dist.get_world_size()).split([g.numel() for g in gradients]),
                                  strict=True):  # fmt: skip
            gradient.copy_(mean.view_as(gradient))
        return dist.get_world_size()

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Move the averages towards the weights."""
        now = self.modules.state_dict()
        floats = [key for key, value in self.averages.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.averages[k] for k in floats], [now[k] for k in floats], 1 - decay)

    def save(self, folder: Path) -> None:
        """Write the resumable state and the averaged weights as diffusers folders, atomically."""
        state = {
            "modules": self.modules.state_dict(), "averages": self.averages,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "samples": self.samples, "seconds": self.seconds,
        }  # fmt: skip
        torch.save(state, folder / "state.tmp")
        os.replace(folder / "state.tmp", folder / "state.pt")
        live = {k: v.clone() for k, v in self.modules.state_dict().items()}
        self.modules.load_state_dict(self.averages)
        self.unet.save_pretrained(folder / "unet")
        self.text_encoder.save_pretrained(folder / "text_encoder")
        self.modules.load_state_dict(live)

    def start_from(self, folder: Path) -> None:
        """Take the weights of a diffusers folder, without the optimiser's state."""
        self.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").float().state_dict())
        self.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").float().state_dict())
        self.averages = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}

    def load(self, folder: Path) -> None:
        """Go on from `save`'s state."""
        state = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        self.averages = state["averages"]
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.samples, self.seconds = state["samples"], state["seconds"]


def newton_schulz(grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float) -> Tensor:
    """Return about U V^T of grad = U S V^T in its own dtype, by the quintic iteration of Muon on the Gram matrix.

    torch's own computes in bfloat16, which on a processor without it takes twenty times as long as the rest of a step.
    """
    a, b, c = ns_coefficients
    wide = grad.T if grad.size(0) > grad.size(1) else grad
    wide = wide / wide.norm().clamp(min=eps)
    gram, eye = wide @ wide.T, torch.eye(len(wide), device=grad.device)
    product = eye
    for _ in range(ns_steps):
        step = a * eye + b * gram + c * gram @ gram
        product, gram = step @ product, step @ gram @ step
    result = product @ wide
    return result.T if grad.size(0) > grad.size(1) else result


def _kind(picture: Picture) -> str:
    """What `SHARES` counts it as."""
    if picture.style in EMOJI_STYLES:
        return "emoji"
    return picture.style if picture.style in SHARES else "drawn"


def _is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon steps it: hidden matrices and kernels, not embeddings or the first and last convolution."""
    return parameter.ndim >= 2 and not any(part in name for part in ("embeddings", "conv_in", "conv_out"))


def _flat(tensor: Tensor) -> Tensor:
    """View (out, in) or channels-last (out, in, kh, kw) as a matrix (out, -1)."""
    return tensor if tensor.ndim == 2 else tensor.permute(0, 2, 3, 1).flatten(1)


def _as_matrix(parameter: Tensor) -> torch.nn.Parameter:
    """Return a parameter of two axes that shares the memory of `parameter`; Muon takes no other."""
    matrix = torch.nn.Parameter(_flat(parameter.data))
    assert matrix.data_ptr() == parameter.data_ptr()
    return matrix


def gather(root: Path) -> list[Picture]:
    """Return all pictures: emoji as they are, varied, and derived from both, and the objects that fedsd draws."""
    emoji = read_emoji(root)
    varied = vary(emoji + read_emoji(root, groups=OTHER_GROUPS), times=5)
    sources = emoji + varied[: 2 * len(varied) // 5]
    scene = scenes(emoji + varied[: len(varied) // 5])
    made = derive(sources) + recolour(sources) + scene + paint(scene) + pencil(sources[::2])
    return emoji + varied + made + draw_all(drawn.LOOKS, variations=6)


def prepared(root: Path, vae: Path, folder: Path) -> tuple[list[Picture], Tensor]:
    """Return all pictures and their latents (N, 4, 16, 16), kept in `folder`: drawing them takes minutes.

    They are made anew when the autoencoder or a script that draws them has changed, and by the first process alone.
    """
    scripts = (__file__, pictures_module.__file__, drawn.__file__)
    parts = (vae / "diffusion_pytorch_model.safetensors", *map(Path, scripts))
    kept = folder / f"pictures-{zlib.crc32(b''.join(part.read_bytes() for part in parts)):08x}.pt"
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first and not kept.exists():
        pictures = gather(root)
        pixels, *words = zip(*pictures, strict=True)
        latents = encode(AutoencoderTiny.from_pretrained(vae), pictures)
        torch.save((torch.from_numpy(np.stack(pixels)), words, latents), folder / "pictures.tmp")
        os.replace(folder / "pictures.tmp", kept)
    if dist.is_initialized():
        dist.barrier()
    pixels, words, latents = torch.load(kept, weights_only=True)
    return [Picture(*of) for of in zip(pixels.numpy(), *words, strict=True)], latents


def encode(vae: AutoencoderTiny, pictures: list[Picture]) -> Tensor:
    """Return scaled latents (N, 4, 16, 16)."""
    with torch.inference_mode():
        return torch.cat([vae.encode(x).latents for x in to_pixels(pictures).split(64)]).clone()


def main() -> None:
    """Train for `--hours` in this sitting."""
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--emoji", type=Path, required=True)
    args.add_argument("--vae", type=Path, required=True)
    args.add_argument("--out", type=Path, required=True)
    args.add_argument("--weights", type=Path, help="weights to start from where --out is new, e.g. fedsd_tiny/base")
    args.add_argument("--hours", type=float, default=1.0)
    args.add_argument("--lr", type=float, default=1e-3)
    args.add_argument("--decay-to", type=float, default=0.1, help="learning rate at the end, as a share of --lr")
    args.add_argument("--batch", type=int, default=32)
    args.add_argument("--threads", type=int, default=1)
    opts = args.parse_args()
    torch.set_num_threads(opts.threads)
    if not torch.cuda.is_available():
        torch.optim._muon._zeropower_via_newtonschulz = newton_schulz
    if "WORLD_SIZE" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    opts.out.mkdir(parents=True, exist_ok=True)
    pictures, latents = prepared(opts.emoji, opts.vae, opts.out)
    trainer = Trainer(pictures, latents, opts.lr, "cuda" if torch.cuda.is_available() else "cpu")
    if (opts.out / "state.pt").exists():
        trainer.load(opts.out)
    elif opts.weights:
        trainer.start_from(opts.weights)
    rng = np.random.default_rng([trainer.samples, rank])
    torch.manual_seed(trainer.samples + rank)
    start, saved, before, losses = time.time(), time.time(), trainer.seconds, []
    while (progress := _agreed((time.time() - start) / 3600 / opts.hours)) < 1:
        warm_up = min(1, (trainer.samples / opts.batch + 1) / 300)
        for group in (group for optimiser in trainer.optimisers for group in optimiser.param_groups):
            group["lr"] = opts.lr * warm_up * (1 - (1 - opts.decay_to) * progress)
        losses.append(trainer.step(opts.batch, rng))
        trainer.seconds = before + time.time() - start
        if rank == 0 and len(losses) == 100:
            print(f"samples {trainer.samples}  loss {np.mean(losses):.4f}  {trainer.seconds:.0f} s", flush=True)
            losses = []
        if rank == 0 and time.time() - saved > 240:
            trainer.save(opts.out)
            saved = time.time()
    if rank == 0:
        trainer.save(opts.out)


def _agreed(progress: float) -> float:
    """Return the first process's progress in all of them, so that all end after the same step."""
    value = torch.tensor(progress)
    if dist.is_initialized():
        dist.broadcast(value, 0)
    return value.item()


if __name__ == "__main__":
    main()
