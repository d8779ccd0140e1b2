"""sources.py and download.py against a real HTTP server on loopback that can be told to misbehave."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.client import HTTPMessage
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from storyladder.corpus.download import ATTEMPTS, JSON_MAX_BYTES, LONGEST_WAIT_S, SafeRedirects
from storyladder.corpus.sources import (
    SOURCES,
    SPARE_DISK_BYTES,
    RemoteFile,
    Source,
    download_source,
    free_disk_bytes,
    hub_endpoint,
)
from storyladder.runtime.errors import DownloadError

BODY = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
STORY = "Once there was a café.\n<|endoftext|>\n".encode()
STORIES = STORY * 5_000


@dataclass
class Answer:
    """One answer out of the ordinary; what is None or empty is as a sound server would have it."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    stops_after: int | None = None  # bytes of the body
    resets: bool = False
    stalls: bool = False
    ignores_range: bool = False
    without_length: bool = False


class Hub(http.server.ThreadingHTTPServer):
    """Serves `files` by path with Range; `script` holds the answers to the next requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.script: list[Answer] = []
        self.asked: list[tuple[str, str | None]] = []
        self.bytes_sent = 0
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client may leave early: that is no error of the test."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    disable_nagle_algorithm = True  # else each small answer waits 40 ms for an acknowledgement

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.server.asked.append((self.path, span))
        answer = self.server.script.pop(0) if self.server.script else Answer()
        body = self.server.files.get(self.path) if answer.body is None else answer.body
        status, headers = 200, {}
        if body is None:
            status, body = 404, b"no such file"
        elif span and not answer.ignores_range:
            first, last = (int(number) for number in span.removeprefix("bytes=").split("-"))
            status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(body)}"
            body = body[first : last + 1]
        if not answer.without_length:
            headers["Content-Length"] = str(len(body))
        self.send_response(answer.status or status)
        for name, value in (headers | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        sent = body[: answer.stops_after]
        self.wfile.write(sent)
        self.server.bytes_sent += len(sent)
        if answer.stalls:
            self.server.closing.wait(5)
        if answer.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Hub() as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def corpus(*files: RemoteFile, val: tuple[RemoteFile, ...] = ()) -> Source:
    return Source(
        stage="tiny", repo="some/stories", revision="abc", files=files, val_files=val, field=None, licence="MIT"
    )


def serve(hub: Hub, path: str = "data/tales.txt", body: bytes = BODY, **changes: Any) -> Source:
    hub.files[f"/datasets/some/stories/resolve/abc/{path}"] = body
    return corpus(RemoteFile(path, **{"bytes": len(body), "sha256": sha256(body)} | changes))


class Here:
    """A folder, and what was said and waited while a corpus was brought into it."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub = folder, hub
        self.said: list[str] = []
        self.waited: list[float] = []

    def bring(self, source: Source, **changes: Any) -> list[Path]:
        how: dict[str, Any] = {"endpoint": self.hub.address, "say": self.said.append, "sleep": self.waited.append}
        how |= {"progress": False, "timeout_s": 5.0, "free_bytes": lambda folder: 10**12}
        return download_source(source, self.folder, **how | changes)

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def put(self, name: str, data: bytes) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        return self.folder / name


@pytest.fixture
def here(tmp_path: Path, hub: Hub) -> Here:
    return Here(tmp_path / "raw" / "tiny", hub)


# The table


