"""A fit takes threads from torch, and puts back what it took: beside other fits, and after an error."""

from __future__ import annotations

import threading

import pytest
import torch

from coke.bounded.thread_pool import n_threads, torch_alone


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def seen_by_a_new_thread() -> int:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


@pytest.mark.usefixtures("three_threads")
def test_passes_have_what_torch_had_and_torch_gets_it_back():
    @torch_alone()
    def fail() -> None:
        seen.append((torch.get_num_threads(), n_threads()))
        raise KeyError

    seen: list[tuple[int, int]] = []
    with pytest.raises(KeyError):
        fail()
    assert seen == [(1, 3)]
    assert (torch.get_num_threads(), seen_by_a_new_thread(), n_threads()) == (3, 3, 3)


@pytest.mark.usefixtures("three_threads")
def test_the_first_to_begin_ends_first():
    """The second begins while torch has one thread: it must neither pass on one nor put one back."""
    begun, may_end, seen = threading.Event(), threading.Event(), []

    def second() -> None:
        with torch_alone():
            seen.append(n_threads())
            begun.set()
            may_end.wait()

    thread = threading.Thread(target=second)
    with torch_alone():
        thread.start()
        begun.wait()
    may_end.set()
    thread.join()
    assert seen == [3]
    assert (torch.get_num_threads(), seen_by_a_new_thread(), n_threads()) == (3, 3, 3)
