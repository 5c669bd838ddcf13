"""Secrets are not shown: which values are taken for one, in arguments and in text."""

from __future__ import annotations

from typing import Any

import pytest

from agentlink.masking import masked, masked_call, masked_text


@pytest.mark.parametrize(
    "name", ["token", "api_key", "DB_PASSWORD", "authToken", "client_secret", "X-Api-Key", "Authorization", "passwd"]
)
def test_a_value_named_like_a_secret_is_masked(name: str) -> None:
    assert masked({name: "hush", "user": "anna"}) == {name: "***", "user": "anna"}


def test_secrets_are_found_however_deep_they_are() -> None:
    assert masked([{"login": {"user": "anna", "password": {"old": "a", "new": 1}}}]) == [
        {"login": {"user": "anna", "password": "***"}}
    ]


@pytest.mark.parametrize("value", [{"max_tokens": 4096}, {"token": None}, {"use_key": True}, {"tokens_left": 0.5}])
def test_what_can_be_no_secret_is_shown(value: Any) -> None:
    assert masked(value) == value


def test_a_number_may_be_a_password() -> None:
    assert masked({"password": 1234}) == {"password": "***"}


def test_in_a_command_line_the_word_after_a_secret_option_is_masked() -> None:
    command = ["curl", "--api-key", "hush", "--token=hush", "-H", "Authorization: Bearer hush", "https://example.org"]
    assert "hush" not in str(masked(command))
    assert [masked(command)[number] for number in (0, 1, 4, 6)] == ["curl", "--api-key", "-H", "https://example.org"]


def test_what_was_given_is_left_as_it_is() -> None:
    given = {"token": "hush", "list": ["--password", "hush"]}
    masked(given)
    assert given == {"token": "hush", "list": ["--password", "hush"]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("connecting to redis://anna:hush@host:6379/0", "connecting to redis://anna:***@host:6379/0"),
        ("rediss://:hush@host", "rediss://:***@host"),
        ("token=hush, user=anna", "token=***, user=anna"),
        ("https://example.org/?api_key=hush&page=2", "https://example.org/?api_key=***&page=2"),
        ("{'password': 'hu\"sh', 'user': 'anna'}", "{'password': '***', 'user': 'anna'}"),
        ('{"secret": "hush and hush", "n": 1}', '{"secret": "***", "n": 1}'),
        (r"{\"api_key\": \"hush\"}", r"{\"api_key\": \"***\"}"),
        ("Authorization: Bearer hush", "Authorization: Bearer ***"),
        ("AWS_SECRET_ACCESS_KEY=hush make", "AWS_SECRET_ACCESS_KEY=*** make"),
    ],
)
def test_secrets_in_text(text: str, shown: str) -> None:
    assert masked_text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "KeyError: 'user'",
        "no such key: user",
        "read 300 tokens from http://example.org:8080/a",
        "the secret of good tea",
        "Task workflows.research[1] succeeded in 0.1s: None",
    ],
)
def test_text_that_only_speaks_of_such_things_is_shown(text: str) -> None:
    assert masked_text(text) == text


def test_a_positional_argument_goes_by_its_parameters_name() -> None:
    def ask(question: str, api_key: str, *tokens: str, **options: str) -> None: ...

    assert masked_call(ask, ("why?", "hush", "hush"), {"password": "hush", "model": "small"}) == (
        ["why?", "***", "***"],
        {"password": "***", "model": "small"},
    )


def test_arguments_of_what_has_no_signature_are_masked_by_what_is_in_them() -> None:
    assert masked_call(int, ("1", {"token": "hush"}), {}) == (["1", {"token": "***"}], {})
