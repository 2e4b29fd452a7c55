"""Requests by hand: no way to write one gets round the keys."""

import pytest

from tests.keys import secret_of
from tests.test_hostile import ask
from tests.wire import TABLE

KEY = f"authorization: Bearer {secret_of('reader')}".encode()
OWN_KEY = f"x-api-key: {secret_of('reader')}".encode()
METHODS = ["HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "PATCH", "DELETE", "PROPFIND", "M-SEARCH", "FOO", "get", "Get"]
ELSEWHERE = [
    *("/%6divez", "/livez%2f", "/livez/", "//livez", "/./livez", "/x/../livez", "/livez;x", "/LIVEZ", "/livez%3f"),
    *("/livez%00", "/livez%0a", "/livez/../models", "/livez%2f..%2fmodels", "/livez\\", "/%ff", "/models/..%2flivez"),
    *("http://x/models", "http://livez", "models", "*", "/static-offline-docs/..%2f..%2fapp.py"),
]
NOT_OURS = [
    *("/%6detrics", "/metrics%0a", "/metrics/", "/metrics%20", "//metrics", "HTTP://livez/metrics", "/x/..%2fmetrics"),
    *("/admin%2Freload", "/%61dmin/reload", "//admin/reload", "/admin/reload/", "/admin/reload%0a"),
    *("https://x/admin/reload", f"/models/{TABLE}/drift%2freset", f"/models/{TABLE}/drift/reset%0a"),
]


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        *((f"{method} /models", (400, 401)) for method in METHODS),
        *((f"{method} /livez", (400, 401)) for method in METHODS if method not in ("HEAD", "OPTIONS")),
        ("HEAD /livez", (200,)),
        ("OPTIONS /livez", (405,)),
        *((f"GET {target}", (200,)) for target in ("/%6civez", "/livez?x=y", "/livez#x", "http://x/livez")),
        *((f"{method} {at}", (400, 401, 404)) for method in ("GET", "POST") for at in (*ELSEWHERE, *NOT_OURS)),
    ],
)
def test_no_way_to_write_a_request_line_gets_round_the_keys(
    address: tuple[str, int], line: str, statuses: tuple[int, ...]
) -> None:
    request = f"{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n".encode()
    assert status_of(ask(address, request + b"\r\n")) in statuses
    if line.partition(" ")[2] in NOT_OURS:
        assert status_of(ask(address, request + KEY + b"\r\n\r\n")) in (403, 404)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([KEY], 200),
        ([KEY[:22].upper() + KEY[22:]], 200),
        ([b"authorization: Bearer wrong", KEY], 401),
        ([KEY, b"authorization: Bearer wrong"], 200),
        ([b"authorization: Bearer wrong", OWN_KEY], 401),
        ([OWN_KEY, b"authorization: Bearer wrong"], 401),
        ([b"x-api-key: wrong", OWN_KEY], 401),
        ([OWN_KEY, b"x-api-key: wrong"], 200),
        ([KEY.replace(b"Bearer ", b"Bearer wrong, Bearer ")], 401),
        ([KEY.replace(b"authorization", b"authorization ")], 400),
        ([KEY.replace(b"Bearer ", b"Bearer\r\n ")], 400),
        *(([KEY + end], 400) for end in (b"\0", b"\1", b"\x0b", b"\x7f", b"\rx")),
        *(([KEY + end], 401) for end in (b"\xa0", b"\xff", "\u00e9".encode(), b"x" * 60_000)),
        ([b"x-original-url: /livez", b"x-rewrite-url: /livez", b"x-forwarded-for: 127.0.0.1"], 401),
        ([b"x_api_key: " + KEY[22:]], 401),
    ],
)
def test_no_header_but_one_whole_key_opens(address: tuple[str, int], headers: list[bytes], status: int) -> None:
    lines = [b"GET /models HTTP/1.1", b"host: x", b"connection: close", *headers, b"", b""]
    assert status_of(ask(address, b"\r\n".join(lines))) == status


def test_a_key_counts_for_its_request_alone(address: tuple[str, int]) -> None:
    first = b"GET /models HTTP/1.1\r\nhost: x\r\n"
    second = b"GET /models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    asked = first + KEY + b"\r\n\r\n"
    hidden = b"POST /encode HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(asked) + asked
    for sent, statuses in ((asked, [b"200", b"401"]), (hidden, [b"401", b"401"])):
        replies = ask(address, sent + second).split(b"HTTP/1.1 ")[1:]
        assert [reply[:3] for reply in replies] == statuses


def status_of(reply: bytes) -> int:
    """The status of the only answer."""
    assert reply.count(b"HTTP/1.1 ") == 1, reply
    return int(reply[9:12])
