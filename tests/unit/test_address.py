"""Addresses of a broker: which are taken, as what, and that none shows its password."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from celery import Celery
from celery.backends.redis import RedisBackend, SentinelBackend
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection

from agentlink.address import checked_address, shown_address

TLS = "ssl_cert_reqs=required"


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("redis://host", "redis://host"),
        ("redis://user:secret@host:6380/2", "redis://user:secret@host:6380/2"),
        ("redis://:p%40ss@[::1]:6379/0", "redis://:p%40ss@[::1]:6379/0"),
        ("valkey://host/1", "redis://host/1"),
        (f"rediss://host/0?{TLS}", f"rediss://host/0?{TLS}"),
        ("VALKEYS://host?ssl_cert_reqs=CERT_NONE", "rediss://host?ssl_cert_reqs=CERT_NONE"),
        ("redis+socket:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("valkey+socket:///run/a%20b?virtual_host=3", "redis+socket:///run/a%20b?virtual_host=3"),
    ],
)
def test_an_address_is_taken_as_celery_takes_it(written: str, taken: str) -> None:
    """Valkey speaks Redis' protocol; Celery does not know its name."""
    assert checked_address(written) == taken
    with Connection(taken) as connection:
        assert connection.info()["transport"] in ("redis", "rediss")
    with Celery(set_as_current=False) as app:
        assert RedisBackend(app=app, url=taken.removeprefix("redis+") if "+" in taken else taken).connparams


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("sentinel://host", ["sentinel://host:26379/0"]),
        ("SENTINEL://[::1]:5/", ["sentinel://[::1]:5/0"]),
        (
            "sentinel://u:p%3B@one:1;sentinel://two/3",
            ["sentinel://u:p%3B@one:1/3", "sentinel://u:p%3B@two:26379/3"],
        ),
        ("sentinel://:p@one/3;sentinel://:p@two/3", ["sentinel://:p@one:26379/3", "sentinel://:p@two:26379/3"]),
        ("sentinel://one,two:2,[::1]:3/1", ["sentinel://one:26379/1", "sentinel://two:2/1", "sentinel://[::1]:3/1"]),
    ],
)
def test_sentinels_are_taken_with_all_at_each_of_them(written: str, taken: list[str]) -> None:
    """Celery reads the user and the database at the first of them, kombu at the one it has come to."""
    address = checked_address(written)
    assert address.split(";") == taken
    assert checked_address(address) == address
    with Connection(address) as connection:
        assert connection.info()["transport"] == "sentinel"
        for _ in taken:
            assert (connection.virtual_host, connection.password) == (taken[0][-1], _password(taken[0]))
            connection.maybe_switch_next()
    with Celery(set_as_current=False) as app:
        params = SentinelBackend(app=app, url=address).connparams
        assert len(params["hosts"]) == len(taken)
        assert (params["db"], params["password"]) == (int(taken[0][-1]), _password(taken[0]))


def _password(address: str) -> str | None:
    return unquote(urlsplit(address).password or "") or None


@pytest.mark.parametrize(
    ("written", "want"),
    [
        ("", "want a URL that starts with redis://"),
        ("amqp://host", "want a URL that starts with redis://"),
        ("redis:/x", "want a URL that starts with redis://"),
        ("redis:///0", "want a host"),
        ("redis://:6379", "want a host"),
        ("redis://a,b/0", "want a host"),
        ("redis://a;redis://b", "want one address, and the character ; of a password or a path as %3B"),
        ("redis://[::1/0", "want an IPv6 address in brackets"),
        ("redis://host:99999/0", "want a port from 1 to 65535"),
        ("redis://host:0/0", "want a port from 1 to 65535"),
        ("redis://host:/0", "want a port from 1 to 65535"),
        ("redis://host:http/0", "want a port from 1 to 65535"),
        ("redis://host/main", "want the number of a database"),
        ("redis://host/0/1", "want the number of a database"),
        ("redis://host/-1", "want the number of a database"),
        ("redis://host /0", "want no spaces"),
        ("redis://host/0\n", "want no spaces"),
        ("redis://host/0#1", "want no spaces"),
        ("redis://host/0?timeout=3", "want no 'timeout'"),
        (f"redis://host/0?{TLS}", "want no 'ssl_cert_reqs' but with rediss://"),
        ("rediss://host/0", r"want \?ssl_cert_reqs=required at the end, .*\(or optional, or none"),
        ("rediss://host/0?ssl_cert_reqs=yes", r"want \?ssl_cert_reqs=required"),
        (f"rediss://host/0?{TLS}&timeout=3", "want no 'timeout'; known are ssl_cert_reqs, ssl_ca_certs"),
        (f"rediss://host/0?{TLS}&ssl_ca_certs=/no/such/file", "want a file as ssl_ca_certs"),
        ("sentinel://", "want a host, as in sentinel://localhost:26379/0"),
        ("sentinel://a;", "want a host"),
        ("sentinel://a;redis://b", "want a port"),
        ("sentinel://a;sentinel://b:99999", "want a port from 1 to 65535, as in sentinel://localhost:26379/0"),
        ("sentinel://a/0;b/main", "want the number of a database"),
        ("sentinel://a/0;b/1", "want one number of a database"),
        ("sentinel://a;u:p@b", "want user and password before the first host only"),
        ("sentinel://u:p;q@b", "want user and password before the first host only, and their characters ; and , as"),
        ("sentinel://u:p/q@b", "want the characters / [?] and @ of a password"),
        (f"sentinel://a/0?{TLS}", "want nothing after the database; TLS is not taken with sentinel://"),
        ("redis+socket://run/valkey.sock", "want the absolute path of a Unix socket"),
        ("redis+socket:///", "want the absolute path of a Unix socket"),
        ("redis+socket:///" + "x" * 200, "want the path of a socket of at most 103 bytes"),
        ("redis+socket:///run/valkey.sock?db=1", "want no 'db'; known is virtual_host"),
        ("redis+socket:///run/valkey.sock?virtual_host=x", "want the number of a database as virtual_host"),
    ],
)
def test_what_is_no_address_is_refused_with_what_would_be(written: str, want: str) -> None:
    with pytest.raises(ValueError, match=f"^{want}"):
        checked_address(written)


