"""What comes back over the wire continues the run as if it had never been cut."""

import pytest
import torch
from ies import CREDENTIAL, Served
from models import random_lora

from fedsd.base import adapters, denoise
from fedsd.base.load import Base
from fedsd.base.schedulers import WITHOUT_MEMORY, scheduler_named
from fedsd.hybrid.client import Drawing, Drawn, Remote, draw

STEPS = 20
CUTS = (2, 4, 6, 8, 10)  # splits 0.1 to 0.5


def uncut(base: Base, name: str, server_steps: int, mix: float = 1.0) -> torch.Tensor:
    """Both halves here: neutral adapter, then the personal one."""
    scheduler, split = scheduler_named(base, name), denoise.Split(STEPS, server_steps, 3.0)
    with torch.no_grad():
        with adapters.adapted(base, random_lora(base, 101)):
            adapters.set_scale(base, mix)
            x_mid = denoise.early(base, denoise.encode_batch(base, ["a dog"], [7]), split, scheduler=scheduler)
        with adapters.adapted(base, random_lora(base, 2)):
            batch = denoise.encode_batch(base, ["a dog by my lake"], [7])
            return denoise.late(base, x_mid, batch, split, scheduler=scheduler)


def over_the_wire(base: Base, served: Served, name: str, server_steps: int, **changes: object) -> Drawn:
    split = denoise.Split(STEPS, server_steps, 3.0)
    drawing = Drawing("a dog by my lake", "a dog", 7, split, name, **changes)  # type: ignore[arg-type]
    with adapters.adapted(base, random_lora(base, 2)):
        drawn = draw(base, drawing, Remote(served.url, CREDENTIAL))
    assert drawn.told is not None, drawn.why
    return drawn


@pytest.mark.parametrize("server_steps", CUTS)
@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_handoff_is_exact_in_float32_and_close_in_float16(
    base: Base, served: Served, name: str, server_steps: int
) -> None:
    wanted = uncut(base, name, server_steps)
    whole = over_the_wire(base, served, name, server_steps, encoding="float32")
    assert torch.equal(whole.latents, wanted)
    half = over_the_wire(base, served, name, server_steps)
    error = float((half.latents - wanted).norm() / wanted.norm())
    assert 0 < error <= 3e-4
    assert half.told is not None and half.told.cache == "hit"  # one run for both encodings
    assert half.received < whole.received


def test_embeddings_give_what_their_text_gives(base: Base, served: Served) -> None:
    """The server's text encoder has the neutral adapter, the device's states are the base's: at mix 0 they agree."""
    text = over_the_wire(base, served, "ddim", 6, encoding="float32", mix_loras=0.0)
    sent = over_the_wire(base, served, "ddim", 6, encoding="float32", mix_loras=0.0, embeddings=True)
    assert torch.equal(text.latents, sent.latents) and torch.equal(text.latents, uncut(base, "ddim", 6, 0.0))
    assert sent.told is not None and sent.told.cache == "miss"


def test_mix_loras_scales_the_neutral_adapter(base: Base, served: Served) -> None:
    weak = over_the_wire(base, served, "ddim", 6, encoding="float32", mix_loras=0.7)
    assert torch.equal(weak.latents, uncut(base, "ddim", 6, 0.7))
    assert (weak.latents - uncut(base, "ddim", 6)).abs().max() > 1e-3


def test_without_a_server_all_steps_are_the_devices(base: Base) -> None:
    split = denoise.Split(STEPS, 6, 3.0)
    with adapters.adapted(base, random_lora(base, 2)):
        drawn = draw(base, Drawing("a dog by my lake", "a dog", 7, split), None)
        batch = denoise.encode_batch(base, ["a dog by my lake"], [7])
        with torch.no_grad():
            x_T = denoise.initial_latents(base, [7])
            whole = denoise.denoise(base, x_T, batch.text, batch.empty, steps=STEPS, guidance=3.0, seeds=[7])
    assert torch.equal(drawn.latents, whole) and drawn.told is None and drawn.why == "no server was asked"
