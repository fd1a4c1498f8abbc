"""Every format and mode against arrays that the test encoded itself."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from coke.errors import DataError
from coke.images.decode import decode

from .builders import encode, picture

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def as_array(content: bytes | Image.Image) -> np.ndarray:
    return decode(content).permute(1, 2, 0).numpy()


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kind=st.sampled_from(["PNG", "BMP", "TIFF", "WEBP"]),
)
def test_lossless_formats_give_the_pixels_that_were_stored(seed, height, width, kind):
    pixels = picture(seed, height, width)
    tensor = decode(encode(pixels, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert tensor.dtype == torch.uint8
    assert tensor.permute(1, 2, 0).is_contiguous()  # channels last in memory, as crops are cut fastest
    assert np.array_equal(tensor.numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_close_on_a_smooth_image(kind):
    rows, columns = np.mgrid[0:32, 0:48]
    smooth = np.stack([rows * 4, columns * 4, rows * 2 + columns * 2], -1).astype(np.uint8)
    difference = as_array(encode(smooth, kind, quality=95)).astype(int) - smooth
    assert np.abs(difference).mean() < 3


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_photograph_has_pillows_pixels(subsampling, progressive):
    content = encode(picture(3, 37, 51), "JPEG", quality=85, subsampling=subsampling, progressive=progressive)
    assert decode(content).permute(1, 2, 0).is_contiguous()
    assert np.array_equal(as_array(content), np.asarray(Image.open(io.BytesIO(content))))


def test_a_photograph_is_decoded_by_torchvision(monkeypatch):
    content = encode(picture(3, 37, 51), "JPEG")
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda *_: torch.zeros(3, 37, 51, dtype=torch.uint8))
    assert not decode(content).any()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("refused"), AttributeError("built without decoders"), DeprecationWarning("under -W error")],
)
def test_what_torchvision_does_not_decode_pillow_does(monkeypatch, error):
    content = encode(picture(3, 37, 51), "JPEG")
    expected = as_array(content)

    def refuse(*_):
        raise error

    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    assert np.array_equal(as_array(content), expected)


def test_without_torchvision_s_decoders_pillow_decodes(monkeypatch):
    content = encode(picture(3, 37, 51), "JPEG")
    expected = as_array(content)
    monkeypatch.delattr("torchvision.io.decode_jpeg")
    assert np.array_equal(as_array(content), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_grey_is_repeated(kind):
    expected = repeated(GREY)
    assert np.abs(as_array(encode(GREY, kind, quality=100)).astype(int) - expected).max() <= 2 * (
        kind == "JPEG"
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_bilevel_is_black_and_white(kind):
    bits = GREY % 3 == 0
    assert np.array_equal(as_array(encode(Image.fromarray(bits), kind)), repeated(bits * np.uint8(255)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind):
    values = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    content = encode(Image.fromarray(values), kind)
    assert Image.open(io.BytesIO(content)).mode.startswith("I;16")
    assert np.array_equal(as_array(content), repeated(np.rint(values / 257).astype(np.uint8)))


def test_big_endian_sixteen_bit_grey_is_scaled_too():
    values = np.array([[0, 257 * 7, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (3, 1), values.tobytes())
    assert as_array(image)[0, :, 0].tolist() == [0, 7, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_composited_over_white(kind):
    rgba = np.dstack([picture(1), GREY])
    alpha = GREY[:, :, None] / 255
    expected = rgba[:, :, :3] * alpha + 255 * (1 - alpha)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.abs(as_array(encode(Image.fromarray(rgba), kind, **options)) - expected).max() <= 1


def test_grey_with_alpha_is_composited_over_white():
    alpha = GREY.T.copy().reshape(6, 8)
    stored = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    expected = repeated(GREY * (alpha / 255) + 255 * (1 - alpha / 255))
    assert np.abs(as_array(encode(stored)) - expected).max() <= 1


def palette_image() -> tuple[Image.Image, np.ndarray]:
    colours = picture(3, 1, 16)[0]
    indices = np.arange(48, dtype=np.uint8).reshape(6, 8) % 16
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.ravel().tolist())
    return image, colours[indices]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_palettes_are_looked_up(kind):
    image, expected = palette_image()
    assert np.array_equal(as_array(encode(image, kind)), expected)


def test_transparent_palette_entries_become_white():
    image, expected = palette_image()
    expected = expected.copy()
    expected[np.asarray(image) == 5] = 255
    assert np.array_equal(as_array(encode(image, transparency=5)), expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_one_transparent_value_becomes_white(mode):
    if mode == "L":
        stored, key, expected, hidden = Image.fromarray(GREY), 20, repeated(GREY), GREY == 20
    elif mode == "1":
        bits = GREY % 2 == 0
        stored, key, expected, hidden = Image.fromarray(bits), 0, repeated(bits * np.uint8(255)), ~bits
    elif mode == "I;16":
        wide = GREY.astype(np.uint16) * 257
        stored, key, expected, hidden = Image.fromarray(wide), 20 * 257, repeated(GREY), GREY == 20
    else:
        pixels = picture(2)
        key = tuple(int(v) for v in pixels[2, 3])
        stored, expected, hidden = Image.fromarray(pixels), pixels, (pixels == key).all(2)
    expected = expected.copy()
    expected[hidden] = 255
    assert hidden.any()
    assert np.array_equal(as_array(encode(stored, transparency=key)), expected)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_is_converted(kind):
    flat = np.zeros((16, 16, 4), dtype=np.uint8)
    flat[:] = (0, 255, 255, 0)  # no cyan, full magenta and yellow: red
    stored = Image.frombytes("CMYK", (16, 16), flat.tobytes())
    difference = as_array(encode(stored, kind)).astype(int) - (255, 0, 0)
    assert np.abs(difference).max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = picture(5, 4, 7)
    undo = {  # how a camera held in that way stores the upright scene
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = np.ascontiguousarray(undo[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(as_array(encode(stored, exif=exif)), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_orientation_is_applied_once(orientation):
    """Pillow turns a TIFF itself when it is loaded."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(5, 4, 7), "TIFF", exif=exif)
    turned = ImageOps.exif_transpose(Image.fromarray(as_array(encode(picture(5, 4, 7), exif=exif))))
    assert np.array_equal(as_array(content), np.asarray(turned))


