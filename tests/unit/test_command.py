"""What `tasks.command.run` gives, how it fails, and that nothing of a program is left, however its caller ends."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from celery import Celery
from celery.backends.base import Backend

from tasks import command_errors as errors
from tasks.command import Finished, run
from tests.process_tree import alive, pids, tree
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run" / "step"


# -- what it gives


def test_a_program_gives_its_exit_status_and_what_it_wrote(out: Path) -> None:
    finished = run(["sh", "-c", "echo to out; echo to err >&2"], output_folder=out)
    assert finished == Finished(
        exit_status=0,
        stdout="to out\n",
        stderr="to err\n",
        stdout_file=None,
        stderr_file=None,
        duration_s=finished.duration_s,
    )
    assert 0 < finished.duration_s < 5
    assert not out.parent.exists()


def test_arguments_reach_the_program_as_they_are(out: Path) -> None:
    """No shell reads them: nothing is expanded, and a semicolon ends nothing."""
    assert run(["echo", "$HOME", "*", "; reboot", "ü"], output_folder=out).stdout == "$HOME * ; reboot ü\n"


def test_a_shell_reads_a_text_only_when_asked(out: Path) -> None:
    assert run("echo one two | wc -w", shell=True, output_folder=out).stdout.strip() == "2"


def test_a_program_reads_what_it_is_given_or_nothing(out: Path) -> None:
    text = "grüße\n" * 100_000
    assert run(["wc", "-l"], stdin=text, output_folder=out).stdout.strip() == "100000"
    assert run(["cat"], output_folder=out).stdout == ""


def test_variables_are_added_and_the_folder_is_entered(out: Path, tmp_path: Path) -> None:
    finished = run('echo "$ADDED $HOME"; pwd', shell=True, env={"ADDED": "x"}, cwd=tmp_path, output_folder=out)
    assert finished.stdout == f"x {os.environ['HOME']}\n{tmp_path}\n"


def test_the_path_that_is_given_decides_which_program_runs(out: Path, tmp_path: Path) -> None:
    (tmp_path / "hello").write_text("#!/bin/sh\necho mine\n")
    (tmp_path / "hello").chmod(0o700)
    assert run(["hello"], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, output_folder=out).stdout == "mine\n"


def test_bytes_that_are_no_text_are_marked(out: Path) -> None:
    assert run(["printf", r"a\377b"], output_folder=out).stdout == "a\ufffdb"


def test_a_program_finds_signals_as_they_are_by_default(out: Path) -> None:
    """Pool processes ignore SIGINT, and what ignores a signal hands that down."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(errors.CommandKilled, match="killed by SIGINT"):
            run("kill -INT $$; echo survived", shell=True, output_folder=out)
    finally:
        signal.signal(signal.SIGINT, before)


# -- long output


def test_output_above_the_cap_is_whole_in_a_private_file(out: Path) -> None:
    finished = run("printf 'aä%.0s' 1 2 3 4; echo err >&2", shell=True, output_cap_bytes=5, output_folder=out)
    assert finished.stdout == "aäa"  # 4 of 5 bytes: the fifth is half a character
    assert finished.stdout_file == str(out / "stdout")
    assert (out / "stdout").read_text() == "aäaäaäaä"
    assert (finished.stderr, finished.stderr_file) == ("err\n", None)
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (out, out.parent)] == [0o700, 0o700]


def test_output_that_just_fits_makes_no_file(out: Path) -> None:
    assert run(["printf", "12345"], output_cap_bytes=5, output_folder=out).stdout_file is None


def test_huge_output_does_not_grow_this_process(out: Path) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(["head", "-c", "200000000", "/dev/zero"], output_folder=out)
    assert (out / "stdout").stat().st_size == 200_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 20_000


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_the_program_with_an_error(out: Path, tmp_path: Path) -> None:
    out.mkdir(parents=True)
    (out / "stdout").symlink_to("/dev/full")
    with pytest.raises(errors.CommandOutputLost, match="No space left on device"):
        run(tree(tmp_path / "pids", then="yes"), shell=True, output_folder=out)
    assert alive(pids(tmp_path / "pids")) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.CommandOutputLost, match="stdout can't be written: Not a directory"):
        run(["yes"], output_folder=tmp_path / "file" / "folder")


