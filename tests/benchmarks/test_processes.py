"""Processes that the test starts are found, measured and ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.harness import processes
from benchmarks.harness.sampler import Sampler, seconds_until

# A parent with a child that uses a second of processor time and 50 MB, then waits; both say so.
PROGRAM = """
import subprocess, sys, time
child = "import time; held = b'x' * 50_000_000; [x for x in held]; print('up', flush=True); "
child += "time.sleep(600)"
subprocess.run([sys.executable, "-c", child, "ray::ServeReplica:embeddings:TextTower"])
"""


@contextmanager
def family() -> Iterator[int]:
    """Start both in a session of their own, and yield the parent's process id."""
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"up\n"
            yield parent.pid
        finally:
            processes.signal_tree(parent.pid, signal.SIGKILL)


def test_a_replica_is_found_below_its_ancestor_and_measured() -> None:
    """By its command; nobody else's processes count."""
    with family() as parent:
        (replica,) = processes.of_kind(parent, "TextTower")
        assert replica.pid in {x.pid for x in processes.descendants(os.getpid())}
        assert processes.of_kind(parent, "Router") == []
        assert processes.resident_bytes([replica]) > 50e6
        assert 45e6 < processes.proportional_bytes([replica]) < 100e6
        assert processes.cpu_s(parent)["TextTower"] > 0.3
        assert processes.is_alive(replica)
        assert "TextTower" in processes.command(replica)


def test_a_whole_tree_is_ended_by_a_signal() -> None:
    """What has ended counts as nothing, is no error and is found no more."""
    with family() as parent:
        tree = processes.signal_tree(parent, signal.SIGKILL)
        assert len(tree) == 2
        assert seconds_until(lambda: not any(map(processes.is_alive, tree)), 30) is not None
        assert processes.descendants(parent) == []
        assert processes.resident_bytes(tree[1:]) == 0
        assert processes.command(tree[1]) == ""
        assert processes.kind(tree[1]) == processes.OTHER


def test_a_sampler_looks_until_the_block_ends_and_once_more() -> None:
    seen = iter(range(10**9))
    with Sampler(lambda: next(seen), 0.01) as sampler:
        assert seconds_until(lambda: len(sampler.samples) >= 3, 30) is not None
    count = len(sampler.samples)
    assert [value for _, value in sampler.samples] == list(range(count))
    time.sleep(0.05)
    assert len(sampler.samples) == count


def test_a_wait_ends_in_time_where_nothing_comes() -> None:
    assert seconds_until(lambda: False, 0.2) is None
    assert seconds_until(lambda: True, 0.2) == 0.0
