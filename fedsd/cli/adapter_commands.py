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
    guidance: Annotated[float | None, typer.Option(min=1, help="Default 7.5, and 1.5 for small bases as tiny.")] = None,
    lambda_neu: Annotated[float, typer.Option(min=0, help="Weight of KL(x_mid, N(0, I)).")] = 0.1,
    lambda_mix: Annotated[float, typer.Option(min=0, help="Weight of the distance to the clusters' outputs.")] = 1.0,
    epochs: Annotated[int, typer.Option(min=1, help="How often latents are sampled anew.")] = 4,
    lr: Annotated[float, typer.Option(min=1e-9, help="AdamW on the adapter's factors.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Make the neutral adapter of a run's latest round a better common start for all clusters; `serve` takes it up."""
    from fedsd.base import load
    from fedsd.base.denoise import Split
    from fedsd.cli.neutralized_run import neutralise_run, read_prompts, table
    from fedsd.cli.run_config import read_config
    from fedsd.cli.sampling import usual_settings
    from fedsd.hybrid.neutralize import Teaching

    config = read_config(folder)
    shown = read_prompts(prompts, config.data.template)
    base = load.load(config.base.name)
    scale = guidance or usual_settings(base, adapted=False).guidance  # early steps are nearly the base's own
    cut = Split(steps, max(1, round(split * steps)), scale)
    teaching = Teaching(shown, cut, lambda_neu, lambda_mix, epochs, lr=lr, seed=seed)
    result = neutralise_run(folder.absolute(), teaching, (lambda _: None) if as_json else print)
    print(json.dumps(result) if as_json else table(result))


def adapt(
    folder: Folder,
    data: Annotated[Path, typer.Option(help="Folder of the client's pictures.")],
    client: Annotated[str, typer.Option(help="Its name; its embedding is kept in its private folder.")] = "newcomer",
    adapter: Annotated[str, typer.Option(help="cluster-0, mix, …; default what its style is nearest to.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder of its model; default <run>/adapted/<client>.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Default train.steps.")] = 0,
    lr: Annotated[float, typer.Option(min=0, help="Default spire.embedding-lr.")] = 0.0,
    private_dir: Annotated[str, typer.Option(help="Where nodes keep their private folders.")] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Fit a new client's embedding, and nothing else, to the latest round of a SPIRE run."""
    from fedsd.cli.adapt import Newcomer, adapt_run, line_of
    from fedsd.client_app import private_root

    where = (out or folder / "adapted" / client).absolute()
    wish = Newcomer(client, data.expanduser().absolute(), where, adapter, steps, lr, seed)
    result = adapt_run(folder.absolute(), wish, private_root(private_dir))
    print(json.dumps(result) if as_json else line_of(result))


def export(
    folder: Folder,
    to: Annotated[str, typer.Option(help="diffusers, comfyui or a1111.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; default <run>/export/<to>.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="cluster-0, mix, neutral, …; default all.")] = None,
    trigger: Annotated[str, typer.Option(help="Words that call the style, for the header and the cover.")] = "",
    prompt: Annotated[str, typer.Option(help="Prompt of the cover; default a house.")] = "",
    client: Annotated[str, typer.Option(help="A node of this machine, whose private tokens to export too.")] = "",
    private_dir: Annotated[str, typer.Option(help="Where nodes keep their private folders.")] = "",
    latent: Annotated[str, typer.Option(help="Generic prompt of an x_mid for ComfyUI.")] = "",
    split: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the steps that x_mid has had.")] = 0.3,
    steps: Annotated[int, typer.Option(min=2, max=1000)] = 20,
    guidance: Annotated[float | None, typer.Option(min=1, help="Default 7.5, and 2.5 for small bases as tiny.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Write a run's adapters as other programs open them, with header, cover and model card."""
    from fedsd.base import load
    from fedsd.base.denoise import Split
    from fedsd.cli.comfy import Start
    from fedsd.cli.export_files import Wanted, export_run
    from fedsd.cli.run_config import read_config
    from fedsd.cli.sampling import usual_settings
    from fedsd.client_app import private_root

    config = read_config(folder)
    scale = guidance or usual_settings(load.load(config.base.name)).guidance
    start = Start(latent, seed, Split(steps, max(1, round(split * steps)), scale)) if latent else None
    shown = prompt or config.data.template.format(label="house")
    wanted = Wanted(to, tuple(adapter or ()), trigger, shown, steps, scale, seed, client, start)
    files = export_run(folder.absolute(), out or folder.absolute() / "export" / to, wanted, private_root(private_dir))
    print(json.dumps({"files": [str(file) for file in files]}) if as_json else "\n".join(map(str, files)))
