"""A home that only one test uses, and the `agentlink` commands it runs there."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from agentlink.settings import Settings
from tests.integration.system import System
from tests.waiting import wait_until


@dataclass
class Command:
    """An `agentlink` command that runs, and what it has printed."""

    process: subprocess.Popen[bytes]
    output_path: Path

    @property
    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def wait(self, timeout_s: float = 30) -> int:
        """Its exit status."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.process.args} goes on after {timeout_s} s:\n{self.output[-3000:]}") from None

    def wait_for(self, text: str, timeout_s: float = 20) -> None:
        """Wait until it has printed this."""
        wait_until(
            lambda: text in self.output or self.process.poll() is not None,
            what=f"{text!r} in the output of {self.process.args}",
            timeout_s=timeout_s,
        )
        assert text in self.output, f"it ended without {text!r}:\n{self.output[-3000:]}"


@dataclass
class OwnHome(System):
    """An AgentLink that no other test shares."""

    commands: list[Command] = field(default_factory=list)

    def agentlink(
        self, *words: str, folder: Path | None = None, timeout_s: float = 40, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(words), cwd=folder or self.folder, env=self.environment(**settings), text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def start_agentlink(self, *words: str, folder: Path | None = None, **settings: str) -> Command:
        """Run a command in the background, with its output in one file."""
        output_path = self.folder / f"{self.settings.home.name}-command{len(self.commands)}"
        with output_path.open("wb") as output:
            process = subprocess.Popen(
                self._command(words), cwd=folder or self.folder, env=self.environment(**settings),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self.commands.append(Command(process, output_path))
        return self.commands[-1]

    def up(self, **settings: str) -> Command:
        """`agentlink up` in the foreground, when it says that it is up."""
        command = self.start_agentlink("up", **settings)
        command.wait_for("AgentLink is up")
        return command

    def status(self) -> dict[str, Any]:
        """`agentlink status --json`."""
        answer = self.agentlink("status", "--json")
        assert answer.returncode == 0, answer.stderr
        facts: dict[str, Any] = json.loads(answer.stdout)
        return facts

    def processes(self, part_of_command: str = "") -> list[psutil.Process]:
        """All processes of this home, or those with something in their command line."""
        return [process for process in psutil.process_iter() if self._is_ours(process, part_of_command)]

    def kill_all(self) -> bool:
        """Kill everything there is; return whether there was nothing."""
        for process in (left := self.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return not left and all(command.process.poll() is not None for command in self.commands)

    def _is_ours(self, process: psutil.Process, part_of_command: str) -> bool:
        home = str(self.settings.home)
        try:
            command = " ".join(process.cmdline())
            # The broker writes its title over its environment; its socket's path is in the title.
            ours = home in command or process.environ().get("AGENTLINK_HOME") == home
            return ours and part_of_command in command and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def _command(self, words: tuple[str, ...]) -> list[str]:
        return [str(Path(sys.executable).with_name("agentlink")), *words]


@contextlib.contextmanager
def own_home(folder: Path, name: str = "home") -> Iterator[OwnHome]:
    """A home that does not exist yet; afterwards every process of it is killed, and it is removed."""
    # Not below pytest's own folder: the broker's socket lives in it and a Unix socket's path is limited.
    parent = Path(tempfile.mkdtemp(prefix="al-"))
    home = OwnHome(Settings(home=parent / name), folder)
    try:
        yield home
    finally:
        wait_until(home.kill_all, what=f"the end of {home.processes()}")
        shutil.rmtree(parent)
