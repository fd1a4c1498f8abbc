"""From stored bytes to RGB: every mode that photographs and scans come in, upright and never clipped."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from coke.errors import DataError
from coke.memory import memory_share, require_memory

Content = bytes | Image.Image | Tensor
"""What a source gives for one image: encoded bytes, a PIL image, or uint8 [3, h, w] RGB already."""

MAX_IMAGE_PIXELS = 200_000_000
"""Of one image, unless another bound is given: those of the largest telephones are within it, and 0.6 GB as RGB."""
_PILLOWS_LIMIT = threading.Lock()
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: (1, -1, 0),
    3: (-1, -1, 0),
    4: (-1, 1, 0),
    5: (1, 1, 1),
    6: (-1, 1, 1),
    7: (-1, -1, 1),
    8: (1, -1, 1),
}
"""What makes an image of an EXIF orientation upright: steps along rows and columns, and whether they change places."""
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000")
"""What is decoded, by Pillow's names. It knows others, of which one starts a program (EPS)."""
_BYTES_A_PIXEL = {"WEBP": 18, "JPEG2000": 20, "": 12}
"""What decoding takes at most, as measured; "": all other formats. WebP's decoder keeps four copies of four bytes."""
_LARGE = 1 << 22  # pixels, from which on images share a budget
_STRIP = 1 << 18  # pixels of them that are converted at a time, since this takes several times their memory
_NEEDS = {  # what reads a file, by the brand that it states: Pillow cannot everywhere
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
INSTALL = {
    "HEIC": "pillow-heif (pip install 'coke-ssl[heic]')",
    "AVIF": "Pillow 11.3 or newer with AVIF (pip install -U pillow)",
}
"""What to install where images of a format cannot be read, by the format."""
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(content: Content, max_pixels: int = MAX_IMAGE_PIXELS, *, at_least: int | None = None) -> Tensor:
    """One image as uint8 [3, height, width], RGB, upright; channels last in memory, as crops are cut fastest.

    Grey and bilevel are repeated over the channels, palettes looked up, transparency composited over white,
    CMYK converted, 16-bit grey scaled from 0..65535 to 0..255. Of several frames the first is read. HEIC is read
    where pillow-heif is installed, AVIF where Pillow was built with it.

    max_pixels: of what is decoded. Images wait for each other where they are large beside the memory that is free.
    at_least: shorter side, px, that is enough: a JPEG is then decoded at a half, quarter or eighth of its size where
    this leaves so much, which takes a third of the time.

    Raises `DataError` with the reason where the content is no image, is truncated, needs what is not installed,
    states no range of values (32-bit float or integer pixels), or has more than ``max_pixels`` or than fit into
    memory: these are not decoded, since a small file may ask for any amount. Of its own limit Pillow says nothing here.

    >>> decode(Image.new("LA", (2, 1), (0, 0))).tolist()  # transparent black over white
    [[[255, 255]], [[255, 255]], [[255, 255]]]
    >>> decode(b"not an image")
    Traceback (most recent call last):
    coke.errors.DataError: not an image in a known format (12 bytes)
    """
    if isinstance(content, Tensor):
        return content
    try:
        if isinstance(content, Image.Image):
            _refuse_large(content, max_pixels)
            with _room_for(content):
                return _to_tensor(content)
        with _opened(content) as image:
            if at_least is not None:
                if image.info.get("progressive"):  # its decoder holds all of it whatever is asked for
                    _refuse_large(image, max_pixels)
                image.draft(None, (at_least, at_least))
            _refuse_large(image, max_pixels)
            with _room_for(image):
                if (
                    at_least is None
                    and image.format == "JPEG"
                    and image.mode == "RGB"
                    and _orientation(image) == 1
                ):
                    return _jpeg(content, image)
                return _to_tensor(image)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        size = f"{len(content)} bytes" if isinstance(content, bytes) else "a PIL image"
        raise DataError(f"not an image in a known format ({size})") from error
    except Exception as error:  # damaged files make Pillow raise almost anything: kept as reason
        raise DataError(f"{type(error).__name__}: {error}") from error


def _opened(content: bytes) -> Image.Image:
    """The image's header, its pixels still encoded. What Pillow cannot open by itself pillow-heif may."""
    try:
        return _open(content)
    except Image.UnidentifiedImageError:
        needed = _NEEDS.get(content[8:12]) if content[4:8] == b"ftyp" else None
        if needed is None:
            raise
        if needed == "HEIC" and _registered_heif():
            return _open(content)
        if needed == "HEIC" or not features.check("avif"):
            raise DataError(needs(needed)) from None
        raise


def _open(content: bytes) -> Image.Image:
    with _without_pillows_limit():
        Image.init()
        return Image.open(io.BytesIO(content), formats=[name for name in FORMATS if name in Image.OPEN])


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Pillow neither warns of large images nor refuses them: that is done by what was asked for, before it decodes.

    Its limit is the process's own, so one thread at a time sets it aside, and what was there comes back. Opening
    takes a fraction of a millisecond of the decoding, which is done by all threads at once.
    """
    with _PILLOWS_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _refuse_large(image: Image.Image, max_pixels: int) -> None:
    n_pixels = image.width * image.height
    if n_pixels > max_pixels:
        raise DataError(
            f"{image.width:,} x {image.height:,} px are {n_pixels:,} pixels, more than max_image_pixels="
            f"{max_pixels}: shrink the image, or allow as many as it has"
        )


class _Budget:
    """Bytes that the large images decoded at a time in this process may take; one that needs more goes alone."""

    def __init__(self) -> None:
        self._changed, self._total, self._spent = threading.Condition(), 0, 0

    @contextmanager
    def spend(self, n_bytes: int) -> Iterator[None]:
        """Wait until so much is left."""
        with self._changed:
            self._total = self._total or memory_share()
            self._changed.wait_for(lambda: not self._spent or self._spent + n_bytes <= self._total)
            self._spent += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._spent -= n_bytes
                self._changed.notify_all()


_BUDGET = _Budget()


@contextmanager
def _room_for(image: Image.Image) -> Iterator[None]:
    """The memory that a large image takes. Raises `DataError` where there is not so much."""
    n_pixels = image.width * image.height
    if n_pixels < _LARGE:
        yield
        return
    n_bytes = n_pixels * _BYTES_A_PIXEL.get(image.format or "", _BYTES_A_PIXEL[""])
    with _BUDGET.spend(n_bytes):
        require_memory(n_bytes, f"{image.width:,} x {image.height:,} px", "shrink the image")
        yield


def _load(image: Image.Image) -> None:
    """Decode the pixels. Some of Pillow's decoders look at its limit once more."""
    with _PILLOWS_LIMIT:  # else another thread may just have set it aside
        limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        with _without_pillows_limit():
            image.load()
    else:
        image.load()


def needs(form: str) -> str:
    """Why an image of a format of `INSTALL` cannot be read here."""
    return f"{form} needs {INSTALL[form]}"


def _registered_heif() -> bool:
    """Whether pillow-heif is here. It is loaded by the first file that asks for it, which makes it known to Pillow."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _jpeg(content: bytes, image: Image.Image) -> Tensor:
    """The plain photograph, by torchvision: Pillow's pixels without its copies. What it refuses Pillow judges."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg

        return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, AttributeError, ImportError, Warning):
        # damaged; or a torchvision without decoders: 0.29 announces (a warning, here perhaps an error) that they go
        return _to_tensor(image)


