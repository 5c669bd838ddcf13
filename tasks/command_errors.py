"""How running a program can fail: one class for each fact a caller acts on."""

from __future__ import annotations

import shlex

from tasks.errors import TaskError


class CommandError(TaskError):
    """A program could not be run, or did not end well."""


class CommandInvalid(CommandError, ValueError):
    """What was asked for is not a command; nothing was started."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"not a command: {self.problem}"


class CommandFolderMissing(CommandError):
    """The folder to run the program in is not there, or can't be entered."""

    def __init__(self, folder: str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"can't run a program in the folder {self.folder}: {self.reason}"


class CommandStartError(CommandError):
    """The program did not start: `reason` is the system's."""

    def __init__(self, argv: list[str], reason: str) -> None:
        super().__init__(argv, reason)
        self.argv, self.reason = argv, reason

    def __str__(self) -> str:
        return f"can't start {_shown(self.argv)}: {self.reason}"


class ProgramNotFound(CommandStartError):
    """There is no such program."""

    def __str__(self) -> str:
        return f"there is no program {self.argv[0]!r}, or the interpreter that its first line names is missing"


class ProgramNotExecutable(CommandStartError):
    """The file is there, but the system can't run it as a program."""

    def __str__(self) -> str:
        return f"{self.argv[0]!r} can't be run as a program: {self.reason}"


class CommandReaperLost(CommandError):
    """The process that looks after the program was killed, and the program with it: nobody knows how far it got."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__(argv)
        self.argv = argv

    def __str__(self) -> str:
        return f"the process that looks after {_shown(self.argv)} was killed, so the program was ended too"


class CommandNotKilled(CommandError):
    """Processes of the program run on: they changed their user, and this one may not kill them."""

    def __init__(self, argv: list[str], pids: list[int]) -> None:
        super().__init__(argv, pids)
        self.argv, self.pids = argv, pids

    def __str__(self) -> str:
        pids = ", ".join(map(str, self.pids))
        return f"{_shown(self.argv)} left processes that belong to another user and can't be killed: {pids}"


class CommandOutputLost(CommandError):
    """The program's input or output could not be kept in a file, so the program was ended."""

    def __init__(self, argv: list[str], file: str, reason: str) -> None:
        super().__init__(argv, file, reason)
        self.argv, self.file, self.reason = argv, file, reason

    def __str__(self) -> str:
        return f"{_shown(self.argv)} was ended because {self.file} can't be written: {self.reason}"


class CommandEndedBadly(CommandError):
    """The program ran, and then failed, was killed or took too long; the end of what it wrote is kept here."""

    def __init__(
        self,
        argv: list[str],
        cause: int | float | str,
        stdout_tail: str,
        stderr_tail: str,
        stdout_file: str | None,
        stderr_file: str | None,
    ) -> None:
        super().__init__(argv, cause, stdout_tail, stderr_tail, stdout_file, stderr_file)
        self.argv, self.cause = argv, cause
        self.stdout_tail, self.stderr_tail = stdout_tail, stderr_tail
        self.stdout_file, self.stderr_file = stdout_file, stderr_file

    def _last_words(self) -> str:
        lines = (self.stderr_tail.strip() or self.stdout_tail.strip()).splitlines()
        return f", saying {_clipped(lines[-1].strip())!r}" if lines else ""


class CommandFailed(CommandEndedBadly):
    """The program ended with an exit status other than 0."""

    @property
    def exit_status(self) -> int:
        return int(self.cause)

    def __str__(self) -> str:
        return f"{_shown(self.argv)} ended with exit status {self.exit_status}{self._last_words()}"


class CommandKilled(CommandEndedBadly):
    """An OS signal ended the program."""

    @property
    def signal_name(self) -> str:
        return str(self.cause)

    def __str__(self) -> str:
        return f"{_shown(self.argv)} was killed by {self.signal_name}{self._last_words()}"


class CommandTimedOut(CommandEndedBadly):
    """The program took longer than it was given, and was killed."""

    @property
    def timeout_s(self) -> float:
        return float(self.cause)

    def __str__(self) -> str:
        return f"{_shown(self.argv)} took longer than {self.timeout_s:g} s and was killed{self._last_words()}"


def _shown(argv: list[str]) -> str:
    return _clipped(shlex.join(argv))


def _clipped(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:199]}…"
