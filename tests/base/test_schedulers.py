from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler, UniPCMultistepScheduler

from fedsd.base.denoise import Split, early, encode_batch, late
from fedsd.base.load import Base
from fedsd.base.schedulers import WITHOUT_MEMORY, most_steps, scheduler_named, scheduler_sha, step_noise


@pytest.mark.parametrize("kind", [PNDMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_samplers_with_memory_are_refused_with_the_reason(base: Base, kind: type) -> None:
    other = replace(base, scheduler=kind.from_config(base.scheduler.config))
    batch = encode_batch(other, ["a cat"], [1])
    wanted = (
        f"{kind.__name__.removesuffix('Scheduler')}' cannot be split.*memory of earlier steps.*ddim, ddpm, euler, lcm"
    )
    with pytest.raises(ValueError, match=wanted):
        early(other, batch, Split(4, 2, 1))
    with pytest.raises(ValueError, match=wanted):
        late(other, torch.zeros(1, 4, 8, 8), batch, Split(4, 2, 1))


@pytest.mark.parametrize("name", ["pndm", "dpm++", "unipc", ""])
def test_unknown_names_are_refused(base: Base, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        scheduler_named(base, name)


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_every_sampler_takes_the_noise_schedule_of_the_base(base: Base, name: str) -> None:
    found = scheduler_named(base, name)
    assert type(found) is WITHOUT_MEMORY[name]
    torch.testing.assert_close(found.alphas_cumprod, base.scheduler.alphas_cumprod, rtol=1e-6, atol=0)
    assert found is not base.scheduler


def test_the_hash_tells_kind_and_settings_apart(base: Base) -> None:
    other = DDIMScheduler.from_config(base.scheduler.config, beta_end=0.013)
    shas = {scheduler_sha(scheduler_named(base, name)) for name in WITHOUT_MEMORY} | {scheduler_sha(other)}
    assert len(shas) == 5 and all(len(sha) == 64 for sha in shas)
    assert scheduler_sha(scheduler_named(base, "euler")) == scheduler_sha(scheduler_named(base, "euler"))


def test_noise_depends_on_seed_and_step_alone() -> None:
    def drawn(seed: int, step: int) -> tuple[float, ...]:
        return tuple(torch.randn(3, generator=step_noise([9, seed], step)[1]).tolist())

    assert drawn(1, 2) == drawn(1, 2)
    assert len({drawn(1, 2), drawn(2, 1), drawn(1, 3), drawn(2, 2), drawn(12, 2)}) == 5


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_most_steps_can_be_run(base: Base, name: str) -> None:
    scheduler = scheduler_named(base, name)
    most = most_steps(scheduler)
    assert most == (50 if name == "lcm" else 999)
    scheduler.set_timesteps(most)
    assert len(scheduler.timesteps) == most and int(scheduler.timesteps.max()) < 1000
