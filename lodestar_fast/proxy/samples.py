"""What llhttp.pyx parses at import, to see whether it gets from llhttp what httptools does.

Everything that the parsers rely on: each kind of event, framing, versions, upgrades, refusals.
"""

from __future__ import annotations

# (a request, or else an answer; the bytes)
SAMPLES = (
    (True, b"\r\nPOST /a?b HTTP/1.1\r\nHost: x\r\nE:\r\nTransfer-Encoding: chunked\r\n\r\n"
           b"3;a=b\r\nabc\r\n0\r\nt: u\r\n\r\nGET / HTTP/1.0\r\n\r\n"),
    (True, b"PUT * HTTP/1.1\r\nContent-Length: 2\r\nConnection: close, y\r\n\r\nok"),
    (True, b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\n."),
    (True, b"GET / HTTP/1.1\r\nHost : x\r\n\r\n"),
    (True, b"GET / HTTP/1.1\nHost: x\n\n"),
    (True, b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n."),
    (True, b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n."),
    (True, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n"),
    (True, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nok\r\n0\r\n\r\n"),
    (True, b"GET / HTTP/1.1\r\nx: a\r\n b\r\n\r\n"),
    (True, b"WHAT / HTTP/1.1\r\n\r\n"),
    (False, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 Not Found\r\nContent-Length: 2\r\n\r\nok"),
    (False, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    (False, b"HTTP/1.1 204\r\nConnection: keep-alive\r\n\r\nHTTP/1.1 200 OK\r\n\r\nto the end"),
    (False, b"HTTP/1.1 101 Now\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n.."),
    (False, b"HTTP/1.1 2000 OK\r\n\r\n"),
    (False, b"HTTP/2.1 200 OK\r\n\r\n"),
)  # fmt: skip
