"""What the processes of a tree take: on made `/proc` trees, and on real processes."""

from __future__ import annotations

import itertools
import mmap
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from resource_guard.process_tree import PROGRAMS_BYTES, ProcessTree
from tests.unit.made_proc import PAGE_BYTES, MadeProc


@pytest.fixture
def made(tmp_path: Path) -> MadeProc:
    return MadeProc(tmp_path)


@pytest.fixture
def tree(made: MadeProc) -> Iterator[ProcessTree]:
    tree = ProcessTree([10], made.proc, timer=lambda: 0.0)  # reading shares seems to take no time
    yield tree
    tree.close()


def pages(tree: ProcessTree) -> float:
    tree.look()
    return tree.memory_bytes / PAGE_BYTES


def corrected_pages(tree: ProcessTree, tolerance_bytes: float = 0.0) -> float:
    tree.look()
    tree.correct(0.0, 1.0, tolerance_bytes)
    return tree.memory_bytes / PAGE_BYTES


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestWhoBelongsToIt:
    def test_the_roots_and_all_their_descendants_and_nobody_else(self, made: MadeProc, tree: ProcessTree) -> None:
        """Children of children, and children that a thread other than the main one has started."""
        made.process(10, own=1, children=[20], by_threads={11: [30]})
        made.process(20, own=10, children=[40])
        made.process(30, own=100)
        made.process(40, own=1000)
        made.process(99, own=5000)
        assert pages(tree) == 1111

    def test_several_roots_of_which_one_is_below_another(self, made: MadeProc) -> None:
        """The supervisor, a worker that it has started, and a broker that somebody else has."""
        made.process(10, own=1, children=[20])
        made.process(20, own=10)
        made.process(50, own=100)
        roots = [10, 20]
        tree = ProcessTree(roots, made.proc)
        assert pages(tree) == 11
        roots.append(50)  # the broker has started anew, with a new number
        assert pages(tree) == 111
        tree.close()

    def test_each_only_once(self, made: MadeProc, tree: ProcessTree) -> None:
        """A child that changes its parent while the tree is walked shows up under both."""
        made.process(10, own=1, children=[20, 30])
        made.process(20, own=10, children=[30])
        made.process(30, own=100, children=[20])
        assert pages(tree) == 111

    def test_not_who_has_gone_between_the_list_and_the_reading(self, made: MadeProc, tree: ProcessTree) -> None:
        made.process(10, own=1, children=[20, 21])
        made.process(21, own=10)
        assert pages(tree) == 11

    @pytest.mark.parametrize("name", ["stat", "statm"])
    @pytest.mark.parametrize("text", ["", "garbage", "1 x"])
    def test_not_who_cannot_be_read(self, made: MadeProc, tree: ProcessTree, name: str, text: str) -> None:
        """One odd process must not blind the guard."""
        made.process(10, own=1, children=[20])
        made.process(20, own=10)
        (made.proc / f"20/{name}").write_text(text)
        assert pages(tree) == 1

    def test_nobody_where_nothing_can_be_read(self, tree: ProcessTree) -> None:
        assert pages(tree) == 0
        assert tree.processes == {}

    def test_a_new_process_with_an_old_number_is_another(self, made: MadeProc, tree: ProcessTree) -> None:
        """What was known of the old one's share of pages is of no use."""
        made.process(10, children=[20])
        made.process(20, own=100, started=5)
        made.share(20, own=10)
        assert corrected_pages(tree) == 10
        made.process(20, own=100, started=6)
        assert pages(tree) == 100

    def test_files_of_those_that_have_ended_are_closed(self, made: MadeProc, tree: ProcessTree) -> None:
        """Kept open: three of each process, and no more than 192 in all."""
        children = list(range(100, 300))
        made.process(10, children=children)
        for child in children:
            made.process(child, own=1)
        before = open_files()
        assert pages(tree) == 200
        assert open_files() - before == 192
        made.process(10)
        assert pages(tree) == 0
        assert open_files() - before == 3
        tree.close()
        assert open_files() == before


