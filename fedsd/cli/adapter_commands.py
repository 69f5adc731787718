"""The commands that do something with a run's adapters; `main` adds them to the others."""

import json
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(help="Run folder, as printed by `fedsd run`.")]


def neutralize(
    folder: Folder,
    prompts: Annotated[Path | None, typer.Option(help="File of generic prompts, one a line; default built-in.")] = None,
    split: Annotated[float, typer.Option(min=0.01, max=0.99, help="The server's share of the steps.")] = 0.3,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="All steps T.")] = 20,
    guidance: Annotated[float, typer.Option(min=1)] = 1.5,
    lambda_neu: Annotated[float, typer.Option(min=0, help="Weight of KL(x_mid, N(0, I)).")] = 0.1,
    lambda_mix: Annotated[float, typer.Option(min=0, help="Weight of the distance to the clusters' outputs.")] = 1.0,
    epochs: Annotated[int, typer.Option(min=1, help="How often latents are sampled anew.")] = 4,
    lr: Annotated[float, typer.Option(min=1e-9, help="AdamW on the adapter's factors.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Make the neutral adapter of a run's latest round a better common start for all clusters; `serve` takes it up."""
    from fedsd.base.denoise import Split
    from fedsd.cli.neutralize import neutralise_run, read_prompts, table
    from fedsd.cli.run_config import read_config
    from fedsd.hybrid.neutralize import Teaching

    shown = read_prompts(prompts, read_config(folder).data.template)
    cut = Split(steps, max(1, round(split * steps)), guidance)
    teaching = Teaching(shown, cut, lambda_neu, lambda_mix, epochs, lr=lr, seed=seed)
    result = neutralise_run(folder.absolute(), teaching, (lambda _: None) if as_json else print)
    print(json.dumps(result) if as_json else table(result))
