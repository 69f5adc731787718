"""How to use a run's adapters, as lines of Python that work from the run folder."""

from pathlib import PurePath

from fedsd.cli.sampling import LARGE, SMALL_ADAPTED


def diffusers_lines(base: str, lora: str, prompt: str) -> str:
    """Return the lines that draw `prompt` with `base` and the adapter loras/<lora>, by stock diffusers."""
    if base == "tiny":
        load = (
            "from diffusers import DDPMScheduler\n\nfrom fedsd.base.load import load\n\n"
            'pipe = load("tiny").pipeline()\n'
            "pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)"
        )
    else:
        one_file = PurePath(base).suffix in (".safetensors", ".ckpt")
        call = "from_single_file" if one_file else "from_pretrained"
        load = f"from diffusers import StableDiffusionPipeline\n\npipe = StableDiffusionPipeline.{call}({base!r})"
    usual = SMALL_ADAPTED if base == "tiny" else LARGE
    draw = f"pipe({prompt!r}, guidance_scale={usual.guidance}).images[0].save('picture.png')"
    return f"{load}\npipe.load_lora_weights({'loras/' + lora!r})\n{draw}"
