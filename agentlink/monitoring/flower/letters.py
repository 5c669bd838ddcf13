"""The Dead letters page: messages that nobody tries any more, looked at, sent again or dropped."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Any

from redis import Redis
from tornado.web import HTTPError

import workflows  # noqa: F401 - it has a say when a letter of a run is sent again
from agentlink import dead
from agentlink.broker import dead_letters
from agentlink.broker.dead_letters import DeadLetter
from agentlink.masking import masked, masked_text
from agentlink.monitoring.flower.base import Change, Ours
from agentlink.monitoring.flower.stream import Stream
from agentlink.monitoring.flower.words import shown_call
from tasks import app

ROWS = 100
_TEXT_MAX_CHARS = 400
_LETTERS_AT_ONCE_MAX = 500


class LettersStream(Stream):
    """The letters, newest first, live."""

    async def get(self) -> None:  # type: ignore[override]
        """Tell of the letters of a `task`, or with a `text`; of a `page`, of which the first is 0."""
        try:
            self.skip = ROWS * max(0, int(self.word("page", "0")))
        except ValueError as error:
            raise HTTPError(400, "%s", error) from error
        self.task, self.text = self.word("task") or None, self.word("text") or None
        self.said: dict[str, Any] = {}
        await super().get()

    def look(self) -> dict[str, Any]:
        """All rows, if any has changed."""
        found = dead_letters.find(self.client, task=self.task, text=self.text)
        letters = list(islice(found, self.skip, self.skip + ROWS + 1))
        said = {
            "rows": [_row(letter) for letter in letters[:ROWS]],
            "more": len(letters) > ROWS,
            "skip": self.skip,
            "total": dead_letters.count(self.client),
        }
        if said == self.said:
            return {}
        self.said = said
        return {"letters": said}


class Letter(Ours):
    """One letter."""

    async def get(self, letter_id: str) -> None:
        """All there is of it, secrets masked."""
        self.answer(await self.told(_everything, self.client, letter_id))


class LettersChange(Change):
    """Letters are sent again, or dropped."""

    async def post(self, action: str) -> None:
        """Do it to each of the `letters`; answer with how many."""
        ids = self.asked().get("letters")
        if not isinstance(ids, list) or not 0 < len(ids) <= _LETTERS_AT_ONCE_MAX:
            raise HTTPError(400, "want a list of 1 to %s letters", _LETTERS_AT_ONCE_MAX)
        change = {"again": _send_again, "drop": dead_letters.drop}[action]
        self.answer({"changed": await self.told(change, self.client, [str(letter_id) for letter_id in ids])})


def _row(letter: DeadLetter) -> dict[str, Any]:
    facts = asdict(letter)
    del facts["traceback"]
    return facts | {name: masked_text(facts[name])[:_TEXT_MAX_CHARS] for name in ("reason", "arguments")}


def _everything(client: Redis, letter_id: str) -> dict[str, Any]:
    facts = dead.everything(client, letter_id)
    message = facts.pop("message")
    body, task = message.pop("body"), app.tasks.get(facts["task"])
    if isinstance(body, list) and task is not None:
        facts["arguments"] = shown_call(task, *body[:2])
    headers = message["headers"] | {"argsrepr": None, "kwargsrepr": None}  # the arguments again, by no names
    shown: dict[str, Any] = masked(facts | {"message": message | {"headers": headers}})
    return shown


def _send_again(client: Redis, letter_ids: list[str]) -> int:
    letters = [letter for letter in dead_letters.find(client) if letter.id in set(letter_ids)]
    return dead_letters.send_again(client, letters)