# -- how it fails


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"argv": "ls -l"}, r"want a list like \['ls', '-l'\], or shell=True for one text, got 'ls -l'"),
        ({"argv": []}, r"want a list with the program's name first, got \[\]"),
        ({"argv": None}, "want a list with the program's name first, got None"),
        ({"argv": ["ls", 3]}, "item 1 must be a text, got 3"),
        ({"argv": ["ls", "a\0b"]}, "item 1 has a character that no program can be given"),
        ({"argv": ["ls", "\ud800"]}, "item 1 has a character that no program can be given"),
        ({"argv": ["ls"], "shell": True}, r"want one text like 'ls \| wc -l', got \['ls'\]"),
        ({"argv": ["ls"], "cwd": "a\0b"}, "cwd has a character"),
        ({"argv": ["ls"], "env": {"A=B": "x"}}, "the name of a variable can't be 'A=B'"),
        ({"argv": ["ls"], "env": {"": "x"}}, "the name of a variable can't be ''"),
        ({"argv": ["ls"], "env": {1: "x"}}, "the name of a variable must be a text, got 1"),
        ({"argv": ["ls"], "env": {"A": 1}}, "the variable 'A' must be a text, got 1"),
        ({"argv": ["ls"], "env": {"A": "a\0b"}}, "the variable 'A' has a character"),
        ({"argv": ["ls"], "env": [1]}, r"want the variables to add as a dict of texts, got \[1\]"),
        ({"argv": ["ls"], "env": ""}, "want the variables to add as a dict of texts, got ''"),
        ({"argv": ["ls"], "cwd": 5}, "cwd must be a text, got 5"),
        ({"argv": ["ls"], "cwd": b"/"}, "cwd must be a text, got b'/'"),
        ({"argv": ["ls"], "cwd": ""}, "want a folder as cwd"),
        ({"argv": ["ls"], "stdin": 5}, "want a text for the program to read, got 5"),
        ({"argv": ["ls"], "stdin": b"x"}, "want a text for the program to read, got b'x'"),
        ({"argv": "ls", "shell": "no"}, "want shell to be true or false, got 'no'"),
        ({"argv": [""]}, r"want a list with the program's name first, got \[''\]"),
        ({"argv": {"ls": 1}}, "want a list with the program's name first, got {'ls': 1}"),
        ({"argv": b"ls"}, "item 0 must be a text, got 108"),
        ({"argv": ["ls"], "timeout_s": 0}, "want a timeout above 0 and of at most 365d, got 0"),
        ({"argv": ["ls"], "timeout_s": "soon"}, "timeout: want a duration like 30s"),
        ({"argv": ["ls"], "timeout_s": True}, "timeout: want a duration like 30s"),
        ({"argv": ["ls"], "timeout_s": -1}, "timeout: want a duration like 30s"),
        ({"argv": ["ls"], "timeout_s": math.inf}, "timeout: want a duration like 30s"),
        ({"argv": ["ls"], "timeout_s": math.nan}, "timeout: want a duration like 30s"),
        ({"argv": ["ls"], "timeout_s": 1e30}, "timeout: want a duration like 30s"),
        ({"argv": ["ls"], "timeout_s": 10**400}, "timeout: want a duration like 30s"),
        ({"argv": ["ls"], "timeout_s": "366d"}, "want a timeout above 0 and of at most 365d, got '366d'"),
        ({"argv": "x" * 10**6}, "got 'x{98}…$"),
    ],
)
def test_what_is_no_command_is_refused_with_what_would_be_before_anything_starts(
    arguments: dict[str, object], message: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ValueError, match=message) as caught:
        run(**arguments, output_folder=out)  # type: ignore[arg-type]
    assert type(caught.value) is errors.CommandInvalid