class TestWhatCounts:
    def test_own_and_shared_memory_and_no_files(self, made: MadeProc, tree: ProcessTree) -> None:
        """Pages of files can be dropped: a task that maps a large file takes nothing from anyone."""
        made.process(10, own=1000, shmem=1000, files=50_000)
        assert pages(tree) == 2000
        made.process(10, own=1000, shmem=3000, files=50_000)
        assert pages(tree) == 4000
        made.process(10, own=1000, shmem=3000, files=90_000)
        assert pages(tree) == 4000

    def test_of_files_what_programs_and_libraries_take(self, made: MadeProc, tree: ProcessTree) -> None:
        """Those are needed all the time. It is known when a share has been read."""
        made.process(10, own=100, files=50_000)
        made.share(10, own=100, files=1000)
        assert corrected_pages(tree) == 1100
        made.process(10, own=200, files=50_000, started=2)
        made.share(10, own=200, files=50_000)
        assert corrected_pages(tree) == 200 + PROGRAMS_BYTES / PAGE_BYTES

    def test_pages_that_children_share_with_their_parent_once(self, made: MadeProc, tree: ProcessTree) -> None:
        """The sum says 300 pages, but 75 of each are the same in all three, which makes 150."""
        made.process(10, own=100, children=[20, 30])
        made.process(20, own=100)
        made.process(30, own=100)
        for pid in (10, 20, 30):
            made.share(pid, own=50)
        assert corrected_pages(tree) == 150

    def test_in_full_what_is_not_known_to_be_shared(self, made: MadeProc, tree: ProcessTree) -> None:
        """Another user's process, say: too much is safer than too little."""
        made.process(10, own=100, children=[20])
        made.process(20, own=100)
        made.share(10, own=50)
        assert corrected_pages(tree) == 150

    def test_a_kernel_that_does_not_tell_kinds_of_pages_apart_will_do(self, made: MadeProc, tree: ProcessTree) -> None:
        made.process(10, own=100)
        (made.proc / "10/smaps_rollup").write_text(f"Rss: 1 kB\nPss:   {60 * PAGE_BYTES // 1024} kB\n")
        assert corrected_pages(tree) == 60


class TestBetweenExactReadings:
    def test_growth_is_seen_at_once(self, made: MadeProc, tree: ProcessTree) -> None:
        """What a process takes anew is its own."""
        made.process(10, own=100)
        made.share(10, own=40)
        assert corrected_pages(tree) == 40
        made.process(10, own=130)
        assert pages(tree) == 70

    def test_an_estimate_never_leaves_what_is_possible(self, made: MadeProc, tree: ProcessTree) -> None:
        """Not below nothing, not above all that the process has."""
        made.process(10, own=100)
        made.share(10, own=40)
        assert corrected_pages(tree) == 40
        made.process(10, own=30)
        assert pages(tree) == 0

    def test_a_child_that_ends_takes_only_its_share_with_it(self, made: MadeProc, tree: ProcessTree) -> None:
        made.process(10, own=100, children=[20])
        made.process(20, own=100)
        made.share(10, own=60)
        made.share(20, own=60)
        assert corrected_pages(tree) == 120
        made.process(10, own=100)
        assert pages(tree) == 60
        # And the parent's share is more now, which is why it is read again.
        made.share(10, own=100)
        assert corrected_pages(tree) == 100

    def test_what_is_well_known_is_not_read_again(self, made: MadeProc, tree: ProcessTree) -> None:
        """An idle process's share does not change by itself."""
        made.process(10, own=100)
        made.share(10, own=40)
        assert corrected_pages(tree) == 40
        made.share(10, own=1)
        assert corrected_pages(tree) == 40

    def test_a_process_that_runs_may_have_made_shared_pages_its_own(self, made: MadeProc, tree: ProcessTree) -> None:
        """It has as many pages as before, but others no longer have them too."""
        made.process(10, own=100)
        made.share(10, own=40)
        assert corrected_pages(tree) == 40
        made.process(10, own=100, cpu_s=1.0)
        made.share(10, own=90)
        assert pages(tree) == 40
        assert corrected_pages(tree) == 90

    def test_what_is_known_well_enough_is_not_read_either(self, made: MadeProc, tree: ProcessTree) -> None:
        """Those that may be most wrong come first."""
        made.process(10, own=10, children=[20])
        made.process(20, own=100)
        made.share(10, own=1)
        made.share(20, own=50)
        assert corrected_pages(tree, tolerance_bytes=10 * PAGE_BYTES) == 60

    def test_reading_again_takes_no_more_time_than_allowed(self, made: MadeProc) -> None:
        """Each reading here takes 15 ms, and 10 ms a second are allowed, 20 of them saved up at first."""
        clock = itertools.count(step=0.015)
        tree = ProcessTree([10], made.proc, timer=lambda: next(clock))
        made.process(10, own=100)
        made.share(10)
        tree.look()
        tree.correct(0.0, 0.01, 0.0)
        read_at = []
        for tick in range(1, 60):
            made.process(10, own=100, cpu_s=tick)
            made.share(10, own=tick)
            tree.look()
            before = tree.memory_bytes
            tree.correct(tick / 10, 0.01, 0.0)
            read_at += [tick / 10] if tree.memory_bytes != before else []
        assert read_at[:2] == [0.1, 0.2]
        assert len(read_at) == 6
        tree.close()

    def test_a_new_process_is_read_at_once(self, made: MadeProc) -> None:
        """Whatever is allowed, but two at a look at most here: else each fork would count its parent's memory again."""
        clock = itertools.count(step=0.008)  # it is asked once more than there are readings
        tree = ProcessTree([10], made.proc, clock=lambda: next(clock))
        made.process(10, own=1000, children=[20, 30])
        made.process(20, own=100)
        made.process(30, own=90)
        for pid in (10, 20, 30):
            made.share(pid)
        known = []
        for look in range(3):
            tree.look()
            known.append(tree.memory_bytes / PAGE_BYTES)
            tree.correct(look / 10, 0.0, 0.0)
        assert known == [1190, 90, 0]
        tree.close()