def test_the_table_holds_the_pinned_revisions_and_sizes() -> None:
    tiny, children, simple = (SOURCES[stage] for stage in ("tiny", "children", "simple"))
    assert (tiny.repo, tiny.revision) == ("roneneldan/TinyStories", "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64")
    assert children.repo == "ajibawa-2023/Children-Stories-Collection"
    assert children.revision == "50682ae3fe62733f929fe091691fe639855ffecf"
    assert (simple.repo, simple.revision) == ("SimpleStories/SimpleStories", "e63b8adc3b1a1bdc7cac5b500d150b71346b0628")
    assert [file.bytes for file in tiny.files + tiny.val_files] == [2_227_753_162, 22_502_601]
    assert [file.sha256 for file in tiny.files + tiny.val_files] == [
        "6418d412de72888f52b5142c761ac21a582f7d1166f0bfbdb5f03ccfdec90443",
        "6874bae9a4c1a4e7edcf0e53b86c17817e9cf881fc75ff2368da457b80c0585d",
    ]
    assert [file.path for file in children.files] == [f"Children-Stories-{i}-Final.json" for i in range(10)]
    train = [file.bytes for file in simple.files]
    assert sum(n or 0 for n in train) == 1_665_029_692
    assert train[:4] == [238_015_938, 238_000_197, 237_741_821, 237_658_974]
    assert train[4:] == [238_085_905, 237_848_790, 237_678_067]
    assert sum(n or 0 for n in train) + (simple.val_files[0].bytes or 0) == 1_681_868_249
    assert simple.files[6].path == "data/train-00006-of-00007.parquet"
    assert (tiny.field, children.field, simple.field) == (None, "text", "story")
    assert all(stage == source.stage for stage, source in SOURCES.items())


def test_validation_files_are_told_from_training_files_by_either_name() -> None:
    tiny = SOURCES["tiny"]
    assert tiny.is_validation(Path("data/raw/tiny/TinyStoriesV2-GPT4-valid.txt"))
    assert tiny.is_validation(Path("data/raw/tiny/TinyStoriesV2-GPT4-val.txt"))
    assert not tiny.is_validation(Path("data/raw/tiny/TinyStoriesV2-GPT4-train.txt"))


# A sound server


def test_a_file_comes_whole_and_is_not_asked_for_again(hub: Hub, here: Here) -> None:
    source = serve(hub)
    assert here.bring(source) == [here.folder / "tales.txt"]
    assert (here.folder / "tales.txt").read_bytes() == BODY
    assert here.names() == {"tales.txt", "tales.txt.verified"}
    assert hub.asked == [("/datasets/some/stories/resolve/abc/data/tales.txt", None)]
    assert here.bring(source) == [here.folder / "tales.txt"]
    (here.folder / "tales.txt.verified").unlink()
    assert here.bring(source) == [here.folder / "tales.txt"]
    assert len(hub.asked) == 1
    assert here.names() == {"tales.txt", "tales.txt.verified"}


def test_training_files_come_first_and_validation_files_last(hub: Hub, here: Here) -> None:
    train, val = serve(hub, "train.txt").files, serve(hub, "valid.txt", OTHER).files
    source = corpus(*train, val=val)
    paths = here.bring(source)
    assert [path.name for path in paths] == ["train.txt", "valid.txt"]
    assert [source.is_validation(path) for path in paths] == [False, True]


def test_the_name_that_others_gave_a_file_is_accepted_when_it_is_that_file(hub: Hub, here: Here) -> None:
    source = serve(hub, "valid.txt", also_named=("val.txt",))
    path = here.put("val.txt", BODY)
    assert here.bring(source) == [path]
    path.write_bytes(OTHER)
    assert here.bring(source) == [here.folder / "valid.txt"]
    assert path.read_bytes() == OTHER


def test_nothing_is_drawn_where_there_is_no_terminal(hub: Hub, here: Here, capfd: pytest.CaptureFixture[str]) -> None:
    here.bring(serve(hub), progress=True)
    assert capfd.readouterr() == ("", "")


# Resuming


def test_a_dropped_connection_costs_only_the_missing_bytes(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=100_000)]
    here.bring(serve(hub))
    assert (here.folder / "tales.txt").read_bytes() == BODY
    assert [span for _, span in hub.asked] == [None, "bytes=100000-299999"]
    assert hub.bytes_sent == len(BODY)
    assert "100,000 of 300,000" in here.said[0]


