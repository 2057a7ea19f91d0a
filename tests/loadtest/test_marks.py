"""Blocks of a log: sums by which two tell whether they have the same messages, however long the log is."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from trisync.loadtest.crew import REPORT_BYTES_MAX
from trisync.loadtest.marks import block_of
from trisync.loadtest.plan import Tally


@given(st.integers(1, 1 << 53) | st.integers(9_990_000, 10_020_000) | st.integers(99_900_000, 100_200_000))
def test_each_offset_is_in_one_block(offset: int) -> None:
    block, next_block = block_of(offset)
    assert block <= offset < next_block
    assert block_of(block) == block_of(next_block - 1) == (block, next_block)
    assert block_of(next_block)[0] == next_block


def test_what_a_worker_has_of_a_billion_messages_fits_into_its_report() -> None:
    block = size = 0
    while block < 1_000_000_000:
        size += len(msgspec.json.encode(Tally(0, block, 100_000, block, 1 << 60, 1 << 60))) + 1
        _, block = block_of(block)
    assert 2 * size < REPORT_BYTES_MAX / 2, "what was acknowledged, and what was delivered"
