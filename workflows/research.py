"""Research: the passages in a set of files that answer a question best, as a result and as a report to read.

    run = research.delay(["docs", "~/notes.md"], "how does asyncio cancel a task?")
    run.get()["report_html"]

The files are counted in parallel, in batches; the counts are merged and ranked; the report is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from celery import chord
from celery.canvas import Signature

from agentlink import settings
from agentlink.home import from_home
from tasks import bm25, files, passages, report
from tasks.app import task
from tasks.words import words
from workflows.base import workflow
from workflows.errors import CallRefused

TOP_MAX = 1000
QUESTION_MAX_CHARACTERS = 10_000

# Enough for the processes to end at about the same time, and few enough that messages cost next to nothing.
_BATCHES_PER_PROCESS = 4
# A tenth of a second of work; below that, a message costs more than it gains.
_BATCH_MIN_BYTES = 2_000_000


@task(memory="300MB")
def scan(batch: dict[str, list[str]], question: str, top: int, skipped: list[files.Skipped]) -> passages.Scan:
    """Count one batch of files, and pass on what was skipped before."""
    counted = passages.scan(batch, question, top)
    counted["skipped"] += skipped
    return counted


@task(memory="300MB")
def rank(scans: list[passages.Scan], question: str, top: int) -> bm25.Answer:
    """Find the best passages of all batches."""
    return bm25.rank(scans, question, top=top)


@task(memory="100MB", bind=True)
def write_report(self: Any, answer: bm25.Answer, started_at: float) -> report.Report:
    """Write the answer into the run's folder."""
    folder = settings.load().runs_folder / self.request.root_id
    return report.write(answer, folder, duration_s=max(0.0, time.time() - started_at))


def prepare(paths: Any, question: Any, *, top: Any = 8) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Refuse what makes no sense where the call is made, and make paths absolute while the caller's folder is known.

    Raises:
        CallRefused: with what was given and what would be right.
        PathMissing: one of the paths does not exist.
    """
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= TOP_MAX:
        raise CallRefused("research", f"want top between 1 and {TOP_MAX}, got {top!r}")
    if not isinstance(question, str) or not words(question):
        raise CallRefused("research", f"want a question with at least one word, got {question!r}")
    if len(question) > QUESTION_MAX_CHARACTERS:
        raise CallRefused("research", f"want a question of at most {QUESTION_MAX_CHARACTERS:,} characters")
    return (_absolute(paths), question), {"top": top}


def _absolute(paths: Any) -> list[str]:
    several = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    if not isinstance(several, Sequence) or not several:
        raise CallRefused("research", f"want a path or a list of paths, got {paths!r}")
    absolute = []
    for path in several:
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
        if not isinstance(text, str) or not text or "\0" in text or not files.is_utf8(text):
            raise CallRefused("research", f"want a path, got {path!r}")
        absolute.append(os.path.abspath(os.path.expanduser(text)))  # noqa: PTH100, PTH111 - resolve() follows links
        files.check_exists(absolute[-1])
    return absolute


def show(result: report.Report) -> str:
    """The passages, and where the whole report is; what was not searched is in there."""
    answer = report.markdown(report.Report(**(result | {"skipped": []})))
    left_out = f"{len(result['skipped'])} files and folders were not searched; the report names them.  \n"
    where = "  \n".join(f"`{from_home(result[name])}`" for name in ("report_html", "report_markdown"))
    return f"{answer}\n---\n{left_out if result['skipped'] else ''}The report:\n\n{where}\n"


@workflow(prepare=prepare, show=show)
def research(paths: list[str], question: str, *, top: int = 8) -> Signature:
    """Search `paths` for `question`, rank all passages and write a report with the `top` best."""
    started_at = time.time()
    found, skipped = files.list_files(paths)
    batches = files.batches(found, _BATCHES_PER_PROCESS * settings.load().concurrency, _BATCH_MIN_BYTES)
    header = [
        # What the listing left out travels with one batch: in the chord's body it would travel with every one.
        scan.s(files.by_folder(batch), question, top, skipped if batch is batches[0] else [])
        for batch in batches
    ]
    return chord(header, rank.s(question, top)) | write_report.s(started_at)
