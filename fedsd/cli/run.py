"""`fedsd run`: one federated simulation with a SuperLink of its own, plain progress lines and a true exit code."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import tomli_w

from fedsd import config as configuration
from fedsd.cli.progress import Progress

APP = {
    "node.py": 'from fedsd.client_app import app\n\n__all__ = ["app"]\n',
    "tes.py": 'from fedsd.server_app import app\n\n__all__ = ["app"]\n',
}  # Flower accepts a re-export only where __all__ names it

PATIENCE = 20.0  # seconds for Flower to end after the run has: its simulation waits for clients that hang


@dataclass(frozen=True)
class Machine:
    """What a simulation may use: processor cores, GPUs, clients in all, and threads per client."""

    cpus: int
    gpus: int
    clients: int
    threads: int

    @property
    def federation(self) -> str:
        """Flower's simulation settings: one client per core, and on GPUs as many clients as share one."""
        share = 0.0 if self.gpus == 0 else min(1.0, self.gpus / min(self.clients, self.cpus))
        return (
            f"num-supernodes={self.clients} client-resources-num-cpus={self.threads} "
            f"client-resources-num-gpus={share:g}"
        )


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raise ValueError when something already listens on `port`."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ValueError(
                f"port {port} is in use ({error.strerror}); choose another with --port, or leave it out"
            ) from error


def write_app(folder: Path, flat: Mapping[str, configuration.Value], files: Mapping[str, str] = APP) -> None:
    """Write the Flower app of a run: `files`, with `app` in node.py and tes.py, and its settings as the app's defaults.

    Without `files` these are re-exports of the installed package.
    """
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    project = {"name": "fedsd-run", "version": "1.0.0", "license": "Apache-2.0", "dependencies": []}
    components = {"serverapp": "tes:app", "clientapp": "node:app"}
    flwr = {"app": {"publisher": "fedsd", "components": components, "config": dict(flat)}}
    app = {"project": project, "tool": {"uv": {"package": False}, "flwr": flwr}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(app))


def environment(home: Path, threads: int) -> dict[str, str]:
    """Return the environment of all processes of a run: own Flower home, offline, one thread per actor."""
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",  # Flower starts its programs by name
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONWARNINGS": "ignore",
    }


@contextmanager
def superlink(app: Path, env: Mapping[str, str], port: int, log: Path) -> Iterator[str]:
    """Run a SuperLink for simulations within the block; yields the name of Flower's connection to it."""
    home = Path(env["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "run"\n[superlink.run]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = [
        "flower-superlink",
        "--insecure",
        "--simulation",
        "--isolation",
        "subprocess",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=app, env=dict(env), stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_up(process, port, log)
        yield "run"
    finally:
        _end_tree(process)


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"flower-superlink ended with code {process.returncode}; see {log}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"flower-superlink did not answer on port {port} within 90 s; see {log}")


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End the SuperLink and everything that it started; Flower and Ray put their processes into groups of their own."""
    if process.poll() is not None:
        return
    superlink = psutil.Process(process.pid)
    tree = [superlink, *superlink.children(recursive=True)]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                end(one)
        _, tree = psutil.wait_procs(tree, 10)
    process.wait()


def _flwr(arguments: list[str], app: Path, env: Mapping[str, str]) -> dict[str, object]:
    done = subprocess.run(
        ["flwr", *arguments, "--format", "json"], cwd=app, env=dict(env), capture_output=True, text=True
    )
    try:
        answer: dict[str, object] = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise RuntimeError(f"flwr {arguments[0]} failed: {(done.stdout + done.stderr).strip()[-2000:]}") from None
    if not answer.get("success", True):
        raise RuntimeError(f"flwr {arguments[0]} failed: {answer.get('error-message', answer)}")
    return answer


def simulate(
    flat: Mapping[str, configuration.Value],
    machine: Machine,
    port: int | None,
    progress: Progress,
    files: Mapping[str, str] = APP,
) -> bool:
    """Run the simulation that `flat` describes with the app in `files`; returns whether Flower says that it completed.

    `run.folder` must be absolute. Raises ValueError when `port` is in use and RuntimeError when Flower does not start.
    """
    if port is not None:
        check_port(port)
    folder = Path(str(flat["run.folder"]))
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="fedsd-"))
    try:
        write_app(work / "app", flat, files)
        env = environment(work / "flower", machine.threads)
        with superlink(work / "app", env, port or free_port(), folder / "logs" / "superlink.log") as connection:
            started = _flwr(["run", ".", connection, "--federation-config", machine.federation], work / "app", env)
            run_id = str(started["run-id"])
            status = _follow(run_id, connection, work / "app", env, progress)
            _keep_log(run_id, connection, work / "app", env, folder / "logs" / "run.log")
        return status == "finished:completed"
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _follow(run_id: str, connection: str, app: Path, env: Mapping[str, str], progress: Progress) -> str:
    """Print events until the run has ended; returns Flower's status."""
    ended = math.inf
    while True:
        progress.poll()
        if progress.ended:
            ended = min(ended, time.monotonic())
            if time.monotonic() > ended + PATIENCE:
                return "finished:failed" if progress.reason else "finished:completed"
        if progress.ended or progress.quiet_for > 20:
            listed = _flwr(["list", "--run-id", run_id, connection], app, env)
            runs = listed["runs"]
            assert isinstance(runs, list)
            status = str(runs[0]["status"])
            if status.startswith("finished"):
                progress.poll()
                return status
            progress.rest()
        time.sleep(0.3)


def _keep_log(run_id: str, connection: str, app: Path, env: Mapping[str, str], file: Path) -> None:
    shown = subprocess.run(
        ["flwr", "log", run_id, connection, "--show"], cwd=app, env=dict(env), capture_output=True, text=True
    )
    file.write_text(shown.stdout + shown.stderr)


def read_preset(name: str) -> dict[str, configuration.Value]:
    """Return the settings of preset `name`: a TOML file, or one of conf/ by its bare name.

    Raises ValueError naming the presets there are.
    """
    here = Path(__file__).resolve().parents[1]
    shelves = [p for p in (here / "conf", here.parent / "conf") if p.is_dir()]
    found = [p for p in (Path(name), *(shelf / f"{name}.toml" for shelf in shelves)) if p.is_file()]
    if not found:
        known = sorted({p.stem for shelf in shelves for p in shelf.glob("*.toml")})
        raise ValueError(f"preset {name!r} is neither a TOML file nor one of {', '.join(known)}")
    try:
        return configuration.flatten(tomllib.loads(found[0].read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"preset {found[0]} is no TOML: {error}") from error


def parse_setting(text: str) -> tuple[str, configuration.Value]:
    """Return key and value of "key=value": TOML, or text where it is none or the setting takes text (lora.ranks=8)."""
    key, sign, value = (part.strip() for part in text.partition("="))
    if not sign:
        raise ValueError(f"setting {text!r} is not of the form key=value, e.g. run.rounds=5")
    try:
        parsed: configuration.Value = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key, value
    return key, value if configuration.keys().get(key) is str and not isinstance(parsed, str) else parsed