def test_a_reset_connection_is_taken_up_again(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=100_000, resets=True)]
    here.bring(serve(hub))
    assert (here.folder / "tales.txt").read_bytes() == BODY
    assert len(hub.asked) == 2


def test_a_connection_that_stalls_is_given_up_and_taken_up_again(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=100_000, stalls=True)]
    here.bring(serve(hub), timeout_s=0.2)
    assert hub.asked[1][1] == "bytes=100000-299999"
    assert "timed out" in here.said[0]


def test_a_stopped_download_leaves_no_final_file_and_goes_on_from_its_part(hub: Hub, here: Here) -> None:
    body = random.Random(2).randbytes(4_000_000)
    source = serve(hub, body=body)
    polls = iter(range(1000))
    with pytest.raises(KeyboardInterrupt):
        here.bring(source, stop_requested=lambda: next(polls) >= 3)
    part = here.folder / "tales.txt.part"
    kept = part.stat().st_size
    assert here.names() == {"tales.txt.part"}
    assert 0 < kept < len(body)
    assert part.read_bytes() == body[:kept]
    hub.asked, hub.bytes_sent = [], 0
    assert here.bring(source)[0].read_bytes() == body
    assert hub.asked[0][1] == f"bytes={kept}-3999999"
    assert hub.bytes_sent == len(body) - kept
    assert here.names() == {"tales.txt", "tales.txt.verified"}


def test_a_wish_to_leave_is_noticed_while_waiting_for_the_server(hub: Hub, here: Here) -> None:
    hub.script = [Answer(status=503, headers={"Retry-After": "100"})]
    with pytest.raises(KeyboardInterrupt):
        here.bring(serve(hub), stop_requested=lambda: len(here.waited) >= 2)
    assert sum(here.waited) == 0.5


def test_a_part_that_is_already_whole_needs_no_server(hub: Hub, here: Here) -> None:
    source = serve(hub)
    here.put("tales.txt.part", BODY)
    assert here.bring(source)[0].read_bytes() == BODY
    assert hub.asked == []


def test_a_part_of_another_file_is_found_out_and_fetched_anew(hub: Hub, here: Here) -> None:
    here.put("tales.txt.part", OTHER[:100_000])
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert [span for _, span in hub.asked] == ["bytes=100000-299999", None]


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(hub: Hub, here: Here) -> None:
    here.put("tales.txt.part", BODY + b"more")
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert [span for _, span in hub.asked] == [None]


