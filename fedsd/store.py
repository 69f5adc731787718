"""What a run leaves on disk, and what a node keeps to itself.

    <run>/ run.toml env.json events.jsonl metrics.csv report.html README.md
           ckpt/rNN/ state.json mix.safetensors neutral.safetensors fedavg.safetensors cluster-<id>.safetensors
                     clients/<client>.safetensors arrays/<name>.safetensors
           loras/<name>/pytorch_lora_weights.safetensors   embeddings/ grids/ plots/ logs/
           neutral/rNN.safetensors, after `fedsd neutralize`   export/, after `fedsd export`
    <private-dir>/<client-id>/<name>.safetensors

A file or a round is there whole or not at all: it is written under another name, flushed to the disk, and then renamed.
"""

import csv
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedsd.export import for_diffusers
from fedsd.lowrank import Array, Factor, LoRA

FOLDERS = ("ckpt", "loras", "embeddings", "grids", "plots", "logs")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ARRAYS = "arrays"  # folder of a round
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_ROUND = re.compile(r"r(\d{2,})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
Arrays = Mapping[str, Array]


class RunFolder:
    """One run's folder; `path` is absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Make the folder of a new run; ValueError when it already holds one."""
        folder = cls(path)
        if folder.rounds() or (folder.path / "events.jsonl").exists():
            raise ValueError(f"{folder.path} already holds a run; resume it, or name another folder (run.folder)")
        for name in FOLDERS:
            (folder.path / name).mkdir(parents=True, exist_ok=True)
        return folder

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The folder of a run begun before, without what a kill left half done; ValueError when there is none."""
        folder = cls(path)
        if not (folder.path / "ckpt").is_dir():
            raise ValueError(f"{folder.path} holds no run; check run.folder")
        events = folder.path / "events.jsonl"
        if events.exists() and not (written := events.read_bytes()).endswith(b"\n"):
            os.truncate(events, written.rfind(b"\n") + 1)
        folder._drop_unfinished_metrics()
        return folder

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add a line to events.jsonl, with the time."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}, ensure_ascii=False)
        with (self.path / "events.jsonl").open("ab") as file:
            file.write(line.encode() + b"\n")

    def events(self) -> list[dict[str, Any]]:
        """All events so far; one that is being written is left out."""
        file = self.path / "events.jsonl"
        lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a row, which has a round, to metrics.csv; the first sets the columns, ValueError names others."""
        file = self.path / "metrics.csv"
        if file.exists():
            with file.open(newline="", encoding="utf-8") as readable:
                columns = next(csv.reader(readable))
        else:
            columns = list(row)
        if set(columns) != set(row) or "round" not in row:
            raise ValueError(f"{file} has columns {', '.join(columns)}; the new row has {', '.join(row)}")
        with file.open("a", newline="", encoding="utf-8") as appendable:
            writer = csv.DictWriter(appendable, columns, lineterminator="\n")
            if appendable.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def _drop_unfinished_metrics(self) -> None:
        """Drop metrics.csv's rows of rounds that are not complete: the resumed run writes them again."""
        file, latest = self.path / "metrics.csv", self.latest_round() or 0
        if not file.exists():
            return
        with file.open(newline="", encoding="utf-8") as readable:
            reader = csv.DictReader(readable)
            rows = [row for row in reader if None not in row.values() and int(row["round"]) <= latest]
            columns = reader.fieldnames or ()
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write(file.name, text.getvalue())

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file below the folder, whole or not at all."""
        file = self.path / name
        write_file(file, content.encode() if isinstance(content, str) else content)
        return file

    def save_round(
        self, state: Mapping[str, Any], adapters: Mapping[str, LoRA], arrays: Mapping[str, Arrays] | None = None
    ) -> Path:
        """Keep a round as ckpt/rNN: state.json and one file for each adapter, "/" in names making folders.

        arrays: what is shared besides factors, by the same names.

        On a full disk nothing of it stays, the rounds before are untouched, and OSError says so.
        """
        server_round = int(state["round"])
        final = self._round(server_round)
        if final.exists():
            raise ValueError(f"round {server_round} is already in {final.parent}; resume from the latest round")
        growing = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(growing, ignore_errors=True)  # left by a run that was killed while writing
        try:
            for name, lora in adapters.items():
                save_lora(growing / f"{name}.safetensors", lora)
            for name, found in (arrays or {}).items():
                write_file(growing / ARRAYS / f"{name}.safetensors", _packed(found, {}))
            write_file(growing / "state.json", json.dumps(state, indent=1).encode())
            growing.rename(final)
            _flush_folder(final.parent)
        except OSError as error:
            shutil.rmtree(growing, ignore_errors=True)
            if error.errno not in DISK_FULL:
                raise
            latest = self.latest_round()
            intact = "no round was complete before it" if latest is None else f"round {latest} is intact"
            raise OSError(
                error.errno,
                f"no space left for round {server_round} in {final.parent}; {intact}: free some space and resume",
            ) from error
        return final

    def load_round(self, server_round: int) -> tuple[dict[str, Any], dict[str, LoRA]]:
        """State and adapters that `save_round` was given; ValueError when the round is not there or unreadable."""
        folder = self._round(server_round)
        try:
            state: dict[str, Any] = json.loads((folder / "state.json").read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no complete round: {error}") from error
        files = sorted(file for file in folder.rglob("*.safetensors") if ARRAYS not in file.relative_to(folder).parts)
        return state, {file.relative_to(folder).with_suffix("").as_posix(): load_lora(file) for file in files}

    def load_arrays(self, server_round: int) -> dict[str, Arrays]:
        """Arrays that `save_round` was given, by name; ValueError when a file cannot be read."""
        folder = self._round(server_round) / ARRAYS
        files = sorted(folder.rglob("*.safetensors"))
        return {file.relative_to(folder).with_suffix("").as_posix(): _unpacked(file)[0] for file in files}

    def load_adapter(self, server_round: int, name: str) -> dict[str, Factor]:
        """One adapter that `save_round` was given; ValueError when it cannot be read."""
        return load_lora(self._round(server_round) / f"{name}.safetensors")

    def rounds(self) -> list[int]:
        """Numbers of the complete rounds, ascending."""
        found = [_ROUND.fullmatch(folder.parent.name) for folder in (self.path / "ckpt").glob("*/state.json")]
        return sorted(int(match[1]) for match in found if match)

    def latest_round(self) -> int | None:
        """Number of the last complete round."""
        return self.rounds()[-1] if self.rounds() else None

    def export(self, name: str, lora: LoRA) -> Path:
        """Keep an adapter as loras/<name>, for stock diffusers; see `export_diffusers`."""
        return export_diffusers(lora, self.path / "loras" / _checked(name))

    def _round(self, server_round: int) -> Path:
        return self.path / "ckpt" / f"r{server_round:02d}"


class PrivateFolder:
    """What a node keeps between rounds and runs and never sends: named arrays in <private-dir>/<client-id>/."""

    def __init__(self, private_dir: Path, client: str) -> None:
        self.path = private_dir.expanduser().resolve() / _checked(client)

    def save(self, name: str, arrays: Mapping[str, Array], about: Mapping[str, Any] | None = None) -> None:
        """Keep arrays under a name, with JSON values about them (round, run, base); readable by this user only."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(self.path / f"{_checked(name)}.safetensors", _packed(arrays, about or {}), mode=0o600)

    def load(self, name: str) -> tuple[dict[str, Array], dict[str, Any]] | None:
        """The arrays and what was said about them; None when there are none by that name."""
        file = self.path / f"{_checked(name)}.safetensors"
        return _unpacked(file) if file.exists() else None


def save_lora(file: Path, lora: LoRA, about: Mapping[str, Any] | None = None) -> None:
    """Write an adapter as safetensors with keys <layer>.B and <layer>.A; about: JSON values for the header."""
    halves = {f"{layer}.{side}": array for layer in sorted(lora) for side, array in _halves(lora[layer]).items()}
    write_file(file, _packed(halves, about or {}))


def load_lora(file: Path) -> dict[str, Factor]:
    """Read what `save_lora` wrote; ValueError when the file is damaged or holds something else."""
    arrays, _ = _unpacked(file)
    layers = sorted({key.rpartition(".")[0] for key in arrays})
    try:
        return {layer: Factor(arrays.pop(f"{layer}.B"), arrays.pop(f"{layer}.A")) for layer in layers}
    except KeyError as error:
        raise ValueError(f"{file} is no adapter: {error} is missing") from error


def export_diffusers(lora: LoRA, folder: Path, biases: Mapping[str, Array] | None = None) -> Path:
    """Write an adapter for stock diffusers (`export.for_diffusers`); returns the file."""
    write_file(folder / DIFFUSERS_FILE, for_diffusers(lora, biases or {}))
    return folder / DIFFUSERS_FILE


def write_file(file: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file, whole or not at all, and flush it to the disk; makes its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    growing = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as writable:
            writable.write(content)
            writable.flush()
            os.fsync(descriptor)
        growing.replace(file)
    except OSError:
        growing.unlink(missing_ok=True)
        raise
    _flush_folder(file.parent)


def _halves(factor: Factor) -> dict[str, Array]:
    return {"B": factor.B, "A": factor.A}


def _packed(arrays: Mapping[str, Array], about: Mapping[str, Any]) -> bytes:
    """As safetensors, with one metadata key: the order of several is not fixed, and equal content is equal bytes."""
    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    packed: bytes = save(contiguous, {"fedsd": json.dumps(about, sort_keys=True)})
    return packed


def _unpacked(file: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    try:
        with safe_open(file, framework="np") as readable:
            arrays = {key: readable.get_tensor(key) for key in readable.keys()}  # noqa: SIM118  not a dict
            return arrays, json.loads((readable.metadata() or {}).get("fedsd", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a file; use letters, digits, '_', '-' and '.'")
    return name


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