def test_files_for_tls_that_are_there_are_taken(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    written = f"rediss://host/0?{TLS}&ssl_ca_certs={tmp_path}/ca.pem"
    assert checked_address(written) == written


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:secret@host:6380/2", "redis://user:**@host:6380/2"),
        ("redis://:secret@[::1]/0", "redis://:**@[::1]/0"),
        ("redis://secret@host", "redis://**@host"),
        (f"rediss://u:secret@host/0?{TLS}", f"rediss://u:**@host/0?{TLS}"),
        (
            "redis+socket://:secret@/run/valkey.sock?virtual_host=0",
            "redis+socket://:**@/run/valkey.sock?virtual_host=0",
        ),
        ("redis+socket:///run/a:b", "redis+socket:///run/a:b"),
        ("sentinel://u:secret@a:1/0", "sentinel://u:**@a:1/0"),
        ("sentinel://u:secret@a:1/0;sentinel://:secret@b:2/0", "sentinel://u:**@a:1/0;sentinel://:**@b:2/0"),
        ("sentinel://a:1/0;sentinel://b:2/0", "sentinel://a:1/0;sentinel://b:2/0"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, shown: str) -> None:
    assert shown_address(address) == shown


@pytest.mark.parametrize(
    "written",
    [
        "u:secret@host",
        "redis:u:secret@host",
        "u:secret@host://x",
        "redis://:secret/0",
        "redis://u:1/secret@host",
        "redis://u:1?secret=1@host",
        "redis://u:#secret@host",
        "redis://u:[secret@host",
        "redis://u:secret@host@h",
        "redis://u:sec://secret@h:x",
        "redis://u:secret@host:99999/0",
        "redis://host?password=secret",
        "redis+socket:///run/x?password=secret",
        "redis://u:;secret@host",
        "sentinel://u:;secret@host",
        "sentinel://u:,secret@host",
        "sentinel://a;u:secret@host",
        "sentinel://u:secret@a;b:x",
        "sentinel://u:secret@a;sentinel://u:secret@b",
        "sentinel://u:/secret;sentinel://@host",
        "sentinel://u:1/0;sentinel://secret@host",
    ],
)
def test_no_message_repeats_a_password(written: str) -> None:
    """Also where the address is too wrong to tell what is the password."""
    assert "secret" not in shown_or_refused(written)


TEXTS = st.text(alphabet=":/@?#[]%&=.+;,s1 \n\0\ud800", max_size=12)


@given(before=TEXTS, after=TEXTS)
def test_whatever_is_written_is_taken_or_refused_in_words(before: str, after: str) -> None:
    shown_or_refused(before + after)
    for scheme in ("redis", "rediss", "sentinel"):
        assert "secret" not in shown_or_refused(f"{scheme}://u:{before}secret{after}@host")
        assert "secret" not in shown_or_refused(f"{scheme}://u:secret@{before}")
        assert "secret" not in shown_or_refused(f"{scheme}://host;{scheme}://u:secret@{before}")


def shown_or_refused(written: str) -> str:
    try:
        return shown_address(checked_address(written))
    except ValueError as error:
        assert str(error).startswith("want ")  # noqa: PT017 - the other outcome is as good
        return str(error)