def test_a_server_that_ignores_range_starts_from_zero(hub: Hub, here: Here) -> None:
    here.put("tales.txt.part", BODY[:100_000])
    hub.script = [Answer(ignores_range=True)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert len(hub.asked) == 1


@pytest.mark.parametrize("span", ["bytes 0-299999/300000", "bytes 100001-299999/300000", "nonsense", ""])
def test_a_resumption_from_the_wrong_place_starts_from_zero(hub: Hub, here: Here, span: str) -> None:
    here.put("tales.txt.part", BODY[:100_000])
    hub.script = [Answer(headers={"Content-Range": span})]
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert [asked for _, asked in hub.asked] == ["bytes=100000-299999", None]


def test_a_refused_range_starts_from_zero(hub: Hub, here: Here) -> None:
    here.put("tales.txt.part", BODY[:100_000])
    hub.script = [Answer(status=416)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert [asked for _, asked in hub.asked] == ["bytes=100000-299999", None]


def test_a_redirect_keeps_the_range(hub: Hub, here: Here) -> None:
    here.put("tales.txt.part", BODY[:100_000])
    hub.files["/cdn/blob"] = BODY
    for status in (302, 307, 308):
        hub.script = [Answer(status=status, headers={"Location": "/cdn/blob"}, body=b"", ignores_range=True)]
        assert here.bring(serve(hub))[0].read_bytes() == BODY
        assert hub.asked.pop() == ("/cdn/blob", "bytes=100000-299999")
        (here.folder / "tales.txt").rename(here.folder / "tales.txt.part")
        os.truncate(here.folder / "tales.txt.part", 100_000)


# Servers that lie


@pytest.mark.parametrize("announced", [299_990, 300_010])
def test_a_file_announced_with_another_size_does_not_cost_the_part(hub: Hub, here: Here, announced: int) -> None:
    part = here.put("tales.txt.part", BODY[:100_000])
    hub.script = [Answer(headers={"Content-Length": str(announced)}, ignores_range=True)] * ATTEMPTS
    with pytest.raises(DownloadError, match=f"announced with {announced} bytes, expected 300000"):
        here.bring(serve(hub))
    assert here.names() == {"tales.txt.part"}
    assert part.read_bytes() == BODY[:100_000]
    here.bring(serve(hub))
    assert hub.asked[-1][1] == "bytes=100000-299999"


def test_a_range_of_a_file_of_another_size_is_refused(hub: Hub, here: Here) -> None:
    here.put("tales.txt.part", BODY[:100_000])
    hub.script = [Answer(headers={"Content-Range": "bytes 100000-299999/300001"})] * ATTEMPTS
    with pytest.raises(DownloadError, match="announced with 300001 bytes, expected 300000"):
        here.bring(serve(hub))


@pytest.mark.parametrize("length", [50_000, 500_000])
def test_a_lie_about_the_length_of_a_range_is_survived(hub: Hub, here: Here, length: int) -> None:
    here.put("tales.txt.part", BODY[:100_000])
    hub.script = [Answer(headers={"Content-Length": str(length)})]
    assert here.bring(serve(hub))[0].read_bytes() == BODY


def test_more_bytes_than_the_file_has_are_not_taken(hub: Hub, here: Here) -> None:
    hub.script = [Answer(body=BODY + OTHER, without_length=True)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY


def test_a_body_without_a_length_that_ends_early_is_not_taken_for_the_file(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=299_999, without_length=True)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert hub.asked[1][1] == "bytes=299999-299999"


def test_wrong_bytes_get_one_more_chance(hub: Hub, here: Here) -> None:
    hub.script = [Answer(body=OTHER)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert [span for _, span in hub.asked] == [None, None]
    assert sha256(OTHER) in here.said[0]


def test_wrong_bytes_never_get_the_final_name(hub: Hub, here: Here) -> None:
    hub.script = [Answer(body=OTHER)] * 2
    with pytest.raises(DownloadError, match=f"SHA-256 {sha256(OTHER)}, expected {sha256(BODY)}.*HF_ENDPOINT.*--from"):
        here.bring(serve(hub))
    assert here.names() == set()
    assert len(hub.asked) == 2


@pytest.mark.parametrize("ends", [(100_000, 100_000), (100_000, 50_000)])
def test_a_server_that_never_gets_further_is_given_up(hub: Hub, here: Here, ends: tuple[int, int]) -> None:
    hub.script = [Answer(stops_after=end, ignores_range=True) for end in ends * 25]
    with pytest.raises(DownloadError, match="of 300,000 bytes, 6 times in a row"):
        here.bring(serve(hub))
    assert here.names() == {"tales.txt.part"}
    assert len(hub.asked) == ATTEMPTS


def test_a_line_that_drops_often_is_borne_as_long_as_it_brings_something(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=10_000)] * 20
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert hub.bytes_sent == len(BODY)


# Servers that refuse


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub: Hub, here: Here, status: int) -> None:
    hub.script = [Answer(status=status), Answer(status=status)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert sum(here.waited) == 1 + 2
    assert f"HTTP {status}" in here.said[0]


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("0", 1.0), ("86400", LONGEST_WAIT_S), ("soon", 1.0)])
def test_the_server_says_how_long_to_wait_within_bounds(hub: Hub, here: Here, asked: str, waited: float) -> None:
    hub.script = [Answer(status=429, headers={"Retry-After": asked})]
    here.bring(serve(hub))
    assert sum(here.waited) == waited
    assert max(here.waited) <= 0.25


def test_a_server_that_stays_busy_is_given_up(hub: Hub, here: Here) -> None:
    hub.script = [Answer(status=503)] * 50
    with pytest.raises(DownloadError, match="HTTP 503, 6 times in a row; set HF_ENDPOINT"):
        here.bring(serve(hub))
    assert len(hub.asked) == ATTEMPTS
    assert sum(here.waited) == 1 + 2 + 4 + 8 + 16


def test_a_server_that_is_not_there_is_named(hub: Hub, here: Here) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DownloadError, match=f"{address}/datasets.* could not be reached .*refused"):
            here.bring(serve(hub), endpoint=address)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_repeated_and_says_what_to_try(hub: Hub, here: Here, status: int) -> None:
    hub.script = [Answer(status=status)]
    with pytest.raises(DownloadError) as refused:
        here.bring(serve(hub))
    message = str(refused.value)
    assert f"{hub.address}/datasets/some/stories/resolve/abc/data/tales.txt answered HTTP {status}" in message
    assert "HF_ENDPOINT" in message
    assert f"by hand into {here.folder} and run: python prepare_data.py --stage tiny --from {here.folder}" in message
    assert "\n" not in message
    assert len(hub.asked) == 1


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "//[bad"])
def test_a_redirect_out_of_http_is_refused(hub: Hub, here: Here, target: str) -> None:
    hub.script = [Answer(status=302, headers={"Location": target})] * ATTEMPTS
    with pytest.raises(DownloadError):
        here.bring(serve(hub))
    assert here.names() == {"tales.txt.part"}
    assert (here.folder / "tales.txt.part").read_bytes() == b""