# -- On the real machine: a child does what the code says, and is looked at before and after.


@contextmanager
def child(code: str, *arguments: str) -> Iterator[tuple[ProcessTree, Callable[[], float]]]:
    """The tree of a process that runs `code`, and what it takes in MB when it has come to its next `step()`."""
    code = f"import sys\ndef step():\n    print(flush=True); sys.stdin.readline()\n{code}\nstep()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        assert process.stdout
        tree, at = ProcessTree([process.pid]), itertools.count()

        def next_mb() -> float:
            assert process.stdin
            assert process.stdout
            process.stdout.readline()
            tree.look()
            for _ in range(5):  # each time no longer than a look may take
                tree.correct(next(at), 1.0, 0.0)
            process.stdin.write(b"\n")
            process.stdin.flush()
            return tree.memory_bytes / 1e6

        yield tree, next_mb
        tree.close()
        process.stdin.close()


def test_memory_of_its_own_shows() -> None:
    with child("step()\nx = bytearray(b'x') * 60_000_000") as (_, next_mb):
        before_mb, after_mb = next_mb(), next_mb()
    assert 58 < after_mb - before_mb < 65


def test_memory_that_is_shared_shows_once() -> None:
    """Two processes have mapped it, and both have written to it."""
    code = (
        "import mmap, os\nstep()\n"
        "x = mmap.mmap(-1, 60_000_000); x.write(b'x' * 60_000_000)\n"
        "go, done = os.pipe(), os.pipe()\n"
        "if os.fork() == 0:\n"
        "    x.seek(0); x.write(b'y' * 60_000_000); os.write(done[1], b'.'); os.read(go[0], 1); os._exit(0)\n"
        "os.read(done[0], 1)\nstep()\nos.write(go[1], b'.'); os.wait()"
    )
    with child(code) as (_, next_mb):
        before_mb, after_mb = next_mb(), next_mb()
    assert 55 < after_mb - before_mb < 75


def test_memory_from_before_a_fork_shows_once() -> None:
    """Eight children that have it too: the sum of their RSS would say 540 MB."""
    code = (
        "import os\nx = bytearray(b'x') * 60_000_000\nstep()\n"
        "go = os.pipe()\n"
        "for _ in range(8):\n"
        "    if os.fork() == 0:\n"
        "        os.read(go[0], 1); os._exit(0)\n"
        "step()\nos.write(go[1], b'.' * 8)\n"
        "for _ in range(8): os.wait()"
    )
    with child(code) as (tree, next_mb):
        before_mb, after_mb = next_mb(), next_mb()
        assert len(tree.processes) == 9
    assert after_mb - before_mb < 40


@pytest.mark.parametrize("how", ["read", "map"])
def test_reading_a_large_file_shows_nothing(tmp_path: Path, how: str) -> None:
    """Neither through the page cache nor mapped: the kernel can drop those pages."""
    file = tmp_path / "large"
    file.write_bytes(b"x" * 200_000_000)
    code = {
        "read": "step()\nf = open(sys.argv[1], 'rb', buffering=0)\nwhile f.read(1_000_000): pass",
        "map": (
            "import mmap\nstep()\nf = open(sys.argv[1], 'rb')\n"
            f"x = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\nn = sum(x[::{mmap.PAGESIZE}])"
        ),
    }[how]
    with child(code, str(file)) as (_, next_mb):
        before_mb, after_mb = next_mb(), next_mb()
    assert after_mb - before_mb < (3 if how == "read" else PROGRAMS_BYTES / 1e6)
