"""Writers of small picture files."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Writer = Callable[..., Path]


@pytest.fixture
def picture(tmp_path: Path) -> Writer:
    """Write a picture of one colour below tmp_path and return its path."""

    def write(name: str, colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (40, 40)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(path)
        return path

    return write


@pytest.fixture
def bomb(tmp_path: Path) -> Writer:
    """Write a valid PNG of a few kilobytes that decodes to side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    def write(side: int) -> Path:
        header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
        rows = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)
        path = tmp_path / f"bomb-{side}.png"
        parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        return path

    return write
