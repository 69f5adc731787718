"""The command line. Exit codes: 0 ok, 1 failed run, 2 bad input, 3 too many client failures."""

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedsd.cli import adapter_commands, audit_commands
from fedsd.config import Value

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Personalise Stable Diffusion across edge devices by federated learning.",
)  # fmt: skip
data_app = typer.Typer(no_args_is_help=True, help="Folders of pictures.")
app.add_typer(data_app, name="data")
app.command()(adapter_commands.neutralize)
app.command()(adapter_commands.export)
app.command()(adapter_commands.adapt)
app.add_typer(audit_commands.app, name="audit")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Folder = Annotated[Path, typer.Argument(help="Run folder, as printed by `fedsd run`.")]


def run() -> None:
    """Start the command line; bad input ends in one line and exit code 2, a run that cannot start in 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run ends the processes it started
    try:
        app()
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _settings(preset: str | None, sets: list[str], more: dict[str, Value | None]) -> dict[str, Value]:
    from fedsd import config as configuration
    from fedsd.cli.run import parse_setting, read_preset

    flat = configuration.defaults()
    if preset:
        flat |= read_preset(preset)
    flat |= dict(parse_setting(text) for text in sets)
    flat |= {key: value for key, value in more.items() if value is not None}
    return flat


def _new_folder() -> Path:
    return Path("runs").absolute() / datetime.now(UTC).strftime("%Y-%m-%d_%H%M%S")


@app.command("run")
def run_command(
    preset: Annotated[str | None, typer.Option(help="A TOML file, or the name of one of conf/.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of pictures (data.root).")] = None,
    clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 8,
    rounds: Annotated[int | None, typer.Option(help="Federated rounds (run.rounds).")] = None,
    folder: Annotated[Path | None, typer.Option(help="Run folder; default runs/<time>.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="key=value of the run config; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last complete round in --folder.")] = False,
    port: Annotated[int | None, typer.Option(help="Port of the SuperLink; default a free one.")] = None,
    max_failures: Annotated[float, typer.Option(help="Share of client messages that may fail.")] = 0.25,
    dry_run: Annotated[bool, typer.Option(help="Say what would run, and stop.")] = False,
    report: Annotated[bool, typer.Option(help="Draw sample grids, plots and report.html at the end.")] = True,
    as_json: Json = False,
) -> None:
    """Run Algorithm 1 as a simulation on this machine."""
    from fedsd.cli import launch

    where = (folder or _new_folder()).expanduser().absolute()
    flat = _settings(preset, sets or [], {
        "run.rounds": rounds, "data.root": str(data.expanduser().absolute()) if data else None,
        "run.folder": str(where), "run.resume": resume, "run.min-nodes": clients,
    })  # fmt: skip
    show: Callable[[str], None] = (lambda _: None) if as_json else (lambda line: print(line, flush=True))
    plan = launch.plan(flat, clients, show)
    if dry_run:
        raise typer.Exit(0)
    outcome = launch.go(flat, plan, port=port, show=show, report=report)
    if as_json:
        print(json.dumps(outcome.as_dict(max_failures)))
    raise typer.Exit(outcome.exit_code(max_failures))


@app.command()
def watch(folder: Folder, once: Annotated[bool, typer.Option(help="Print the table once.")] = False) -> None:
    """Show a run as a live table; works from another shell."""
    from fedsd.cli.watch import watch as show

    raise typer.Exit(1 if show(folder, once=once) == "failed" else 0)


@app.command()
def report(folder: Folder, as_json: Json = False) -> None:
    """Draw the sample grids, plots and report.html of a run again."""
    from fedsd.cli.launch import draw_report

    page = draw_report(folder.absolute(), show=lambda _: None)
    print(json.dumps({"report": str(page)}) if as_json else page)


@app.command()
def evaluate(
    folder: Folder,
    pictures: Annotated[int, typer.Option(min=4, help="Generated pictures per style and method.")] = 100,
    against: Annotated[
        list[str] | None, typer.Option(help="NAME=RUN: another run to compare with; repeatable.")
    ] = None,
    methods: Annotated[str, typer.Option(help="Which methods, separated by commas; default all.")] = "",
    where: Annotated[str, typer.Option(help="Rows of data.index that are the real pictures, e.g. split=heldout.")] = "",
    extractor: Annotated[str, typer.Option(help='"auto", "inception", "embedded", or a TorchScript file.')] = "auto",
    as_json: Json = False,
) -> None:
    """Score every adapter of a run by KID, FID and CLIP score, per style."""
    from fedsd.cli.evaluate import evaluate as score
    from fedsd.cli.evaluate import table

    pairs = dict(_pair(text) for text in against or [])
    chosen = tuple(part.strip() for part in methods.split(",") if part.strip())
    result = score(
        folder.absolute(), pictures=pictures, against=pairs, methods=chosen, where=where, extractor=extractor
    )
    print(json.dumps(result) if as_json else table(result))


def _pair(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not sign:
        raise ValueError(f"--against {text!r} is not of the form NAME=RUN, e.g. fedavg=runs/other")
    return name, Path(path).expanduser().absolute()


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    lora: Annotated[Path | None, typer.Option(help="Folder of an adapter: runs/…/loras/cluster-0.")] = None,
    base: Annotated[str, typer.Option(help="The base, as base.name.")] = "tiny",
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("picture.png"),
    count: Annotated[int, typer.Option(min=1, help="How many, side by side.")] = 1,
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 25,
    guidance: Annotated[
        float | None, typer.Option(min=1, help="Default 7.5; for small bases as tiny 1.5, and 2.5 with an adapter.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    local_scale: Annotated[float, typer.Option(min=0, help="Scale of the adapter.")] = 1.0,
    server: Annotated[str, typer.Option(help="URL of an Inference Edge Server for the first steps.")] = "",
    split: Annotated[float, typer.Option(help="The server's share of the steps.")] = 0.3,
    generic: Annotated[str, typer.Option(help="What the server gets to read; default the prompt.")] = "",
    scheduler: Annotated[
        str, typer.Option(help="ddim, ddpm, euler or lcm; default ddim, and ddpm for an adapter on a small base.")
    ] = "",
    mix_loras: Annotated[float, typer.Option(min=0, max=2, help="Scale of the server's neutral adapter.")] = 1.0,
    credential: Annotated[str, typer.Option(envvar="FEDSD_CREDENTIAL", help="For the server.")] = "",
    ca: Annotated[Path | None, typer.Option(help="Certificate to trust the server by.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server.")] = 30.0,
    private_dir: Annotated[str, typer.Option(help="Nodes' private folders, whose words are not sent.")] = "",
    as_json: Json = False,
) -> None:
    """Draw a picture with the base and an adapter; with --server, the first steps are made there."""
    from fedsd.base import load
    from fedsd.cli import picture as drawing
    from fedsd.cli.sampling import usual_settings

    usual = usual_settings(load.load(base), adapted=lora is not None)
    scale, sampler = guidance or usual.guidance, scheduler or usual.sampler
    wanted = drawing.Picture(prompt, lora, base, count, steps, scale, seed, local_scale, sampler)
    if not server:
        made = drawing.draw_pictures(wanted, out)
        print(json.dumps({"picture": str(made)}) if as_json else made)
        return
    from fedsd.client_app import private_root
    from fedsd.hybrid.client import Remote
    from fedsd.privacy.words import registered_below

    remote = Remote(server, credential, ca, timeout, registered_below(private_root(private_dir)))
    shared = drawing.Shared(remote, split, generic or prompt, mix_loras)
    made, drawn = drawing.draw_with_server(wanted, shared, out)
    if as_json:
        print(json.dumps({"picture": str(made)} | drawing.account(drawn)))
    else:
        print(made, *drawing.account_lines(drawn), sep="\n")


@app.command()
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8600,
    credentials: Annotated[Path | None, typer.Option(help="File with one credential a line.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate, for TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM key of the certificate.")] = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Most steps T that may be asked for.")] = 100,
    max_size: Annotated[int | None, typer.Option(help="Largest picture's side; default the base's own.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that an answer may take.")] = 60.0,
    queue: Annotated[int, typer.Option(min=0, help="Runs that may wait; more are told 503.")] = 16,
    engine: Annotated[str, typer.Option(help="local: one process; ray: replicas and batches, on Ray Serve.")] = "local",
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the base, with --engine ray.")] = 1,
    as_json: Json = False,
) -> None:
    """Make the early denoising steps for devices, with the neutral adapter of a run's latest round."""
    from fedsd.cli.serve import Machinery
    from fedsd.cli.serve import serve as serve_run
    from fedsd.hybrid.admission import Limits
    from fedsd.hybrid.local import Address

    def listening(url: str) -> None:
        print(json.dumps({"url": url, "pid": os.getpid()}) if as_json else f"serving {folder} at {url}", flush=True)

    limits = Limits(max_steps=max_steps, max_size=max_size, timeout=timeout, queue=queue)
    address, machinery = Address(host, port, certificate, key), Machinery(engine, replicas)
    serve_run(folder.absolute(), address, credentials, limits, machinery, listening)