def _to_tensor(image: Image.Image) -> Tensor:
    _load(
        image
    )  # first: asked for a PNG's EXIF, Pillow loads it too, and raises only once where it is damaged
    rows, columns, swapped = _UPRIGHT.get(_orientation(image), (1, 1, 0))
    if image.mode == "F":
        raise DataError("32-bit float pixels: what is white is not stated; convert to 8 or 16 bit first")
    if image.width * image.height <= _LARGE:
        pixels = np.array(_rgb(image, image.format))
    else:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        step = max(1, _STRIP // image.width)
        for top in range(0, image.height, step):
            strip = image.crop((0, top, image.width, min(top + step, image.height)))
            pixels[top : top + step] = _rgb(strip, image.format)
    upright = pixels[::rows, ::columns]
    upright = upright.transpose(1, 0, 2) if swapped else upright
    return torch.from_numpy(np.ascontiguousarray(upright)).permute(2, 0, 1)


def _rgb(image: Image.Image, form: str | None) -> Image.Image:
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        return _eight_bit(image, form)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    return _over_white(image) if image.has_transparency_data else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8. A malformed EXIF block states none: the image is read as it is stored."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises SyntaxError, struct.error, ValueError, ... on malformed blocks
        return 1


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "1":  # Pillow looks a bilevel image's transparent value up among grey ones
        transparent = image.info["transparency"]
        image = image.convert("L")
        image.info["transparency"] = 255 if transparent else 0
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _eight_bit(image: Image.Image, form: str | None) -> Image.Image:
    """16-bit grey as 8-bit RGB: 0..65535 scaled to 0..255 and rounded."""
    if image.mode == "I" and form not in ("PNG", "PPM"):  # these two store 16 bits in Pillow's mode I
        raise DataError("32-bit integer pixels: what is white is not stated; convert to 8 or 16 bit first")
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
