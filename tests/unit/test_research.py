"""The research workflow without a broker: what it refuses, what it builds, and what it finds."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tasks import bm25, files, passages
from tasks.files import PathMissing
from workflows.errors import CallRefused
from workflows.research import prepare, research


class TestPrepare:
    def test_paths_become_absolute_where_the_call_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A worker runs in another folder, maybe as somebody with another home."""
        (tmp_path / "docs").mkdir()
        (tmp_path / "home").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert prepare(["docs", Path("docs/.."), "~"], "why?!  because", top=3) == (
            ([str(tmp_path / "docs"), str(tmp_path), str(tmp_path / "home")], "why?!  because"),
            {"top": 3},
        )

    def test_one_path_will_do(self, tmp_path: Path) -> None:
        assert prepare(str(tmp_path), "why") == (([str(tmp_path)], "why"), {"top": 8})
        assert prepare(tmp_path, "why") == (([str(tmp_path)], "why"), {"top": 8})

    def test_a_link_stays_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path)
        assert prepare(tmp_path / "link", "why")[0][0] == [str(tmp_path / "link")]

    @pytest.mark.parametrize(
        ("changed", "problem"),
        [
            ({"question": ""}, "want a question with at least one word, got ''"),
            ({"question": " ?! "}, "want a question with at least one word"),
            ({"question": None}, "want a question with at least one word, got None"),
            ({"question": "why " * 2501}, "want a question of at most 10,000 characters"),
            ({"top": 0}, "want top between 1 and 1000, got 0"),
            ({"top": 1001}, "want top between 1 and 1000, got 1001"),
            ({"top": True}, "want top between 1 and 1000, got True"),
            ({"top": "8"}, "want top between 1 and 1000, got '8'"),
            ({"paths": []}, r"want a path or a list of paths, got \[\]"),
            ({"paths": 3}, "want a path or a list of paths, got 3"),
            ({"paths": [3]}, "want a path, got 3"),
            ({"paths": ""}, "want a path, got ''"),
            ({"paths": b"/"}, "want a path"),
            ({"paths": ["/a\0b"]}, "want a path"),
            ({"paths": ["/\udce9t\udce9"]}, "want a path"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
        call = {"paths": [str(tmp_path)], "question": "why", "top": 8} | changed
        with pytest.raises(CallRefused, match=problem):
            prepare(call["paths"], call["question"], top=call["top"])

    def test_a_missing_path_is_an_error_of_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(PathMissing) as caught:
            prepare([str(tmp_path), str(tmp_path / "gone")], "why")
        assert caught.value.path == str(tmp_path / "gone")


class TestCanvas:
    @staticmethod
    def shape(canvas: Any) -> tuple[list[str], list[str]]:
        header = canvas.tasks if isinstance(canvas.tasks, list) else canvas.tasks.tasks
        return [step.name.rsplit(".")[-1] for step in header], [step.name.rsplit(".")[-1] for step in canvas.body.tasks]

    def test_counts_in_batches_then_ranks_then_reports(self, tmp_path: Path) -> None:
        for number in range(50):
            (tmp_path / f"{number}.txt").write_text("word " * 50_000)
        header, body = self.shape(research.build([str(tmp_path)], "why"))
        assert set(header) == {"scan"}
        assert len(header) > 1
        assert body == ["rank", "write_report"]

    def test_has_one_batch_when_there_is_nothing_to_search(self, tmp_path: Path) -> None:
        """A chord with an empty header would be another thing to Celery."""
        assert self.shape(research.build([str(tmp_path)], "why")) == (["scan"], ["rank", "write_report"])

    def test_is_the_same_for_the_same_files(self, tmp_path: Path) -> None:
        for number in range(9):
            (tmp_path / f"{number}.txt").write_text("word " * 100_000)
        canvases = [research.build([str(tmp_path)], "why") for _ in range(2)]
        assert canvases[0].tasks == canvases[1].tasks

    def test_is_not_built_when_a_path_has_gone_since(self, tmp_path: Path) -> None:
        with pytest.raises(PathMissing):
            research.build([str(tmp_path / "gone")], "why")


def test_pythons_own_library_answers_how_asyncio_cancels_a_task() -> None:
    found, _ = files.list_files([sysconfig.get_path("stdlib")])
    question = "how does asyncio cancel a task?"
    scans = [passages.scan(files.by_folder(batch), question, 8) for batch in files.batches(found, 4)]
    answer = bm25.rank(scans, question, top=8)
    assert answer["passages"][0]["name"].startswith("asyncio/")
    assert "cancel" in answer["passages"][0]["text"]