@app.command()
def ui(
    folder: Folder,
    server: Annotated[str, typer.Option(help="URL of an Inference Edge Server for the first steps.")] = "",
    credential: Annotated[str, typer.Option(envvar="FEDSD_CREDENTIAL", help="For the server.")] = "",
    ca: Annotated[Path | None, typer.Option(help="Certificate to trust the server by.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the server.")] = 30.0,
    private_dir: Annotated[str, typer.Option(help="Nodes' private folders, whose words are not sent.")] = "",
    base: Annotated[str, typer.Option(help="The base, as base.name; default the run's.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    as_json: Json = False,
) -> None:
    """Open a page on this machine that draws with a run's adapters, with or without a server."""
    from fedsd.cli.ui.command import serve_page
    from fedsd.client_app import private_root
    from fedsd.hybrid.client import Remote

    def listening(url: str) -> None:
        print(json.dumps({"url": url, "pid": os.getpid()}) if as_json else f"open {url} in a browser", flush=True)

    remote = Remote(server, credential, ca, timeout) if server else None
    serve_page(folder.absolute(), remote, private_root(private_dir), base, port, listening)


@app.command()
def words(
    client: Annotated[str, typer.Argument(help="The node's name.")],
    add: Annotated[list[str] | None, typer.Argument(help="Words that must not leave it.")] = None,
    private_dir: Annotated[str, typer.Option(help="Where nodes keep their private folders.")] = "",
    as_json: Json = False,
) -> None:
    """Register words that a node never sends to a server, and list them."""
    from fedsd.client_app import private_root
    from fedsd.privacy.words import register, registered
    from fedsd.store import PrivateFolder

    private = PrivateFolder(private_root(private_dir), client)
    known = register(private, add) if add else registered(private)
    print(json.dumps({"words": known}) if as_json else "\n".join(known))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: packages, weights, ports, disk, GPUs; say how to mend what is wrong."""
    from fedsd.cli.doctor import examine, table

    checks = examine()
    print(json.dumps([vars(check) for check in checks]) if as_json else table(checks))
    raise typer.Exit(0 if all(check.ok for check in checks) else 2)


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="Folder of pictures.")],
    sets: Annotated[list[str] | None, typer.Option("--set", "-s", help="data.* settings of the run config.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a folder of pictures holds, what is wrong with it and how to mend it."""
    from fedsd import config as configuration
    from fedsd.cli.folders import show_report
    from fedsd.data.check import check
    from fedsd.data.shares import layout_of

    flat = _settings(None, sets or [], {})
    found = check(folder, layout_of(configuration.from_run_config(flat).data))
    print(json.dumps(found.as_dict()) if as_json else show_report(found))
    raise typer.Exit(0 if found.ok else 2)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run()
