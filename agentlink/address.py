"""The address of a Redis or Valkey of the user's own, or of Sentinels that know it: what may be written, and shown.

An address may hold a password. No message here repeats it, also where an address is too wrong to be taken apart.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

# What Celery and kombu call them; Valkey speaks Redis' protocol.
_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+socket": "redis+socket",
    "valkey+socket": "redis+socket",
    "sentinel": "sentinel",
}
_EXAMPLES = {"sentinel": "sentinel://localhost:26379/0"}
_SENTINEL_PORT = 26379
# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, one of them the closing zero.
SOCKET_PATH_MAX_BYTES = 103

_CERT_REQS = ("required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE")
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_HOST = re.compile(r"[\w.-]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*")
_USER = re.compile(r"[\w.-]*")
_SCHEME = re.compile(r"[a-zA-Z+]*://")
# Between Sentinels; the scheme need not be written again.
_SEPARATORS = re.compile(r"[;,](?:sentinel://)?", re.IGNORECASE)
# A port that is none, as where "@" and the host were forgotten.
_NO_PORT = re.compile(r"^([^/?#\[\]]*:)(?![0-9]*(?:[/?#]|$))[^/?#]*")
_PASSWORD_VALUE = re.compile(r"(passw[^=&]*=)[^&]*", re.IGNORECASE)
_DATABASE = re.compile(r"[0-9]{1,9}")
# Of several Sentinels one, as `checked_address` writes it.
_ONE_OF_SEVERAL = re.compile(r"sentinel://(?:[^@/?#;,]*@)?(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):[0-9]{1,5}/[0-9]{1,9}")


def checked_address(written: str) -> str:
    """The address as Celery and kombu take it: `redis://`, `rediss://`, `redis+socket://`, or one or more `sentinel://`.

    Raises:
        ValueError: what is wrong, and what would be right.
    """
    scheme, separator, rest = written.partition("://")
    spelt = _SCHEMES.get(scheme.lower()) if separator else None
    if spelt is None:
        raise _problem(f"want a URL that starts with {', '.join(s + '://' for s in _SCHEMES)}", written)
    if re.search(r"[\s\x00-\x1f\x7f#]", rest) or not written.isprintable():
        raise _problem("want no spaces, no '#' and no control characters; a password has them as %20 or %23", written)
    places = _SEPARATORS.split(rest) if spelt == "sentinel" else [rest]
    try:
        parts = [urlsplit(f"{spelt}://{place}") for place in places]
    except ValueError:  # brackets that do not match, as of an IPv6 address; its text may hold the password
        raise _problem("want an IPv6 address in brackets, and a password's own as %5B and %5D", written) from None
    if any("@" in part.path + part.query for part in parts):
        raise _problem("want the characters / ? and @ of a password as %2F, %3F and %40", written)
    if ";" in rest and spelt != "sentinel":  # Celery would take it for two addresses
        raise _problem("want one address, and the character ; of a password or a path as %3B", written)
    if problem := _problem_with(parts):
        raise _problem(problem, written)
    return _spelt_out(parts) if spelt == "sentinel" else f"{spelt}://{rest}"


def shown_address(address: str) -> str:
    """An address without its password; what takes the place of one is hidden too."""
    places = address.split(";")
    if all(_ONE_OF_SEVERAL.fullmatch(place) for place in places):
        return ";".join(map(_shown, places))
    return _shown(address)


def _shown(address: str) -> str:
    scheme = match[0] if (match := _SCHEME.match(address)) else ""
    user, at, place = address[len(scheme) :].rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        user = f"{name}:**" if colon and _USER.fullmatch(name) else "**"
    return scheme + user + at + _PASSWORD_VALUE.sub(r"\1**", _NO_PORT.sub(r"\1**", place))


def _problem(want: str, written: str) -> ValueError:
    shown = shown_address(written)
    return ValueError(f"{want}, got {(shown if len(shown) <= 200 else shown[:199] + '…')!r}")


def _problem_with(parts: list[SplitResult]) -> str | None:
    if parts[0].scheme == "sentinel":
        return _sentinels_problem(parts)
    (server,) = parts
    return _socket_problem(server) if server.scheme == "redis+socket" else _host_problem(server) or _tls_problem(server)


def _host_problem(parts: SplitResult) -> str | None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    example = _EXAMPLES.get(parts.scheme, "redis://localhost:6379/0")
    if not _HOST.fullmatch(unquote(parts.hostname or "")):
        return f"want a host, as in {example}"
    if parts.netloc.endswith(":") or (port is not None and not 1 <= port <= 65535):
        return f"want a port from 1 to 65535, as in {example}"
    database = _database_of(parts)
    if database and not _DATABASE.fullmatch(database):
        return f"want the number of a database after the host, as in {example}"
    return None


def _sentinels_problem(sentinels: list[SplitResult]) -> str | None:
    user, *others = (_user_of(sentinel) for sentinel in sentinels)
    if not {user, ""}.issuperset(others):
        return "want user and password before the first host only, and their characters ; and , as %3B and %2C"
    if problem := next(filter(None, map(_host_problem, sentinels)), None):
        return problem
    if any(sentinel.query for sentinel in sentinels):
        return "want nothing after the database; TLS is not taken with sentinel://"
    if len({_database_of(sentinel) for sentinel in sentinels} - {""}) > 1:
        return "want one number of a database, as in sentinel://one:26379;sentinel://two:26379/0"
    return None


def _spelt_out(sentinels: list[SplitResult]) -> str:
    """With user, port and database at every place: Celery looks for them at the first, kombu at any."""
    user = _user_of(sentinels[0])
    database = next(filter(None, map(_database_of, sentinels)), "0")
    hosts = [sentinel.netloc.rpartition("@")[2] for sentinel in sentinels]
    ports = ["" if sentinel.port else f":{_SENTINEL_PORT}" for sentinel in sentinels]
    return ";".join(f"sentinel://{user}{host}{port}/{database}" for host, port in zip(hosts, ports, strict=True))


def _user_of(parts: SplitResult) -> str:
    user, at, _ = parts.netloc.rpartition("@")
    return user + at


def _database_of(parts: SplitResult) -> str:
    return parts.path.removeprefix("/")


def _tls_problem(parts: SplitResult) -> str | None:
    values = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.scheme == "redis":
        tls_only = any(name.startswith("ssl_") for name in values)
        return f"want no {min(values)!r}{' but with rediss://' if tls_only else ''}" if values else None
    unknown = values.keys() - {"ssl_cert_reqs", *_TLS_FILES}
    if unknown:
        return f"want no {min(unknown)!r}; known are ssl_cert_reqs, {', '.join(_TLS_FILES)}"
    if values.get("ssl_cert_reqs") not in _CERT_REQS:
        return (
            "want ?ssl_cert_reqs=required at the end, so that the server must prove who it is "
            "(or optional, or none: anybody may pose as the server)"
        )
    missing = [name for name in _TLS_FILES if name in values and not Path(values[name]).is_file()]
    return f"want a file as {missing[0]}" if missing else None


def _socket_problem(parts: SplitResult) -> str | None:
    path = unquote(parts.path)
    if parts.hostname or not path.strip("/") or "\0" in path:
        return "want the absolute path of a Unix socket, as in redis+socket:///run/valkey.sock"
    if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
        return f"want the path of a socket of at most {SOCKET_PATH_MAX_BYTES} bytes"
    values = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = values.keys() - {"virtual_host"}
    if unknown:
        return f"want no {min(unknown)!r}; known is virtual_host, the number of a database"
    if not _DATABASE.fullmatch(values.get("virtual_host", "0")):
        return "want the number of a database as virtual_host, as in redis+socket:///run/valkey.sock?virtual_host=0"
    return None