def test_a_program_that_cannot_start_says_why(out: Path, tmp_path: Path) -> None:
    plain, orphan = tmp_path / "plain", tmp_path / "orphan"
    plain.write_text("x")
    orphan.write_text("#!/no/such/interpreter\n")
    orphan.chmod(0o700)
    with pytest.raises(errors.ProgramNotFound, match="there is no program 'no-such-program'"):
        run(["no-such-program"], output_folder=out)
    with pytest.raises(errors.ProgramNotFound, match="or the interpreter that its first line names is missing"):
        run([str(orphan)], output_folder=out)
    with pytest.raises(errors.ProgramNotExecutable, match="plain' can't be run as a program: Permission denied"):
        run([str(plain)], output_folder=out)
    with pytest.raises(errors.CommandFolderMissing, match="no-folder: No such file or directory"):
        run(["ls"], cwd=tmp_path / "no-folder", output_folder=out)
    with pytest.raises(errors.CommandFolderMissing, match="no-folder: No such file or directory"):
        run(["no-such-program"], cwd=tmp_path / "no-folder", output_folder=out)
    with pytest.raises(errors.CommandFolderMissing, match="no-such: No such file or directory"):
        run(["no-such"], cwd="no-such", output_folder=out)
    with pytest.raises(errors.CommandFolderMissing, match="plain: Not a directory"):
        run([str(plain)], cwd=plain, output_folder=out)
    with pytest.raises(errors.CommandStartError, match="Argument list too long"):
        run(["ls", "x" * 3_000_000], output_folder=out)


def test_a_program_that_fails_leaves_its_facts(out: Path) -> None:
    with pytest.raises(errors.CommandFailed) as caught:
        run("seq 20000; echo the reason >&2; exit 3", shell=True, output_folder=out)
    error = caught.value
    assert (error.exit_status, error.stderr_tail, error.stderr_file) == (3, "the reason\n", None)
    assert error.argv[-1].startswith("seq 20000")
    assert error.stdout_tail.endswith("\n20000\n")
    assert error.stdout_file is not None
    assert Path(error.stdout_file).read_text().endswith("\n20000\n")
    assert str(error).endswith("ended with exit status 3, saying 'the reason'")


def test_the_end_of_the_output_is_kept_even_if_its_file_is_not(out: Path) -> None:
    """A program may remove any file that its user may."""
    with pytest.raises(errors.CommandFailed) as caught:
        run(f"seq 20000; while ! rm {out}/stdout; do :; done 2>/dev/null; exit 3", shell=True, output_folder=out)
    assert caught.value.stdout_tail.endswith("\n20000\n")


def test_a_timeout_may_be_longer_than_the_system_can_wait_at_once(out: Path) -> None:
    """Which is 24 days."""
    assert run(["echo", "hi"], timeout_s="365d", output_folder=out).stdout == "hi\n"


def test_a_program_that_is_killed_names_the_signal(out: Path) -> None:
    with pytest.raises(errors.CommandKilled) as caught:
        run("kill -SEGV $$", shell=True, output_folder=out)
    assert caught.value.signal_name == "SIGSEGV"


def test_a_program_that_takes_too_long_is_killed_even_while_it_writes(out: Path, tmp_path: Path) -> None:
    started_at = time.monotonic()
    with pytest.raises(errors.CommandTimedOut, match=r"took longer than 0\.5 s and was killed, saying 'y'") as caught:
        run(tree(tmp_path / "pids", then="yes"), shell=True, timeout_s="500ms", output_folder=out)
    assert time.monotonic() - started_at < 10
    assert caught.value.timeout_s == 0.5
    assert alive(pids(tmp_path / "pids")) == []