def test_a_redirect_from_https_down_to_http_is_refused() -> None:
    request, headers = urllib.request.Request("https://hub/file"), HTTPMessage()
    follow = SafeRedirects().redirect_request
    with pytest.raises(urllib.error.HTTPError, match="redirect to http://cdn/file refused") as refused:
        follow(request, BytesIO(), 302, "Found", headers, "http://cdn/file")
    refused.value.close()
    assert follow(request, BytesIO(), 302, "Found", headers, "https://cdn/file") is not None


def test_a_circle_of_redirects_is_told_in_one_line(hub: Hub, here: Here) -> None:
    source = serve(hub)
    hub.script = [Answer(status=302, headers={"Location": next(iter(hub.files))})] * 20
    with pytest.raises(DownloadError, match="infinite loop") as refused:
        here.bring(source)
    assert "\n" not in str(refused.value)


# What lies here already


@pytest.mark.parametrize("found", [BODY[:-1], b"", OTHER, BODY + b"x"], ids=["truncated", "empty", "foreign", "longer"])
def test_a_file_that_is_not_the_published_one_is_noticed_and_set_aside(hub: Hub, here: Here, found: bytes) -> None:
    here.put("tales.txt", found)
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert (here.folder / "tales.txt.rejected").read_bytes() == found
    assert f"{len(found):,} bytes" in here.said[0]


def test_a_file_changed_after_it_was_verified_is_noticed(hub: Hub, here: Here) -> None:
    path = here.bring(serve(hub))[0]
    path.write_bytes(OTHER)
    os.utime(path, ns=(1, 1))
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert len(hub.asked) == 2


def test_a_verified_file_truncated_under_its_old_time_is_noticed(hub: Hub, here: Here) -> None:
    path = here.bring(serve(hub))[0]
    times = path.stat()
    os.truncate(path, 299_999)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert here.bring(serve(hub))[0].read_bytes() == BODY


def test_a_complete_file_whose_record_cannot_be_written_is_used(hub: Hub, here: Here) -> None:
    path = here.put("tales.txt", BODY)
    (here.folder / "tales.txt.verified").mkdir()
    assert here.bring(serve(hub)) == [path]
    assert hub.asked == []


