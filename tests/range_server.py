"""An HTTP server of one folder that serves ranges and prints a line per answer: ``METHOD PATH BYTES``.

A process of its own, for GDAL asks some things while it holds Python's lock. Under /whole/ it ignores ranges, under
/dated/ it tells when a file was changed instead of its ETag, under /silent/ neither.
"""

import contextlib
import http.server
import re
import sys
from email.utils import formatdate
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        ranges = not self.path.startswith("/whole/")
        file = Path(sys.argv[1]) / re.sub(r"^/(?:(whole|dated|silent)/)?", "", self.path)
        content = file.read_bytes() if file.is_file() else b""
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if ranges else None
        self.send_response(404 if not file.is_file() else 206 if part else 200)
        if part:
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            content = content[first : last + 1]
        if file.is_file() and not self.path.startswith("/silent/"):
            changed = file.stat().st_mtime
            dated = self.path.startswith("/dated/")
            self.send_header(*(("Last-Modified", formatdate(changed)) if dated else ("ETag", f'"{changed}"')))
        if ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        body = b"" if self.command == "HEAD" else content
        print(self.command, self.path, len(body), flush=True)
        with contextlib.suppress(OSError):  # the reader has seen enough
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
