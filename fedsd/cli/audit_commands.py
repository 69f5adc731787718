"""`fedsd audit`: what the servers of a run could have learnt; `main` adds it to the other commands."""

import json
from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(help="Run folder, made with -s run.record=true.")]

app = typer.Typer(no_args_is_help=True, help="What the servers of a run could have learnt.")


@app.callback()
def group() -> None:
    """What the servers of a run could have learnt."""


@app.command()
def tokens(
    folder: Folder,
    bank: Annotated[Path | None, typer.Option(help="Public pictures, a folder for each style.")] = None,
    shadows: Annotated[int, typer.Option(min=1, help="Adapters that the attacker trains for each style.")] = 2,
    keys: Annotated[int, typer.Option(min=1, help="Random keys that accuracies are means of.")] = 20,
    as_json: Json = False,
) -> None:
    """Guess every device's style from the bytes that the servers received, by the attacks A1 to A6, beside chance."""
    from fedsd.cli.audit import audit, table

    result = audit(folder.absolute(), bank=bank, shadows=shadows, keys=keys, say=(lambda _: None) if as_json else print)
    print(json.dumps(result) if as_json else table(result))
