"""What is opened is a regular file, and every folder is entered once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coke.errors import CokeError, DataError, printable
from coke.memory import available_memory
from coke.reading import files_below, read_file, read_text, reading_as, require_file

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes, devices and links of POSIX")


def odd_files(folder: Path) -> dict[str, Path]:
    """A pipe, a device, a socket and a folder, by what an error calls them."""
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    before = Path.cwd()
    os.chdir(folder)  # a socket's path must be short
    try:
        socket.socket(socket.AF_UNIX).bind("socket")
    finally:
        os.chdir(before)
    return {name: folder / name for name in ("pipe", "device", "socket", "folder")}


@posix
@pytest.mark.parametrize("read", [require_file, read_file, read_text])
def test_only_regular_files_are_opened(tmp_path: Path, read) -> None:
    for name, path in odd_files(tmp_path).items():
        with pytest.raises(DataError, match=rf"is a {name}, no regular file$"):
            read(path)
        with pytest.raises(DataError, match="no regular file"), reading_as("anything", path):
            raise AssertionError("never reached")


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for read in (require_file, read_file):
        with pytest.raises(DataError, match=r"a\\x00b cannot be opened: embedded null byte"):
            read("a\0b")
    with pytest.raises(DataError, match="File name too long"):
        require_file("a" * 5000)
    with pytest.raises(DataError, match="there is no such file"):
        require_file(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):  # which the scan of images calls by its name
        read_file(tmp_path / "nowhere")


@posix
def test_a_file_is_read_as_far_as_memory_goes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as stream:
        stream.truncate(1 << 42)
    with pytest.raises(DataError, match=r"4398\.0 GB must stay in memory"):
        read_file(path)
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_file(path) == b"\xef\xbb\xbfa\r\nb\rc\n"
    assert read_text(path) == "a\nb\nc\n"
    path.write_bytes(b"a\xff")
    with pytest.raises(DataError, match=r"not UTF-8 text \(invalid start byte at byte 1\)"):
        read_text(path)


@posix
def test_the_limit_of_a_process_counts_as_memory() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, before[1]))
    try:
        free = available_memory()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert free is not None
    assert 10_000_000 < free <= 50_000_000


def test_whatever_a_library_raises_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    for error in (KeyError("a\nb"), MemoryError(), RecursionError("deep\n\x1b[31m"), UnicodeError("odd")):
        with pytest.raises(DataError) as caught, reading_as("nonsense", path):
            raise error
        assert str(caught.value).startswith(f"{path} cannot be read as nonsense: ")
        assert str(caught.value).isprintable()
    with pytest.raises(CokeError, match=r"^mine$"), reading_as("nonsense", path):
        raise CokeError("mine")


@posix
def test_folders_that_link_to_one_another_are_entered_once(tmp_path: Path) -> None:
    names = [str(number) for number in range(9)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
        for other in names:
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
        (tmp_path / name / "up").symlink_to(tmp_path.parent)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "y").touch()
    seen = sorted(["loop", *(f"{name}/x" for name in names)])
    assert files_below(tmp_path) == seen
    assert files_below(tmp_path, hidden=True) == sorted([".hidden/y", *seen])


@posix
def test_a_link_is_followed_where_nothing_else_leads_there(tmp_path: Path) -> None:
    (tmp_path / "far" / "below").mkdir(parents=True)
    (tmp_path / "far" / "below" / "x").touch()
    root = tmp_path / "root"
    root.mkdir()
    for name in ("b", "a"):
        (root / name).symlink_to(tmp_path / "far")
    assert files_below(root) == ["a/below/x"]
    (root / "z").mkdir()
    (root / "z" / "own").touch()
    (root / "c").symlink_to(root / "z")
    assert files_below(root) == ["a/below/x", "z/own"]  # a folder's own path comes before links to it


@posix
@pytest.mark.parametrize(("depth", "reaches"), [(1500, True), (2100, False)])
def test_deep_folders_take_no_time(tmp_path: Path, depth: int, reaches: bool) -> None:
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):  # a path from the root would be too long
        os.mkdir("d", dir_fd=place)
        deeper = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(place)
    began = time.process_time()
    try:
        if reaches:
            assert files_below(tmp_path) == ["d/" * depth + "x"]
        else:
            with pytest.raises(DataError, match="cannot be listed: the folders in it are nested too deep"):
                files_below(tmp_path)
        assert time.process_time() - began < 10
    finally:  # Python's own way to remove folders, which pytest takes, does not reach so deep
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


@pytest.mark.parametrize("odd", ["\x1b[31m", "\x07", "\x9b31m", "\u202e", "\udcff", "\u2028", "\x00"])
def test_errors_reach_terminals_without_escape_sequences(odd: str) -> None:
    said = str(DataError(f"before{odd}after\nand\r\nmore"))
    assert said.isprintable()
    assert said == printable(said) == said.replace(odd, "")
    assert said.endswith("after and more")
