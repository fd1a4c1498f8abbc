"""Memory is a budget, not what a file says: small files that ask for much, many at a time, under a limit."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from coke.errors import DataError
from coke.images.decode import _Budget, decode

from .builders import encode, picture

linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
MEASURE = """
import resource, sys
from pathlib import Path
import torchvision.io
from coke.images import open_data
from coke.images.decode import decode
from coke.errors import CokeError
def status(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1]) * 1024
decode(Path(sys.argv[1]).read_bytes())
limit = int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + limit,) * 2)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmHWM")
for path in map(Path, sys.argv[3:]):
    try:
        if path.is_dir():
            print("read", len(open_data(path, resident_bytes=0).train), end=" ")
        else:
            print("read", decode(path.read_bytes()).numel(), end=" ")
    except CokeError as error:
        print("refused", error, end=" ")
    print(status("VmHWM") - before)
"""


def webp(side: int) -> bytes:
    """A header without pixels: the decoder takes what is missing for black."""
    content = b"\x2f" + struct.pack("<I", (side - 1) | ((side - 1) << 14) | (1 << 28)) + b"\x88\x88\x08"
    body = b"WEBPVP8L" + struct.pack("<I", 8) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def png(side: int) -> bytes:
    """A square of transparent pixels, a thousandth of them in bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, row = zlib.compressobj(9), bytes(4 * side + 1)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def measured(folder: Path, limit: int, *paths: Path) -> list[tuple[str, int]]:
    """What a process of its own, with so many bytes left to it (0: all), makes of images, and its peak after each."""
    (folder / "small").write_bytes(encode(picture(0)))
    words = [sys.executable, "-c", MEASURE, str(folder / "small"), str(limit), *map(str, paths)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pairs = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    return [(said, int(peak)) for said, peak in pairs]


@linux
def test_decoding_takes_what_is_reckoned(tmp_path):
    side = 2500
    turned = Image.Exif()
    turned[0x0112] = 6
    contents = {  # name: bytes a pixel, content
        "photograph": (12, encode(Image.new("RGB", (side, side)), "JPEG", exif=turned.tobytes())),
        "transparent.png": (12, png(side)),
        "tiff": (12, encode(Image.new("RGBA", (side, side)), "TIFF", compression="tiff_deflate")),
        "sixteen": (12, encode(Image.new("I;16", (side, side)), "TIFF", compression="tiff_lzw")),
        "webp": (18, webp(side)),
    }
    for name, (_, content) in contents.items():
        (tmp_path / name).write_bytes(content)
    found = measured(tmp_path, 0, *(tmp_path / name for name in contents))
    for (name, (most, content)), (said, peak) in zip(contents.items(), found, strict=True):
        assert said == f"read {3 * side**2}"
        assert peak < most * side**2 + (16 << 20), f"{name}, {len(content)} bytes"


@linux
def test_what_does_not_fit_is_refused_and_the_rest_waits_for_room(tmp_path):
    """With 1 GB left, of which a quarter may go into decoding: one image at a time, by however many threads."""
    folder, side, content = tmp_path / "images", 4000, png(4000)
    folder.mkdir()
    for name in range(6):
        (folder / f"{name}.png").write_bytes(content)
    (tmp_path / "x.webp").write_bytes(webp(8000))
    assert len(webp(8000)) == 28
    refused, read = measured(tmp_path, 1_000_000_000, tmp_path / "x.webp", folder)
    assert refused[0].startswith("refused 8,000 x 8,000 px: 1.2 GB must stay in memory, ")
    assert refused[1] < 20_000_000
    assert read[0] == "read 6"
    assert read[1] < 1.5 * 12 * side**2


def test_a_budget_is_kept_and_a_larger_one_goes_alone():
    budget, guard = _Budget(), threading.Lock()
    budget._total = 10
    now, seen = [], []

    def spend(n_bytes):
        with budget.spend(n_bytes):
            with guard:
                now.append(n_bytes)
                seen.append(list(now))
            threading.Event().wait(0.002)
            with guard:
                now.remove(n_bytes)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(spend, [3, 4, 5, 12, 1, 9, 2, 30] * 5))
    assert len(seen) == 40
    assert all(sum(together) <= 10 or len(together) == 1 for together in seen)
    assert max(len(together) for together in seen) > 1


def test_a_photograph_beyond_the_bound_is_read_where_its_own_scaling_leaves_enough():
    content = encode(Image.new("RGB", (800, 600)), "JPEG")
    with pytest.raises(DataError, match="800 x 600 px are 480,000 pixels, more than max_image_pixels"):
        decode(content, 100_000)
    assert decode(content, 100_000, at_least=100).shape == (3, 150, 200)
    whole = encode(
        Image.new("RGB", (800, 600)), "JPEG", progressive=True
    )  # the decoder keeps all of it anyway
    with pytest.raises(DataError, match="800 x 600 px are 480,000 pixels"):
        decode(whole, 100_000, at_least=100)


def test_no_format_is_opened_that_starts_a_program(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "EPS")
    with pytest.raises(DataError, match="not an image in a known format"):
        decode(stream.getvalue())


def test_a_decoder_out_of_memory_makes_one_image_unreadable(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(DataError, match="MemoryError"):
        decode(encode(picture(0)))
