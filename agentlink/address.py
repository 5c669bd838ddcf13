"""The address of a Redis or Valkey of the user's own: what may be written, and what of it may be shown.

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
}
# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, one of them the closing zero.
SOCKET_PATH_MAX_BYTES = 103

_CERT_REQS = ("required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE")
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_HOST = re.compile(r"[\w.-]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*")
_USER = re.compile(r"[\w.-]*")
_SCHEME = re.compile(r"[a-zA-Z+]*://")
# A port that is none, as where "@" and the host were forgotten.
_NO_PORT = re.compile(r"^([^/?#\[\]]*:)(?![0-9]*(?:[/?#]|$))[^/?#]*")
_PASSWORD_VALUE = re.compile(r"(passw[^=&]*=)[^&]*", re.IGNORECASE)
_DATABASE = re.compile(r"[0-9]{1,9}")


def checked_address(written: str) -> str:
    """The address as Celery and kombu take it: `redis://`, `rediss://` or `redis+socket://`.

    Raises:
        ValueError: what is wrong, and what would be right.
    """
    scheme, separator, rest = written.partition("://")
    spelt = _SCHEMES.get(scheme.lower()) if separator else None
    if spelt is None:
        raise _problem(f"want a URL that starts with {', '.join(s + '://' for s in _SCHEMES)}", written)
    if re.search(r"[\s\x00-\x1f\x7f#]", rest) or not written.isprintable():
        raise _problem("want no spaces, no '#' and no control characters; a password has them as %20 or %23", written)
    try:
        parts = urlsplit(f"{spelt}://{rest}")
    except ValueError:  # brackets that do not match, as of an IPv6 address; its text may hold the password
        raise _problem("want an IPv6 address in brackets, and a password's own as %5B and %5D", written) from None
    if "@" in parts.path + parts.query:
        raise _problem("want the characters / ? and @ of a password as %2F, %3F and %40", written)
    problem = _socket_problem(parts) if spelt == "redis+socket" else _host_problem(parts) or _tls_problem(parts)
    if problem:
        raise _problem(problem, written)
    return f"{spelt}://{rest}"


def shown_address(address: str) -> str:
    """An address without its password; what takes the place of one is hidden too."""
    scheme = match[0] if (match := _SCHEME.match(address)) else ""
    user, at, place = address[len(scheme) :].rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        user = f"{name}:**" if colon and _USER.fullmatch(name) else "**"
    return scheme + user + at + _PASSWORD_VALUE.sub(r"\1**", _NO_PORT.sub(r"\1**", place))


def _problem(want: str, written: str) -> ValueError:
    shown = shown_address(written)
    return ValueError(f"{want}, got {(shown if len(shown) <= 200 else shown[:199] + '…')!r}")


def _host_problem(parts: SplitResult) -> str | None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if not _HOST.fullmatch(unquote(parts.hostname or "")):
        return "want a host, as in redis://localhost:6379/0"
    if parts.netloc.endswith(":") or (port is not None and not 1 <= port <= 65535):
        return "want a port from 1 to 65535, as in redis://localhost:6379/0"
    database = parts.path.removeprefix("/")
    if database and not _DATABASE.fullmatch(database):
        return "want the number of a database after the host, as in redis://localhost:6379/0"
    return None


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