def test_larger_images_than_allowed_are_refused_before_they_are_decoded():
    """A bomb: 40,000 x 40,000 px, 4.8 GB as RGB, in a file of less than 2 MB that is only begun."""
    header = encode(Image.new("1", (40_000, 40_000)))[:1000]
    with pytest.raises(
        DataError, match=r"^40,000 x 40,000 px are 1,600,000,000 pixels, more than max_image_pixels"
    ):
        decode(header)
    photograph = encode(picture(3, 20, 30), "JPEG")
    for content in (photograph, Image.open(io.BytesIO(photograph)), encode(picture(3, 20, 30))):
        assert decode(content, 600).shape == (3, 20, 30)
        with pytest.raises(DataError, match="30 x 20 px are 600 pixels, more than max_image_pixels=599"):
            decode(content, 599)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_pillows_own_limit_is_neither_heard_nor_changed(kind, monkeypatch):
    """Below what is allowed no image is refused or warned of, from any thread, and Pillow's limit stays as it was."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns from here on, and refuses from 200 on
    contents = [encode(picture(seed, height, 15), kind) for seed, height in enumerate((10, 20) * 10)]
    with warnings.catch_warnings(), ThreadPoolExecutor(8) as threads:
        warnings.simplefilter("error")
        heights = [image.shape[1] for image in threads.map(decode, contents)]
    assert heights == [10, 20] * 10
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(contents[1]))


def test_malformed_exif_states_no_orientation():
    pixels = picture(5)
    assert np.array_equal(as_array(encode(pixels, exif=b"Exif\0\0 not a block")), pixels)


@pytest.mark.parametrize(("mode", "word"), [("F", "float"), ("I", "integer")])
def test_pixels_without_a_stated_range_are_refused_with_the_reason(mode, word):
    content = encode(Image.new(mode, (4, 4), 1), "TIFF")
    with pytest.raises(DataError, match=f"32-bit {word}.*not stated"):
        decode(content)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_truncated_files_raise(kind):
    content = encode(picture(7, 40, 40), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(DataError):
            decode(content[: int(len(content) * share)])


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<html>404</html>"])
def test_what_is_no_image_raises(content):
    with pytest.raises(DataError, match="not an image"):
        decode(content)


@pytest.mark.parametrize("mode", ["RGB", "P", "I;16", "RGBA"])
def test_damaged_pngs_are_refused_where_pillow_refuses(mode):
    pixels = picture(7, 64, 64)
    if mode == "I;16":
        stored = Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 256 + pixels[:, :, 1])
    elif mode == "RGBA":
        stored = Image.fromarray(np.dstack([pixels, pixels[:, ::-1, 0]]))
    else:
        stored = Image.fromarray(pixels).convert(mode)
    whole = encode(stored)
    start, stop = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 8
    refused = 0
    for place in np.linspace(start, stop - 1, 40).astype(int):
        content = bytearray(whole)
        content[place] ^= 0xFF
        try:
            Image.open(io.BytesIO(content)).load()
        except Exception:
            refused += 1
            with pytest.raises(DataError):
                decode(bytes(content))
    assert refused > 0


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF"]),
    place=st.floats(0, 1),
    junk=st.binary(min_size=1, max_size=20),
)
def test_damaged_files_give_an_image_or_a_data_error(kind, place, junk):
    content = bytearray(encode(picture(7, 20, 20), kind))
    start = int(place * (len(content) - 1))
    content[start : start + len(junk)] = junk
    try:
        channels = decode(bytes(content)).shape[0]
    except DataError:
        channels = 3  # refused with a reason: the other outcome that is allowed
    assert channels == 3
