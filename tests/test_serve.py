"""The server over real connections: what it answers and refuses, and that nothing outside its folder is reached."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from starlette.datastructures import Headers

from hetecd import cli
from hetecd.gallery import Gallery
from hetecd.jobs import Jobs
from hetecd.serve import guarded, make_app, refusal

SECRET = "kept to ourselves"


@dataclass
class Site:
    """A running server and a client of it."""

    root: Path
    port: int

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, Headers]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host="host" in headers)  # the path as it is, dots and all
        if body is not None:
            headers.setdefault("content-length", str(len(body)))
        for key, value in headers.items():
            connection.putheader(key.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, Headers(dict(answer.getheaders()))

    def json(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, object]:
        status, content, _ = self.ask(path, method, body, **headers)
        return status, json.loads(content)


@contextmanager
def serving(root: Path, options: Sequence[str] = (), images: Sequence[Path] = ()) -> Iterator[Site]:
    """A server of a folder, in a thread; it takes files of 1 MB."""
    jobs = Jobs(root, options, limit_bytes=1_000_000)
    server = uvicorn.Server(uvicorn.Config(guarded(make_app(Gallery(root, images), jobs), "my.name"), port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Site(root, server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    thread.join()
    jobs.close()


@pytest.fixture(scope="module")
def site(mapped: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Serves `served/`, which holds the result `map` with its images; beside it lies a file that is kept secret."""
    root = tmp_path_factory.mktemp("site") / "served"
    shutil.copytree(mapped.parent, root)
    (root.parent / "secret.txt").write_text(SECRET)
    with serving(root, images=[mapped.parent]) as site:
        yield site


def test_pages_and_their_data(site: Site) -> None:
    status, page, headers = site.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert (headers["x-frame-options"], headers["x-content-type-options"]) == ("DENY", "nosniff")
    status, listed = site.json("/api/results")
    assert [entry["name"] for entry in listed] == ["map"]  # type: ignore[attr-defined]
    status, page, _ = site.ask("/results/map")
    shown = json.loads(re.findall(r'type="application/json">(.*?)</script>', page.decode())[0])
    assert (status, shown) == site.json("/api/results/map")
    for image in (*shown["images"], shown["probability"]):
        for address in (image["image"], image["tiles"].format(z=0, x=0, y=0)):
            status, content, headers = site.ask(address)
            assert (status, headers["content-type"].startswith("image/"), len(content) > 500) == (200, True, True)
    assert site.ask("/api/results/map/files/change.gpkg")[1][:6] == b"SQLite"
    assert len(site.json(shown["bins"])[1]) == shown["polygons_total"]  # type: ignore[arg-type]
    assert site.ask("/favicon.ico")[0] == 204


def test_nothing_is_loaded_from_elsewhere(site: Site) -> None:
    for path in ("/", "/api", "/results/map", "/results/nothing"):
        page = re.sub(
            r"<!--.*?-->|<script.*?</script>|<style.*?</style>", "", site.ask(path)[1].decode(), flags=re.DOTALL
        )
        assert [word for word in re.findall(r'(?:src|href|action)="([^"]*)"', page) if not word.startswith("/")] == []
        assert "default-src 'none'" in page


def test_the_api_describes_itself(site: Site) -> None:
    _, schema = site.json("/openapi.json")
    page = site.ask("/api")[1].decode()
    paths = schema["paths"]  # type: ignore[index]
    assert len(paths) == 9
    for path, methods in paths.items():
        for method, about in methods.items():
            assert f"{method.upper()} {path}" in page
            assert about["description"]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt", "/results/..", "/results/../../secret.txt", "/results/%2e%2e", "/results/..%2fsecret.txt",
        "/results/%2e%2e%2f%2e%2e%2fsecret.txt", "/results/..%5csecret.txt", "/results//etc/passwd", "/results/%2fetc",
        "/api/results/..%2f..%2fsecret.txt", "/api/results/map/files/..%2f..%2fsecret.txt", "/results/%00",
        "/api/results/map/files/%2fetc%2fpasswd", "/api/results/map/files/../../../secret.txt", "//etc/passwd",
        "/api/results/map/files/optical.tif", "/api/results/../files/secret.txt", "/api/results/map/..%2f/whole",
        "/api/results/..%252f..%252fsecret.txt", "/results/%c0%ae%c0%ae%c0%afsecret.txt", "/secret.txt", "/served",
        "/api/results/map/before/tiles/0/0/..%2f..", "/api/results/map/secret.txt/whole", "/api/results/./files/x",
    ],
)  # fmt: skip
def test_no_path_leads_out(site: Site, path: str) -> None:
    status, content, _ = site.ask(path)
    assert status in (404, 422), content
    assert SECRET.encode() not in content
    assert b"root:" not in content


