"""What phones, scanners and the web give: HEIC, AVIF, frames, 16 bits; and what is said where it cannot be read."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, features

from coke.errors import DataError, UnreadableError
from coke.images import open_data
from coke.images.decode import decode

from .builders import encode, write_images

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
FRAMES = [np.full((24, 32, 3), value, np.uint8) for value in (30, 120, 220)]
SCENE = np.zeros((32, 48, 3), np.uint8)  # upright: red above, blue below on the left, black on the right
SCENE[:16] = (250, 0, 0)
SCENE[16:, :24] = (0, 0, 250)


def as_array(content: bytes) -> np.ndarray:
    return decode(content).permute(1, 2, 0).numpy()


def heic(image: Image.Image | np.ndarray, **options: object) -> bytes:
    """A HEIC file, written by pillow-heif without making it known to Pillow."""
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=-1, **options)
    return stream.getvalue()


def smooth() -> np.ndarray:
    rows, columns = np.mgrid[0:32, 0:48]
    return np.stack([rows * 4, columns * 4, rows * 2 + columns * 2], -1).astype(np.uint8)


@needs_avif
def test_avif_is_read():
    difference = as_array(encode(smooth(), "AVIF", quality=95)).astype(int) - smooth()
    assert np.abs(difference).mean() < 3


def test_heic_is_read():
    difference = as_array(heic(smooth())).astype(int) - smooth()
    assert np.abs(difference).mean() < 3


def test_transparent_heic_is_composited_over_white():
    rgba = np.dstack([smooth(), np.full((32, 48), 255, np.uint8)])
    rgba[:, 24:, 3] = 0
    found = as_array(heic(rgba))
    assert found[:, 26:].min() > 250
    assert np.abs(found[:, :22].astype(int) - smooth()[:, :22]).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", pytest.param("AVIF", marks=needs_avif), "HEIC"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_photographs_are_upright(kind, orientation, turns):
    """A camera that was held sideways states how to turn what it stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(np.rot90(SCENE, turns))
    content = (
        heic(stored, exif=exif.tobytes()) if kind == "HEIC" else encode(stored, kind, exif=exif, quality=95)
    )
    found = as_array(content)
    assert found.shape == SCENE.shape
    assert np.abs(found.astype(int) - SCENE).mean() < 8


@pytest.mark.parametrize(
    "kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO", pytest.param("AVIF", marks=needs_avif)]
)
def test_of_several_frames_the_first_is_read(kind):
    first, *others = map(Image.fromarray, FRAMES)
    content = encode(first, kind, save_all=True, append_images=others)
    with Image.open(io.BytesIO(content)) as stored:
        assert stored.n_frames == 3
    assert np.abs(as_array(content).astype(int) - FRAMES[0]).max() <= 3


def test_transparent_gifs_are_composited_over_white():
    stored = Image.new("P", (2, 1))
    stored.putpalette([10, 20, 30, 40, 50, 60])
    stored.putdata([0, 1])
    assert as_array(encode(stored, "GIF", transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_colours_of_sixteen_bits_keep_the_upper_eight():
    values = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)  # Pillow writes no such file

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    assert np.array_equal(as_array(content + chunk(b"IEND", b"")), values >> 8)


@needs_avif
def test_a_folder_of_them_is_taken_for_images(tmp_path):
    write_images(tmp_path, ["1.png"])
    (tmp_path / "2.avif").write_bytes(encode(smooth(), "AVIF"))
    (tmp_path / "3.GIF").write_bytes(encode(smooth(), "GIF"))
    (tmp_path / "4.HEIC").write_bytes(heic(smooth()))
    (tmp_path / "5.heif").write_bytes(heic(smooth()))
    splits = open_data(tmp_path)
    assert splits.train.keys == ["1.png", "2.avif", "3.GIF", "4.HEIC", "5.heif"]
    assert "cannot be read" not in splits.note


def test_heic_without_its_package_is_named_with_what_to_install(tmp_path, monkeypatch):
    content = heic(smooth())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    with pytest.raises(DataError, match=r"^HEIC needs pillow-heif \(pip install 'coke-ssl\[heic\]'\)$"):
        decode(content)
    write_images(tmp_path, [f"{number:02}.png" for number in range(10)])
    (tmp_path / "a.heic").write_bytes(content)
    told = r"image{} cannot be read here: install pillow-heif \(pip install 'coke-ssl\[heic\]'\)"
    splits = open_data(tmp_path)
    assert splits.unreadable == [("a.heic", "HEIC needs pillow-heif (pip install 'coke-ssl[heic]')")]
    assert splits.note.endswith("; 1 HEIC " + told.format("").replace("\\", ""))
    (tmp_path / "b.heic").write_bytes(content)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(
        UnreadableError, match=rf"3 of 13 .*c\.png: not an image .*\. 2 HEIC {told.format('s')}\. Repair"
    ):
        open_data(tmp_path)


@needs_avif
def test_avif_without_its_decoder_is_named_with_what_to_install(monkeypatch):
    content = encode(smooth(), "AVIF")
    monkeypatch.setattr(features, "check", lambda name: False)
    monkeypatch.delitem(Image.OPEN, "AVIF")
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "AVIF"])
    with pytest.raises(DataError, match=r"^AVIF needs Pillow 11\.3 or newer"):
        decode(content)


def test_damaged_ones_are_no_image():
    content = heic(smooth())
    with pytest.raises(DataError):
        decode(content[: len(content) // 2])
    with pytest.raises(DataError, match="not an image in a known format"):
        decode(b"\0\0\0\x18ftypcrx " + bytes(100))  # a raw photograph


def test_other_formats_need_no_pillow_heif():
    """It is loaded by the first file that asks for it, not by coke."""
    code = (
        "import io, sys; from PIL import Image; from coke.images.decode import decode; stream = io.BytesIO()\n"
        "Image.new('RGB', (2, 2)).save(stream, 'PNG'); decode(stream.getvalue()); print('pillow_heif' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
