"""Write an answer for people: Markdown, and one HTML page that needs nothing else."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from agentlink.units import format_duration
from tasks.bm25 import Answer, Found
from tasks.words import marked

_TEMPLATE = Path(__file__).with_suffix(".html")
# Characters that no text file should hold, and that some viewers act on.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Report(Answer):
    """An answer, and where its report is."""

    duration_s: float
    report_markdown: str
    report_html: str


def write(answer: Answer, folder: Path, *, duration_s: float) -> Report:
    """Write `report.md` and `report.html` into `folder`, which only this user can open. Writing again replaces them."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    report = Report(
        **answer,
        duration_s=round(duration_s, 3),
        report_markdown=str(folder / "report.md"),
        report_html=str(folder / "report.html"),
    )
    _replace(folder / "report.md", markdown(report))
    _replace(folder / "report.html", html(report))
    return report


def _replace(path: Path, text: str) -> None:
    """Readers see the old file or the new one, never half of one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        os.unlink(temporary)  # noqa: PTH108
        raise


def markdown(report: Report) -> str:
    """The report as Markdown, in which nothing of a file or a question can act as markup."""
    lines = [f"# {_escaped(report['question'])}", "", _summary(report), ""]
    if report["note"]:
        lines += [report["note"], ""]
    for number, found in enumerate(report["passages"], start=1):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", found["text"])), default=0))
        lines += [f"## {number}. {_code(_citation(found, found['name']))}", ""]
        lines += [f"{_code(_citation(found, found['file']))}, score {found['score']:.2f}", ""]
        lines += [f"{fence}text", _plain(found["text"]), fence, ""]
    if report["skipped"]:
        lines += [f"## Not searched ({len(report['skipped'])})", ""]
        lines += [f"- {_code(entry['path'])}: {_escaped(entry['reason'])}" for entry in report["skipped"]]
        lines.append("")
    return "\n".join(lines)


def html(report: Report) -> str:
    """The report as one page without scripts or anything to load."""
    import jinja2  # only where reports are written, not in every process that calls a workflow

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    shown = [
        {
            "citation": _plain(_citation(found, found["name"])),
            "file": _plain(_citation(found, found["file"])),
            "link": Path(found["file"]).as_uri(),
            "page": found["page"],
            "score": f"{found['score']:.2f}",
            "pieces": marked(_plain(found["text"]), report["terms"]),
        }
        for found in report["passages"]
    ]
    skipped = [{"path": _plain(entry["path"]), "reason": _plain(entry["reason"])} for entry in report["skipped"]]
    return environment.get_template(_TEMPLATE.name).render(
        question=_plain(report["question"]),
        summary=_summary(report),
        note=report["note"],
        passages=shown,
        skipped=skipped,
    )


def _citation(found: Found, file: str) -> str:
    lines = f"{found['first_line']}"
    if found["last_line"] != found["first_line"]:
        lines += f"-{found['last_line']}"
    return f"{file}:{lines}" + (f" (page {found['page']})" if found["page"] else "")


def _summary(report: Report) -> str:
    found, searched, files = len(report["passages"]), report["passages_searched"], report["files"]
    return (
        f"{found} passage{'s' * (found != 1)} of {searched:,} in {files:,} file{'s' * (files != 1)}, "
        f"found in {format_duration(report['duration_s'])}."
    )


def _plain(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _one_line(text: str) -> str:
    return _plain(" ".join(text.split()))


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", _one_line(text))


def _code(text: str) -> str:
    """An inline code span: delimited by more backticks than the text has in a row."""
    text = _plain(text).replace("\n", "\N{REPLACEMENT CHARACTER}")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{space}{text}{space}{ticks}"