def test_errors_are_one_line_for_programs_and_a_page_for_people(site: Site) -> None:
    status, said = site.json("/api/results/nothing")
    assert (status, said) == (
        404,
        {"detail": "nothing: found no such result in served; it was moved, renamed or removed"},
    )
    status, page, headers = site.ask("/results/%3Cb%3E")
    assert (status, headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert b"&lt;b&gt;: found no such result" in page
    assert site.ask("/api/results/map/probability/tiles/0/1/0")[0] == 422
    assert site.ask("/api/results/map/probability/tiles/99/1/0")[0] == 422
    assert site.json("/api/jobs/nothing")[0] == 404


HOST = "127.0.0.1:8000"
PAGE = f"http://{HOST}"


@pytest.mark.parametrize(
    ("method", "headers", "refused"),
    [
        ("GET", {"host": HOST}, False),
        ("GET", {"host": "localhost"}, False),
        ("GET", {"host": "[::1]:8000"}, False),
        ("GET", {"host": "my.name:8000"}, False),
        ("GET", {"host": "evil.example"}, True),
        ("GET", {"host": "127.0.0.1.evil.example"}, True),
        ("GET", {"host": "[::1"}, True),
        ("GET", {}, True),
        ("GET", {"host": HOST, "origin": "http://evil.example"}, False),  # the browser keeps the answer from it
        ("PUT", {"host": HOST}, False),  # no browser
        ("PUT", {"host": HOST, "origin": PAGE, "sec-fetch-site": "same-origin"}, False),
        ("PUT", {"host": HOST, "origin": "http://evil.example"}, True),
        ("POST", {"host": HOST, "origin": "http://127.0.0.1:8001"}, True),
        ("POST", {"host": HOST, "origin": "null"}, True),
        ("DELETE", {"host": HOST, "sec-fetch-site": "cross-site"}, True),
        ("POST", {"host": "evil.example", "origin": "http://evil.example"}, True),  # a name made to point here
        ("POST", {"host": HOST, "origin": "http://[x"}, True),
    ],
)
def test_other_sites_are_refused(method: str, headers: dict[str, str], refused: bool) -> None:
    assert (refusal(method, Headers(headers), "My.Name") is not None) == refused


def test_refusals_reach_nothing(site: Site) -> None:
    assert site.json("/", host="evil.example")[0] == 403
    status, said = site.json("/api/jobs?name=evil", "POST", origin="http://evil.example")
    assert (status, list(said)) == (403, ["detail"])  # type: ignore[call-overload]
    assert site.json("/api/jobs") == (200, [])


def test_uploads_that_cannot_be(site: Site) -> None:
    assert site.json("/api/jobs?name=..%2Fx", "POST")[0] == 422
    assert site.json("/api/jobs?name=a&before_is=radar", "POST")[0] == 422
    status, job = site.json("/api/jobs?name=large", "POST")
    assert status == 201
    address = f"/api/jobs/{job['id']}"  # type: ignore[index]
    assert site.json(f"{address}/during", "PUT", b"x")[0] == 422
    status, said = site.json(f"{address}/before", "PUT", b"II*\0" + bytes(1_000_000))
    assert status == 422
    assert "expected at most 1 MB" in said["detail"]  # type: ignore[index]
    assert site.json(address)[1]["state"] == "failed"  # type: ignore[index]
    status, job = site.json("/api/jobs?name=other", "POST")
    assert site.json(f"/api/jobs/{job['id']}/after", "PUT", (site.root / "sar.tif").read_bytes())[0] == 200  # type: ignore[index]
    status, ended = site.json(f"/api/jobs/{job['id']}", "DELETE")  # type: ignore[index]
    assert (ended["state"], ended["message"]) == ("failed", "cancelled")  # type: ignore[index]
    assert sorted(path.name for path in site.root.iterdir()) == ["label.tif", "map", "optical.tif", "sar.tif"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_command_says_where_it_serves_and_leaves_nothing_unfinished(
    number: signal.Signals, mapped: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "hetecd", "serve", str(tmp_path), "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509 - takes no lock
    ) as process:  # fmt: skip
        assert process.stderr
        try:
            (port,) = re.findall(r"at http://127\.0\.0\.1:(\d+) ", process.stderr.readline())
            site = Site(tmp_path, int(port))
            job = site.json("/api/jobs?name=half", "POST")[1]
            sar = (mapped.parent / "sar.tif").read_bytes()
            assert site.json(f"/api/jobs/{job['id']}/after", "PUT", sar)[0] == 200  # type: ignore[index]
            assert len(list(tmp_path.iterdir())) == 1
            assert cli.main(["serve", str(tmp_path), "--port", port]) == 1
        finally:
            process.send_signal(number)
        assert process.wait(timeout=30) in (0, 128 + number)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", str(tmp_path / "nowhere")]) == 1
    assert "found no such folder" in capsys.readouterr().err
    assert cli.main(["serve", str(tmp_path), "--port", "70000"]) == 1
    assert "cannot listen on 127.0.0.1:70000" in capsys.readouterr().err