def test_an_unchanged_verified_file_is_not_hashed_again(hub: Hub, here: Here) -> None:
    path = here.bring(serve(hub))[0]
    times = path.stat()
    path.write_bytes(OTHER)  # a forgery that only a hash could notice
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert here.bring(serve(hub)) == [path]
    assert len(hub.asked) == 1


@pytest.mark.parametrize("record", ["", "[]", "{}", "null", '{"bytes": 1}', "\x00"])
def test_a_damaged_record_is_no_record(hub: Hub, here: Here, record: str) -> None:
    path = here.bring(serve(hub))[0]
    here.put("tales.txt.verified", record.encode())
    assert here.bring(serve(hub)) == [path]
    assert json.loads((here.folder / "tales.txt.verified").read_text())["sha256"] == sha256(BODY)


# Mirrors and their listings


def test_the_mirror_comes_from_the_environment() -> None:
    assert hub_endpoint({}) == "https://huggingface.co"
    assert hub_endpoint({"HF_ENDPOINT": "  "}) == "https://huggingface.co"
    assert hub_endpoint({"HF_ENDPOINT": "https://mirror.example/"}) == "https://mirror.example/"


def test_a_mirror_with_a_slash_at_its_end_is_used(hub: Hub, here: Here) -> None:
    source = serve(hub)
    hub.files = {f"/mirror{path}": body for path, body in hub.files.items()}
    here.bring(source, endpoint=hub_endpoint({"HF_ENDPOINT": f"{hub.address}/mirror/"}))
    assert hub.asked == [("/mirror/datasets/some/stories/resolve/abc/data/tales.txt", None)]


