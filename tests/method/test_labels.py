"""The label memory against dictionaries."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coke.errors import BoundsError, ConfigError
from coke.method.labels import LabelMemory, last_occurrence, smallest_integer_type


def averages(memory, index, head=0):
    """The average of one image as a dictionary, and that nothing is counted twice."""
    labels, shares = memory.read_average(torch.tensor([index]))
    assert labels.dtype == torch.int64
    assert shares.dtype == torch.float32
    pairs = [(int(k), float(p)) for k, p in zip(labels[0, head], shares[0, head], strict=True) if p > 0]
    assert len({label for label, _ in pairs}) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize(
    ("n_clusters", "dtype"),
    [
        (1, torch.int8),
        (128, torch.int8),
        (129, torch.int16),
        ([10, 129], torch.int16),
        (32_768, torch.int16),
        (32_769, torch.int32),
    ],
)
def test_the_smallest_type_holds_every_label_and_none(n_clusters, dtype):
    memory = LabelMemory(2, n_clusters)
    assert memory.labels.dtype == dtype
    largest = max(n_clusters) - 1 if isinstance(n_clusters, list) else n_clusters - 1
    heads = len(n_clusters) if isinstance(n_clusters, list) else 1
    memory.begin_averaging()
    memory.write(torch.tensor([1]), torch.full((1, heads), largest))
    assert memory.read(torch.tensor([0, 1])).tolist() == [[-1] * heads, [largest] * heads]
    assert averages(memory, 1) == {largest: 1.0}


def test_too_many_clusters_for_any_type():
    assert smallest_integer_type(2**31) == torch.int32
    with pytest.raises(BoundsError, match="below 2"):
        smallest_integer_type(2**31 + 1)


writes = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 6)), min_size=0, max_size=8),
    max_size=12,
)


@settings(max_examples=60)
@given(writes, st.integers(0, 12))
def test_last_labels_and_exact_averages_while_slots_suffice(batches, stage_two):
    """Any batches, with duplicates (the last row counts, once); 7 distinct labels, as many slots."""
    memory = LabelMemory(6, [7, 7], slots=7)
    last, counts = {}, {}
    for index, batch in enumerate(batches):
        if index == stage_two:
            memory.begin_averaging()
        rows = torch.tensor(batch, dtype=torch.int64).reshape(-1, 3)
        memory.write(rows[:, 0].contiguous(), rows[:, 1:])
        for image, pair in {image: (a, b) for image, a, b in batch}.items():
            last[image] = pair
            if index >= stage_two:
                for head, label in enumerate(pair):
                    counts.setdefault((image, head), Counter())[label] += 1
    assert memory.read(torch.arange(6)).tolist() == [list(last.get(image, (-1, -1))) for image in range(6)]
    for image in range(6):
        for head in range(2):
            seen = counts.get((image, head))
            if seen is None:  # none in stage 2 yet: what was last, if anything
                expected = {last[image][head]: 1.0} if image in last else {}
            else:
                expected = {label: n / seen.total() for label, n in seen.items()}
            assert averages(memory, image, head) == pytest.approx(expected)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=40), st.integers(1, 5))
def test_beyond_the_slots_no_count_is_too_large_by_more_than_a_slots_share(labels, slots):
    memory = LabelMemory(1, 12, slots=slots)
    memory.begin_averaging()
    for label in labels:
        memory.write(torch.tensor([0]), torch.tensor([[label]]))
    total, true = len(labels), Counter(labels)
    kept = {k: round(p * total) for k, p in averages(memory, 0).items()}
    assert sum(kept.values()) == total == int(memory.slot_counts.sum())
    assert len(kept) == min(slots, len(true))
    for label, count in kept.items():
        assert true[label] <= count <= true[label] + total / slots
    assert all(label in kept for label, count in true.items() if count > total / slots)
    if len(true) <= slots:
        assert kept == dict(true)


def test_the_lightest_slot_is_taken_over_with_its_count():
    memory = LabelMemory(1, 10, slots=2)
    memory.begin_averaging()
    for label in (3, 3, 5, 7):  # 7 takes the place of 5, counted once: 1 + 1
        memory.write(torch.tensor([0]), torch.tensor([[label]]))
    assert averages(memory, 0) == pytest.approx({3: 0.5, 7: 0.5})
    memory.write(torch.tensor([0]), torch.tensor([[5]]))  # of equals, the first slot: 3
    assert averages(memory, 0) == pytest.approx({5: 0.6, 7: 0.4})


def test_a_label_from_before_stage_two_is_provisional():
    memory = LabelMemory(3, 10)
    memory.write(torch.tensor([0, 1]), torch.tensor([[4], [4]]))
    memory.begin_averaging()
    assert memory.averaging
    assert averages(memory, 0) == {4: 1.0}
    assert averages(memory, 2) == {}
    memory.write(torch.tensor([0]), torch.tensor([[9]]))  # takes over: 4 was no epoch of stage 2
    memory.write(torch.tensor([1]), torch.tensor([[4]]))
    memory.write(torch.tensor([1]), torch.tensor([[5]]))
    assert averages(memory, 0) == {9: 1.0}
    assert averages(memory, 1) == {4: 0.5, 5: 0.5}
    memory.begin_averaging()  # twice is once
    assert averages(memory, 1) == {4: 0.5, 5: 0.5}


def test_before_stage_two_the_average_is_the_last_label():
    memory = LabelMemory(2, [10, 20])
    memory.write(torch.tensor([1]), torch.tensor([[3, 12]]))
    labels, shares = memory.read_average(torch.tensor([1, 0]))
    assert labels[..., 0].tolist() == [[3, 12], [-1, -1]]
    assert shares.tolist() == [[[1]] * 2, [[0]] * 2]
    assert not memory.averaging


def test_counts_hold_a_thousand_epochs():
    memory = LabelMemory(1, 3)
    memory.begin_averaging()
    for _ in range(1000):
        memory.write(torch.tensor([0]), torch.tensor([[2]]))
    memory.write(torch.tensor([0]), torch.tensor([[1]]))
    assert averages(memory, 0) == pytest.approx({2: 1000 / 1001, 1: 1 / 1001})


@pytest.mark.parametrize("stage_two", [False, True])
def test_a_saved_state_continues_exactly(stage_two, tmp_path):
    memory, fresh = (LabelMemory(4, [10, 20], slots=3) for _ in range(2))
    memory.write(torch.tensor([0, 1]), torch.tensor([[1, 2], [3, 4]]))
    if stage_two:
        memory.begin_averaging()
        memory.write(torch.tensor([1, 2]), torch.tensor([[5, 6], [7, 8]]))
    torch.save(memory.state_dict(), tmp_path / "state.pt")
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert fresh.averaging == stage_two
    for each in (memory, fresh):
        each.write(torch.tensor([1, 3]), torch.tensor([[9, 9], [0, 0]]))
    ids = torch.arange(4)
    assert torch.equal(memory.read(ids), fresh.read(ids))
    for one, other in zip(memory.read_average(ids), fresh.read_average(ids), strict=True):
        assert torch.equal(one, other)


def test_casts_move_it_but_never_turn_labels_into_floats():
    memory = LabelMemory(4, 200)
    memory.begin_averaging()
    memory.half()
    assert [buffer.dtype for buffer in memory.buffers()] == [torch.int16] * 3
    assert not list(memory.parameters())
    memory.to("meta")
    assert {buffer.device.type for buffer in memory.buffers()} == {"meta"}


def test_nothing_is_kept_but_small_integers():
    memory = LabelMemory(1000, [100, 100, 100])
    size = sum(buffer.nbytes for buffer in memory.buffers())
    assert size == 1000 * 3
    memory.begin_averaging()
    assert sum(buffer.nbytes for buffer in memory.buffers()) == size + 1000 * 3 * 5 * (1 + 2)


def test_an_empty_batch_changes_nothing():
    memory = LabelMemory(3, 10)
    memory.begin_averaging()
    none = torch.empty(0, dtype=torch.int64)
    memory.write(none, torch.empty(0, 1, dtype=torch.int64))
    assert memory.read(none).shape == (0, 1)
    assert memory.read(torch.arange(3)).tolist() == [[-1]] * 3
    assert len(memory) == 3


@settings(max_examples=40)
@given(st.lists(st.integers(0, 6), max_size=12))
def test_last_occurrence(ids):
    found = last_occurrence(torch.tensor(ids, dtype=torch.int64)).tolist()
    assert found == [max(row for row, other in enumerate(ids) if other == one) for one in ids]


def test_bad_settings_and_labels_are_refused():
    with pytest.raises(BoundsError, match="n_samples=0"):
        LabelMemory(0, 10)
    with pytest.raises(BoundsError, match=r"n_clusters=\[\]"):
        LabelMemory(5, [])
    with pytest.raises(BoundsError, match="at least one image, head and cluster"):
        LabelMemory(5, [10, 0])
    with pytest.raises(ConfigError, match="slots must be at least 1, got 0"):
        LabelMemory(5, 10, slots=0)
    memory = LabelMemory(5, [10, 20])
    with pytest.raises(ConfigError, match=r"must be \[2, 2\], got \[2, 1\]"):
        memory.write(torch.tensor([0, 1]), torch.tensor([[1], [2]]))
    for wrong in (-1, 20):
        with pytest.raises(ConfigError, match=r"0 \.\.\. 19, got"):
            memory.write(torch.tensor([0]), torch.tensor([[1, wrong]]))
    for wrong in (-1, 5):
        with pytest.raises((IndexError, RuntimeError)):
            memory.write(torch.tensor([wrong]), torch.tensor([[1, 1]]))
    assert memory.read(torch.arange(5)).tolist() == [[-1, -1]] * 5