@pytest.mark.parametrize(
    "error",
    [
        errors.CommandInvalid("problem"),
        errors.CommandFolderMissing("/folder", "reason"),
        errors.CommandStartError(["a"], "reason"),
        errors.ProgramNotFound(["a"], "reason"),
        errors.ProgramNotExecutable(["a"], "reason"),
        errors.CommandReaperLost(["a"]),
        errors.CommandNotKilled(["a"], [1, 2]),
        errors.CommandOutputLost(["a"], "file", "reason"),
        errors.CommandFailed(["a", "b c"], 1, "out", "err", "file", None),
        errors.CommandKilled(["a"], "SIGKILL", "", "", None, None),
        errors.CommandTimedOut(["a"], 1.5, "", "", None, None),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_comes_back_from_the_result_store_as_it_was(error: errors.CommandError) -> None:
    store = Backend(app=Celery(set_as_current=False), serializer="json")
    back = store.exception_to_python(json.loads(json.dumps(store.prepare_exception(error))))
    assert type(back) is type(error)
    assert vars(back) == vars(error)
    assert str(back) == str(error) != ""


# -- nothing is left


def test_what_a_program_leaves_behind_ends_with_it(out: Path, tmp_path: Path) -> None:
    """Neither is waited for a process that holds the output open, nor does a daemon in its own session get away."""
    started_at = time.monotonic()
    assert run(tree(tmp_path / "pids", then="echo hi"), shell=True, output_folder=out).stdout == "hi\n"
    assert time.monotonic() - started_at < 10
    assert alive(pids(tmp_path / "pids")) == []


def test_a_process_that_keeps_replacing_itself_is_caught(out: Path, tmp_path: Path) -> None:
    """Each generation lives for a moment only, and is gone before a list of processes has been read to its end."""
    marker = str(tmp_path)
    code = "import os\nwhile True:\n    if os.fork():\n        os._exit(0)\n    os.setsid()\n"
    run([sys.executable, "-S", "-c", code, marker], output_folder=out)
    assert [p for p in psutil.process_iter(["cmdline"]) if marker in (p.info["cmdline"] or [])] == []


def test_an_exception_in_the_task_ends_the_tree(out: Path, tmp_path: Path) -> None:
    """As Celery's soft time limit does: a signal's handler raises in the midst of waiting."""

    def interrupt(*_: object) -> None:
        raise RuntimeError("soft limit")

    before = signal.signal(signal.SIGUSR2, interrupt)
    main_thread = threading.main_thread().ident
    assert main_thread is not None

    def interrupt_when_started() -> None:
        pids(tmp_path / "pids")
        signal.pthread_kill(main_thread, signal.SIGUSR2)

    command = tree(tmp_path / "pids")
    watcher = threading.Thread(target=interrupt_when_started)
    watcher.start()
    try:
        with pytest.raises(RuntimeError, match="soft limit"):
            run(command, shell=True, output_folder=out)
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR2, before)
    assert alive(pids(tmp_path / "pids")) == []


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_the_tree_ends_when_the_process_of_the_task_is_killed(signum: signal.Signals, tmp_path: Path) -> None:
    code = f"from pathlib import Path; from tasks.command import run; run({tree(tmp_path / 'pids')!r}, shell=True,"
    code += " output_folder=Path('unused'))"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    tree_pids = pids(tmp_path / "pids")
    assert alive(tree_pids) == tree_pids
    caller.send_signal(signum)
    caller.wait()
    wait_until(lambda: not alive(tree_pids), what="the end of the tree")


def test_a_killed_reaper_is_an_error_and_takes_the_program_along(out: Path, tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/program; sleep 1000 & echo $! > {tmp_path}/background; "
    with pytest.raises(errors.CommandReaperLost, match="so the program was ended too"):
        run(f"{script} kill -KILL $PPID; sleep 1000", shell=True, output_folder=out)
    tree_pids = [int((tmp_path / name).read_text()) for name in ("program", "background")]
    wait_until(lambda: not alive(tree_pids), what="the end of the program")


def test_programs_run_beside_each_other_in_threads(out: Path) -> None:
    """None of them waits for another: no thread's program inherits what tells another thread's reaper to go on."""
    outputs: list[str] = []
    before = set(psutil.Process().children())

    def one(number: int) -> None:
        outputs.extend(run(["echo", str(number)], output_folder=out).stdout for _ in range(10))

    threads = [threading.Thread(target=one, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == sorted(f"{number}\n" for number in range(6) for _ in range(10))
    assert set(psutil.Process().children()) <= before