def test_a_proxy_of_the_environment_is_used(hub: Hub, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", hub.address)
    source = serve(hub)
    hub.files = {f"http://hub.invalid{path}": body for path, body in hub.files.items()}
    assert here.bring(source, endpoint="http://hub.invalid")[0].read_bytes() == BODY


@pytest.mark.parametrize("address", ["mirror.example", "ftp://mirror.example", "file:///etc", "https://", "http://[x"])
def test_a_mirror_that_is_no_address_is_refused(hub: Hub, here: Here, address: str) -> None:
    with pytest.raises(DownloadError, match=r"expected one like https://huggingface.co"):
        here.bring(serve(hub), endpoint=address)


LISTING = "/api/datasets/some/stories/tree/abc?recursive=true"


def entry(path: str, body: bytes, **changes: Any) -> dict[str, Any]:
    lfs = {"oid": sha256(body), "size": len(body)} | changes
    return {"type": "file", "path": path, "oid": "0" * 40, "size": 134, "lfs": lfs}


def test_sizes_and_hashes_that_are_not_pinned_come_from_the_listing_once(hub: Hub, here: Here) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    source = corpus(*source.files, *serve(hub, "b.json", OTHER, sha256=None).files)
    stranger = entry("../../../escaped.json", BODY)
    hub.files[LISTING] = json.dumps(
        [7, {"path": "a.json"} | entry("a.json", BODY), entry("b.json", OTHER), stranger]
    ).encode()
    assert [path.read_bytes() for path in here.bring(source)] == [BODY, OTHER]
    assert [path for path, _ in hub.asked].count(LISTING) == 1
    assert here.names() == {"a.json", "a.json.verified", "b.json", "b.json.verified"}
    assert not list(here.folder.parent.parent.glob("escaped*"))
    hub.asked = []
    here.bring(source)
    assert hub.asked == []


def test_the_record_of_another_revision_is_not_believed(hub: Hub, here: Here) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    hub.files[LISTING] = json.dumps([entry("a.json", BODY)]).encode()
    here.bring(source)
    hub.files = {path.replace("abc", "def"): OTHER for path in hub.files}
    hub.files[LISTING.replace("abc", "def")] = json.dumps([entry("a.json", OTHER)]).encode()
    assert here.bring(replace(source, revision="def"))[0].read_bytes() == OTHER


def test_bytes_that_do_not_have_the_listed_hash_are_refused(hub: Hub, here: Here) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    hub.files[LISTING] = json.dumps([entry("a.json", OTHER)]).encode()
    with pytest.raises(DownloadError, match=f"expected {sha256(OTHER)}"):
        here.bring(source)
    assert here.names() == set()


def test_a_listing_that_contradicts_the_table_is_refused(hub: Hub, here: Here) -> None:
    source = serve(hub, "a.json", bytes=300_001, sha256=None)
    hub.files[LISTING] = json.dumps([entry("a.json", BODY)]).encode()
    with pytest.raises(DownloadError, match=r"300,000 bytes in the listing .* expected 300,001"):
        here.bring(source)


@pytest.mark.parametrize(
    "listing",
    [
        [],
        {"error": "no"},
        [{"path": "a.json", "size": 3}],
        [entry("a.json", BODY, oid="../x")],
        [entry("a.json", BODY, size="300000")],
        [entry("a.json", BODY, size=-1)],
    ],
)
def test_a_listing_without_size_or_hash_is_refused(hub: Hub, here: Here, listing: Any) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    hub.files[LISTING] = json.dumps(listing).encode()
    with pytest.raises(DownloadError, match=r"gives no size and SHA-256 for a.json"):
        here.bring(source)


@pytest.mark.parametrize(
    ("listing", "complaint"),
    [
        (b"<html>log in</html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b" " * (JSON_MAX_BYTES + 1), "more than 4,194,304 bytes"),
        (b" " * (32 << 20), "more than 4,194,304 bytes"),
    ],
    ids=["html", "deep", "binary", "long", "endless"],
)
def test_a_listing_that_cannot_be_one_is_refused(hub: Hub, here: Here, listing: bytes, complaint: str) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    hub.files[LISTING] = listing
    with pytest.raises(DownloadError, match=complaint):
        here.bring(source)
    assert hub.bytes_sent < 32 << 20


# The disk


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(hub: Hub, here: Here) -> None:
    source = serve(hub)
    needed = 300_000 + SPARE_DISK_BYTES
    with pytest.raises(DownloadError, match=f"{needed - 1:,} bytes free, expected at least {needed:,}"):
        here.bring(source, free_bytes=lambda folder: needed - 1)
    assert hub.asked == []
    here.put("tales.txt.part", BODY[:100_000])
    here.bring(source, free_bytes=lambda folder: needed - 100_000)
    here.bring(source, free_bytes=lambda folder: 0)  # nothing is missing any more


def test_the_free_bytes_of_a_disk_are_real(tmp_path: Path) -> None:
    assert free_disk_bytes(tmp_path) > 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_disk_that_runs_full_is_told_as_such(hub: Hub, here: Here) -> None:
    here.folder.mkdir(parents=True)
    (here.folder / "tales.txt.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"is full .* what has come is kept"):
        here.bring(serve(hub))
    assert here.names() == {"tales.txt.part"}


def test_a_folder_that_cannot_be_made_is_told_as_such(hub: Hub, here: Here, tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(DownloadError, match=r"cannot keep files in .*expected a folder that can be written"):
        here.bring(serve(hub))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_told_as_such_but_its_complete_files_are_used(hub: Hub, here: Here) -> None:
    source = serve(hub)
    here.put("tales.txt", BODY)
    here.folder.chmod(0o555)
    try:
        assert here.bring(source) == [here.folder / "tales.txt"]
        with pytest.raises(DownloadError, match="cannot keep files in"):
            here.bring(serve(hub, "other.txt"))
    finally:
        here.folder.chmod(0o755)


# Less than everything


def test_only_as_many_files_as_needed_are_fetched(hub: Hub, here: Here) -> None:
    files = [serve(hub, f"{name}.json", random.Random(name).randbytes(1000)).files[0] for name in "abc"]
    source = corpus(*files, val=serve(hub, "v.json").files)
    for limit, names in ((1, "av"), (1000, "av"), (1001, "abv"), (2000, "abv"), (99_999, "abcv"), (None, "abcv")):
        assert "".join(path.stem for path in here.bring(source, limit_bytes=limit)) == names
    assert len(hub.asked) == 4


def test_the_beginning_of_a_text_has_its_own_name_and_ends_with_a_story(hub: Hub, here: Here) -> None:
    source = serve(hub, body=STORIES)
    (path,) = here.bring(source, limit_bytes=50_000)
    text = path.read_bytes()
    assert path.name == "tales.first-50000-bytes.txt"
    assert 50_000 - len(STORY) < len(text) <= 50_000
    assert STORIES.startswith(text) and text.endswith(b"<|endoftext|>")
    assert hub.asked == [("/datasets/some/stories/resolve/abc/data/tales.txt", "bytes=0-49999")]
    assert hub.bytes_sent == 50_000
    assert "cannot be checked by SHA-256" in here.said[0]
    assert here.bring(source, limit_bytes=50_000) == [path]
    assert len(hub.asked) == 1
    assert here.bring(source) == [here.folder / "tales.txt"]
    assert (here.folder / "tales.txt").read_bytes() == STORIES


def test_a_beginning_that_was_changed_or_has_no_record_is_fetched_again(hub: Hub, here: Here) -> None:
    source = serve(hub, body=STORIES)
    (path,) = here.bring(source, limit_bytes=50_000)
    text = path.read_bytes()
    path.write_bytes(text[:-100])
    assert here.bring(source, limit_bytes=50_000)[0].read_bytes() == text
    path.with_name(f"{path.name}.verified").unlink()
    assert here.bring(source, limit_bytes=50_000)[0].read_bytes() == text
    assert len(hub.asked) == 3


def test_a_long_beginning_ends_with_its_last_story(hub: Hub, here: Here) -> None:
    (path,) = here.bring(serve(hub, body=STORY * 60_000), limit_bytes=1_500_000)
    assert 1_500_000 - len(STORY) < path.stat().st_size <= 1_500_000


def test_a_beginning_that_was_only_touched_is_kept(hub: Hub, here: Here) -> None:
    source = serve(hub, body=STORIES)
    (path,) = here.bring(source, limit_bytes=50_000)
    os.utime(path, ns=(1, 1))
    assert here.bring(source, limit_bytes=50_000) == [path]
    assert len(hub.asked) == 1


def test_a_beginning_is_resumed_too(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=20_000)]
    (path,) = here.bring(serve(hub, body=STORIES), limit_bytes=50_000)
    assert STORIES.startswith(path.read_bytes())
    assert [span for _, span in hub.asked] == ["bytes=0-49999", "bytes=20000-49999"]


def test_a_beginning_comes_from_a_server_without_ranges_too(hub: Hub, here: Here) -> None:
    hub.script = [Answer(ignores_range=True)]
    (path,) = here.bring(serve(hub, body=STORIES), limit_bytes=50_000)
    assert len(path.read_bytes()) <= 50_000


def test_a_beginning_is_taken_from_the_whole_file_when_that_lies_here(hub: Hub, here: Here) -> None:
    source = serve(hub, body=STORIES)
    here.put("tales.txt", STORIES)
    (path,) = here.bring(source, limit_bytes=50_000)
    assert path.name == "tales.first-50000-bytes.txt"
    assert STORIES.startswith(path.read_bytes()) and path.stat().st_size > 49_000
    assert hub.asked == []


def test_a_limit_above_the_size_of_the_text_means_the_whole_file(hub: Hub, here: Here) -> None:
    assert here.bring(serve(hub), limit_bytes=300_000) == [here.folder / "tales.txt"]


def test_a_beginning_without_the_end_of_a_story_is_refused(hub: Hub, here: Here) -> None:
    with pytest.raises(DownloadError, match=r"the first 100 bytes .* hold no <\|endoftext\|>"):
        here.bring(serve(hub), limit_bytes=100)
    assert here.names() == set()
