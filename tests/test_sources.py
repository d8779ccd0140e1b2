"""sources.py and download.py, with the real huggingface_hub, against a hub on loopback that misbehaves when told to."""

from __future__ import annotations

import errno
import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub import utils as hub_utils
from loopback_hub import LOGIN_PAGE, REPO, REVISION, Answer, Hub, self_signed, serving, sha256
from running import ENVIRONMENT, command, edited_config, run_script

from storyladder.corpus.corpora import RemoteFile, Source, corpus_named
from storyladder.corpus.download import ATTEMPTS, BLOCK_BYTES, LONGEST_WAIT_S
from storyladder.corpus.sources import SPARE_DISK_BYTES, download_source, hub_endpoint
from storyladder.runtime.errors import DownloadError

CHUNK = 1 << 18  # what the library writes at a time
BODY = random.Random(0).randbytes(4 * CHUNK)
OTHER = random.Random(1).randbytes(4 * CHUNK)
STORY = "Once there was a café.\n<|endoftext|>\n".encode()
STORIES = STORY * 5_000
# sockets that the library leaves open when it gives up a connection
pytestmark = pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, by us or by the library; nobody really waits."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waited: list[float]) -> Iterator[Hub]:
    """The hub, and a user without a token, a cache or proxies of their own."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(Hub()) as server:
        yield server
        hub_utils.get_session().close()
    new_session()
    gc.collect()  # sockets of connections that were given up, while their warnings are ignored


def corpus(*files: RemoteFile, val: tuple[RemoteFile, ...] = ()) -> Source:
    return Source(repo=REPO, revision=REVISION, files=files, val_files=val)


def serve(hub: Hub, path: str = "data/tales.txt", body: bytes = BODY, **changes: Any) -> Source:
    hub.files[path] = body
    return corpus(RemoteFile(path, **{"bytes": len(body), "sha256": sha256(body)} | changes))


class Here:
    """A folder, and what was said while a corpus was brought into it."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder, self.hub = folder, hub
        self.said: list[str] = []

    def bring(self, source: Source, **changes: Any) -> list[Path]:
        how: dict[str, Any] = {"stage": "tiny", "endpoint": self.hub.address, "log": self.said.append}
        return download_source(source, self.folder, **how | changes)

    def refusal(self, source: Source, **changes: Any) -> str:
        with pytest.raises(DownloadError) as refused:
            self.bring(source, **changes)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def put(self, name: str, data: bytes) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)
        return self.folder / name

    def begun(self, source: Source, stops_after: int = 2 * CHUNK) -> Path:
        """What an earlier run that Ctrl-C ended has left of a file."""
        parts = self.folder.rglob
        self.hub.script = [Answer(stops_after=stops_after, interrupts=True)]
        self.hub.may_interrupt = lambda: [part.stat().st_size for part in parts("*.part")] == [stops_after]
        with pytest.raises(KeyboardInterrupt):
            self.bring(source)
        self.hub.asked.clear()
        self.hub.bytes_sent = 0
        (part,) = self.folder.rglob("*.part")
        return part


@pytest.fixture
def here(tmp_path: Path, hub: Hub) -> Here:
    return Here(tmp_path / "raw" / "tiny", hub)


def source_of(corpus: str) -> Source:
    source = corpus_named(corpus).source
    assert source is not None
    return source


# A sound hub


def test_a_file_comes_whole_and_is_not_asked_for_again(hub: Hub, here: Here) -> None:
    source = serve(hub)
    assert here.bring(source) == [here.folder / "tales.txt"]
    assert (here.folder / "tales.txt").read_bytes() == BODY
    assert here.names() == {"tales.txt", "tales.txt.verified"}
    assert hub.asked == [("data/tales.txt", None)]
    hub.requests.clear()
    assert here.bring(source) == [here.folder / "tales.txt"]
    (here.folder / "tales.txt.verified").unlink()
    assert here.bring(source) == [here.folder / "tales.txt"]
    assert hub.requests == []
    assert here.names() == {"tales.txt", "tales.txt.verified"}


def test_training_files_come_first_and_validation_files_last(hub: Hub, here: Here) -> None:
    train, val = serve(hub, "train.txt").files, serve(hub, "valid.txt", OTHER).files
    source = corpus(*train, val=val)
    paths = here.bring(source)
    assert [path.name for path in paths] == ["train.txt", "valid.txt"]
    assert [line.lower() for line in hub.requests].count(
        f"get /api/datasets/{REPO}/revision/{REVISION}?blobs=true"
    ) == 1


def test_the_name_that_others_gave_a_file_is_accepted_when_it_is_that_file(hub: Hub, here: Here) -> None:
    source = serve(hub, "valid.txt", also_named=("val.txt",))
    path = here.put("val.txt", BODY)
    assert here.bring(source) == [path]
    path.write_bytes(OTHER)
    assert here.bring(source) == [here.folder / "valid.txt"]
    assert path.read_bytes() == OTHER


def test_nothing_is_drawn_where_there_is_no_terminal(hub: Hub, here: Here, capfd: pytest.CaptureFixture[str]) -> None:
    here.bring(serve(hub))
    here.bring(serve(hub, "begins.txt", STORIES), limit_bytes=50_000)
    assert capfd.readouterr() == ("", "")


def test_large_files_behind_a_redirect_are_fetched_and_the_token_stays_at_home(
    hub: Hub, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = serve(hub)
    with serving(Hub()) as storage:
        storage.files = hub.files
        elsewhere = f"http://localhost:{storage.server_port}/cdn/data/tales.txt"
        redirect = Answer(status=302, headers={"Location": elsewhere}, body=b"", ignores_range=True)
        sound = {"X-Repo-Commit": REVISION, "X-Linked-Size": str(len(BODY)), "X-Linked-Etag": f'"{sha256(BODY)}"'}
        hub.heads, hub.script = [replace(redirect, headers=redirect.headers | sound)], [redirect]
        monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert here.bring(source)[0].read_bytes() == BODY
        assert storage.bytes_sent == len(BODY)
        assert storage.tokens == {None} and "Bearer hf_secret" in hub.tokens


def test_xet_is_not_used_where_a_hub_offers_it(hub: Hub, here: Here) -> None:
    hub.has_xet = True
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert not any("xet-token" in request for request in hub.requests)
    assert hub.bytes_sent == len(BODY)


# Resuming


def test_a_dropped_connection_costs_only_the_missing_bytes(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=2 * CHUNK)]
    here.bring(serve(hub))
    assert (here.folder / "tales.txt").read_bytes() == BODY
    assert [span for _, span in hub.asked] == [None, f"bytes={2 * CHUNK}-"]
    assert hub.bytes_sent == len(BODY)


def test_a_reset_connection_is_taken_up_again(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=2 * CHUNK, resets=True)]
    here.bring(serve(hub))
    assert (here.folder / "tales.txt").read_bytes() == BODY
    assert len(hub.asked) == 2


def test_a_connection_that_stalls_is_given_up_and_taken_up_again(
    hub: Hub, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.script = [Answer(stops_after=2 * CHUNK, stalls=True)]
    here.bring(serve(hub))
    assert [span for _, span in hub.asked] == [None, f"bytes={2 * CHUNK}-"]


def test_a_stopped_download_leaves_no_final_file_and_resumes(hub: Hub, here: Here) -> None:
    source = serve(hub)
    part = here.begun(source)
    assert here.names() == {"tales.txt.part"}
    assert part.read_bytes() == BODY[: 2 * CHUNK]
    assert here.bring(source)[0].read_bytes() == BODY
    assert hub.asked == [("data/tales.txt", f"bytes={2 * CHUNK}-")]
    assert hub.bytes_sent == len(BODY) - 2 * CHUNK
    assert here.names() == {"tales.txt", "tales.txt.verified"}


def test_what_is_left_of_one_file_does_not_count_for_another(hub: Hub, here: Here) -> None:
    part = here.begun(serve(hub))
    here.bring(serve(hub, "other.txt", OTHER))
    assert part.read_bytes() == BODY[: 2 * CHUNK]


def test_a_part_of_another_file_is_found_out_and_fetched_again(hub: Hub, here: Here) -> None:
    source = serve(hub)
    here.begun(source).write_bytes(OTHER[:CHUNK])
    assert here.bring(source)[0].read_bytes() == BODY
    assert [span for _, span in hub.asked] == [f"bytes={CHUNK}-", None]
    assert "again from the start" in here.said[0]


def test_a_part_that_is_longer_than_the_file_is_fetched_again(hub: Hub, here: Here) -> None:
    source = serve(hub)
    here.begun(source).write_bytes(BODY + b"more")
    assert here.bring(source)[0].read_bytes() == BODY
    assert [span for _, span in hub.asked] == [f"bytes={len(BODY) + 4}-", None]


def test_a_hub_that_ignores_range_starts_from_zero(hub: Hub, here: Here) -> None:
    source = serve(hub)
    here.begun(source)
    hub.script = [Answer(ignores_range=True)]
    assert here.bring(source)[0].read_bytes() == BODY
    assert len(hub.asked) == 1


def test_a_resumption_from_the_wrong_place_is_found_out(hub: Hub, here: Here) -> None:
    source = serve(hub)
    here.begun(source)
    hub.script = [Answer(status=206, body=OTHER[2 * CHUNK :], ignores_range=True)]
    assert here.bring(source)[0].read_bytes() == BODY
    assert [span for _, span in hub.asked] == [f"bytes={2 * CHUNK}-", None]


# Hubs that lie


@pytest.mark.slow
@pytest.mark.parametrize("body", [BODY[:-10], BODY + b"more"], ids=["shorter", "longer"])
def test_a_body_of_another_length_is_not_taken_for_the_file(hub: Hub, here: Here, body: bytes) -> None:
    hub.script = [Answer(body=body)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY


def test_a_body_without_a_length_that_ends_early_is_not_taken_for_the_file(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=len(BODY) - 1, without_length=True)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert hub.asked[1][1] == f"bytes={len(BODY) - 1}-"


def test_wrong_bytes_get_one_more_chance(hub: Hub, here: Here) -> None:
    hub.script = [Answer(body=OTHER)]
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert [span for _, span in hub.asked] == [None, None]
    assert sha256(OTHER) in here.said[0]


def test_wrong_bytes_never_get_the_final_name(hub: Hub, here: Here) -> None:
    hub.script = [Answer(body=OTHER)] * 2
    message = here.refusal(serve(hub))
    assert f"SHA-256 {sha256(OTHER)}, expected {sha256(BODY)}" in message
    assert "HF_ENDPOINT" in message and "--from" in message
    assert here.names() == set()
    assert len(hub.asked) == 2


@pytest.mark.parametrize("change", [{"size": 7}, {"sha256": "0" * 64}], ids=["size", "hash"])
def test_a_hub_that_holds_another_file_is_refused_before_the_first_byte(
    hub: Hub, here: Here, change: dict[str, Any]
) -> None:
    source = serve(hub)
    hub.listed["data/tales.txt"] = change
    assert "that server has another file" in here.refusal(source)
    assert hub.asked == []


def test_a_hub_that_never_gets_further_is_given_up(hub: Hub, here: Here) -> None:
    hub.script = [Answer(stops_after=CHUNK, ignores_range=True)] * 100
    assert f"{ATTEMPTS} times in a row" in here.refusal(serve(hub))
    assert here.names() == {"tales.txt.part"}
    assert ATTEMPTS <= len(hub.asked) <= 7 * ATTEMPTS


def test_a_line_that_drops_often_is_borne_as_long_as_it_brings_something(hub: Hub, here: Here) -> None:
    body = random.Random(2).randbytes(12 * CHUNK)
    hub.script = [Answer(stops_after=CHUNK)] * 11
    assert here.bring(serve(hub, body=body))[0].read_bytes() == body
    assert hub.bytes_sent == len(body)


# Hubs that refuse


@pytest.mark.slow
@pytest.mark.parametrize("status", [408, 429, 500, 503])
@pytest.mark.parametrize("kind", ["listings", "script"])
def test_a_busy_hub_is_asked_again(hub: Hub, here: Here, waited: list[float], status: int, kind: str) -> None:
    setattr(hub, kind, [Answer(status=status), Answer(status=status)])
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert sum(waited) >= 1 + 2


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "seconds"), [("7", 7.0), ("0", 1.0), ("86400", LONGEST_WAIT_S), ("soon", 1.0)])
def test_the_hub_says_how_long_to_wait_within_bounds(
    hub: Hub, here: Here, waited: list[float], asked: str, seconds: float
) -> None:
    hub.listings = [Answer(status=429, headers={"Retry-After": asked})]
    here.bring(serve(hub))
    assert waited == [seconds]
    assert here.said == [f"{hub.address} answered HTTP 429; retrying in {seconds:.0f} s"]


def test_a_hub_that_stays_busy_is_given_up(hub: Hub, here: Here, waited: list[float]) -> None:
    hub.listings = [Answer(status=503)] * 50
    assert f"HTTP 503, {ATTEMPTS} times in a row; set HF_ENDPOINT" in here.refusal(serve(hub))
    assert len(hub.requests) == ATTEMPTS
    assert waited == [1, 2, 4, 8]


def test_a_hub_that_is_not_there_is_named(hub: Hub, here: Here) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        message = here.refusal(serve(hub), endpoint=address)
    assert f"the connection to {address} broke" in message and "refused" in message


def assert_told_at_once(hub: Hub, here: Here, waited: list[float], source: Source, *words: str, **how: Any) -> None:
    """One line, after one question, and no waiting as for a fault that passes."""
    message = here.refusal(source, **how)
    for word in words:
        assert word in message, message
    assert waited == [] and here.said == [] and hub.asked == []


def test_another_revision_or_dataset_or_file_is_told_by_what_is_missing(
    hub: Hub, here: Here, waited: list[float]
) -> None:
    source = serve(hub)
    unknown = replace(source, revision="cd" * 20)
    assert_told_at_once(hub, here, waited, unknown, "404", f"{REPO} has no revision {'cd' * 20}", "HF_ENDPOINT")
    assert_told_at_once(hub, here, waited, replace(source, repo="some/tales"), "404", "some/tales at revision")
    hub.files["other.txt"] = hub.files.pop("data/tales.txt")
    assert_told_at_once(hub, here, waited, source, "lists no size and SHA-256 for data/tales.txt", REPO)
    by_hand = f"by hand into {here.folder} and run: python prepare_data.py --stage tiny --from {here.folder}"
    assert_told_at_once(hub, here, waited, source, by_hand)


def test_a_token_is_asked_for_sent_and_told_when_it_is_not_accepted(
    hub: Hub, here: Here, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, hub.token = serve(hub), "hf_right"
    assert_told_at_once(hub, here, waited, source, "HTTP 401", "set HF_TOKEN to a token that may read it")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert_told_at_once(
        hub, here, waited, source, "HTTP 401", "your token gives no access", "correct or unset HF_TOKEN"
    )
    hub.gated = True
    assert_told_at_once(hub, here, waited, source, f"gated; accept its terms at {hub.address}/datasets/{REPO}")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert here.bring(source)[0].read_bytes() == BODY
    assert here.bring(serve(hub, "begins.txt", STORIES), limit_bytes=50_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "words"),
    [(403, "HF_TOKEN"), (407, "the proxy requires a log-in"), (451, "HTTP 451"), (511, "log-in page")],
)
def test_other_refusals_are_told_at_once(hub: Hub, here: Here, waited: list[float], status: int, words: str) -> None:
    hub.listings = [Answer(status=status)]
    assert_told_at_once(hub, here, waited, serve(hub), f"HTTP {status}", words)


def test_the_log_in_page_of_a_network_is_told_as_such(hub: Hub, here: Here, waited: list[float]) -> None:
    source, hub.listings = serve(hub), [LOGIN_PAGE]
    words = ("does not answer like a hub", f"log-in page, open {hub.address}")
    assert_told_at_once(hub, here, waited, source, *words)
    hub.listings = [Answer(status=302, headers={"Location": f"http://127.0.0.1:{hub.server_port}/login"}, body=b"")]
    assert "404" in here.refusal(source)  # a page that is not there is no log-in page
    hub.asked.clear()


def test_a_log_in_page_in_the_middle_of_a_download_does_not_cost_the_part(hub: Hub, here: Here) -> None:
    source = serve(hub)
    part = here.begun(source)
    hub.script, hub.heads = [LOGIN_PAGE], [LOGIN_PAGE]
    assert "log-in page" in here.refusal(source)
    assert part.read_bytes() == BODY[: 2 * CHUNK]


def test_a_log_in_page_instead_of_a_file_is_told_as_such(hub: Hub, here: Here) -> None:
    source, hub.script, hub.heads = serve(hub), [LOGIN_PAGE] * 2, [LOGIN_PAGE]
    assert "log-in page" in here.refusal(source)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [b"[]", b"7", b'{"siblings": [{}]}', b"[" * 100_000, b"\xff\xfe\x00", b'{"id": "x", "siblings": 7}']
)
def test_a_listing_that_is_none_is_told_as_such(hub: Hub, here: Here, waited: list[float], page: bytes) -> None:
    hub.listings = [Answer(body=page)]
    assert_told_at_once(hub, here, waited, serve(hub), "does not answer like a hub")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/api/datasets/round"])
def test_a_redirect_that_leads_nowhere_is_told_in_one_line(hub: Hub, here: Here, target: str) -> None:
    source = serve(hub)
    hub.listings = [Answer(status=302, headers={"Location": target}, body=b"")] * 200
    assert "does not answer like a hub" in here.refusal(source)
    assert here.names() == set()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_vouches_for_is_told_at_once_and_can_be_trusted(
    hub: Hub, here: Here, waited: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    certificate = self_signed(tmp_path / "own.pem")
    with serving(Hub(certificate)) as secure:
        source = serve(secure)
        words = (f"the certificate of {secure.address} is not trusted", "self-signed", "REQUESTS_CA_BUNDLE")
        assert_told_at_once(secure, here, waited, source, *words, endpoint=secure.address)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        new_session()
        assert here.bring(source, endpoint=secure.address)[0].read_bytes() == BODY


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_file_of_certificates_that_is_not_there_is_named(
    here: Here, waited: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "typo.pem"))
    new_session()
    with serving(Hub(self_signed(tmp_path / "own.pem"))) as secure:
        words = ("SSL_CERT_FILE is", "typo.pem', expected a file; correct or unset it")
        assert_told_at_once(secure, here, waited, serve(secure), *words, endpoint=secure.address)
    monkeypatch.undo()
    new_session()


def new_session() -> None:
    """What a new process would have: the library reads certificates and proxies when it opens a session."""
    (hub_utils.reset_sessions if hasattr(hub_utils, "reset_sessions") else hub_utils.close_session)()


def test_a_name_that_nobody_knows_is_told_at_once(hub: Hub, here: Here, waited: list[float]) -> None:
    words = ("the host of http://hub.invalid could not be resolved", "HF_ENDPOINT")
    assert_told_at_once(hub, here, waited, serve(hub), *words, endpoint="http://hub.invalid")


def test_a_proxy_of_the_environment_is_used_and_named_when_it_fails(
    hub: Hub, here: Here, waited: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", hub.address)
    monkeypatch.setenv("https_proxy", hub.address)
    new_session()
    source = serve(hub)
    assert here.bring(source, endpoint="http://hub.invalid")[0].read_bytes() == BODY
    assert any(line.startswith("GET http://hub.invalid/datasets") for line in hub.requests)
    hub.asked.clear()
    words = ("the proxy blocked https://hub.invalid", "HTTPS_PROXY")
    assert_told_at_once(hub, here, waited, serve(hub, "b.txt"), *words, endpoint="https://hub.invalid")
    new_session()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tiny", "children"], ids=["a beginning", "a whole file"])
def test_a_signal_leaves_with_its_own_status_and_keeps_what_has_come(hub: Hub, tmp_path: Path, stage: str) -> None:
    source, raw = source_of(stage), tmp_path / "data" / "raw" / stage
    hub.repo, hub.revision = source.repo, source.revision
    hub.files = {file.path: STORY * 150_000 for file in source.files[:1] + source.val_files}
    hub.listed = {file.path: {"size": file.bytes, "sha256": file.sha256} for file in source.files if file.bytes}
    cut = Answer(stops_after=BLOCK_BYTES, interrupts=True)
    hub.script = [Answer(), replace(cut, stops_after=1000)] if stage == "tiny" else [cut]
    parts = raw.glob
    flags = ("--config", own_config(tmp_path), "--download", "--stage", stage, "--limit-mb", "5")
    environment = ENVIRONMENT | {"HF_ENDPOINT": hub.address, "NO_PROXY": "*"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command("prepare_data.py", *flags), env=environment, **pipes) as process:
        hub.may_interrupt = lambda: [part.stat().st_size for part in parts("*.part")] == [BLOCK_BYTES]
        hub.interrupt = lambda: process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("", "\nthe download stops here; the same command resumes it\n")
    assert process.returncode == 143
    assert [path.stat().st_size for path in raw.iterdir()] == [BLOCK_BYTES]
    assert not list((tmp_path / "data").glob("*.bin*"))


def own_config(tmp_path: Path) -> Path:
    """config.py with all folders under tmp_path."""
    return edited_config(tmp_path, f"HERE = Paths(root={str(tmp_path)!r})", "PRESETS = (replace(LADDER, paths=HERE),)")


def run_download(tmp_path: Path, hub: Hub, **environment: str) -> Any:
    """`prepare_data.py --download` as a user runs it, with folders under tmp_path."""
    own = {"HF_ENDPOINT": hub.address, "NO_PROXY": "*", "HF_HOME": str(tmp_path / "hf")}
    flags = ("--config", own_config(tmp_path), "--download", "--stage", "tiny", "--limit-mb", "0.05")
    return run_script("prepare_data.py", *flags, environment=own | environment)


@pytest.mark.slow
def test_offline_mode_asks_nobody(hub: Hub, tmp_path: Path) -> None:
    done = run_download(tmp_path, hub, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: HF_HUB_OFFLINE is set, and files of roneneldan/TinyStories are neither here nor in" in done.stderr
    assert done.stderr.count("\n") == 1
    assert hub.requests == []


@pytest.mark.slow
def test_neither_telemetry_nor_anybody_else_is_asked(hub: Hub, tmp_path: Path) -> None:
    tiny = source_of("tiny")
    hub.repo, hub.revision, hub.has_xet = tiny.repo, tiny.revision, True
    hub.files = {file.path: STORIES for file in tiny.files + tiny.val_files}
    hub.listed = {file.path: {"size": file.bytes, "sha256": file.sha256} for file in tiny.files + tiny.val_files}
    hub.script = [Answer(), Answer(status=404)]
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event == 'socket.connect' and arguments[1][0] != '127.0.0.1' or event == 'socket.getaddrinfo'"
        " and arguments[0] != '127.0.0.1':\n"
        "        sys.stderr.write(f'STRANGER {arguments}\\n')\n"
        "sys.addaudithook(watch)\n"
    )
    done = run_download(tmp_path, hub, PYTHONPATH=str(guard))
    assert done.returncode == 2 and "STRANGER" not in done.stderr
    assert "HTTP 404" in done.stderr, "the validation file was asked for"
    assert (tmp_path / "data/raw/tiny/TinyStoriesV2-GPT4-train.first-50000-bytes.txt").exists()
    assert not any("xet-token" in request for request in hub.requests)
    assert not any("torch/" in agent for agent in hub.user_agents)
    assert not (tmp_path / "hf").exists()


def test_help_and_samples_do_not_import_the_library(tmp_path: Path) -> None:
    program = "import sys, prepare_data\ntry:\n    prepare_data.main(['--help'])\nexcept SystemExit:\n    pass\n"
    program += "from storyladder.corpus import sources, download\nprint('huggingface_hub' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# What lies here already, or in the hub's cache


@pytest.mark.slow
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
    assert hub.requests == []


def test_an_unchanged_verified_file_is_not_hashed_again(hub: Hub, here: Here) -> None:
    path = here.bring(serve(hub))[0]
    times = path.stat()
    path.write_bytes(OTHER)  # a forgery that only a hash could notice
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert here.bring(serve(hub)) == [path]
    assert len(hub.asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("record", ["", "[]", "{}", "null", '{"bytes": 1}', "\x00"])
def test_a_damaged_record_is_no_record(hub: Hub, here: Here, record: str) -> None:
    path = here.bring(serve(hub))[0]
    here.put("tales.txt.verified", record.encode())
    assert here.bring(serve(hub)) == [path]
    assert json.loads((here.folder / "tales.txt.verified").read_text())["sha256"] == sha256(BODY)


@pytest.fixture
def cache(hub: Hub, here: Here) -> Path:
    """data/tales.txt in the hub's cache, as the library itself puts it there; its blob."""
    serve(hub)
    where = {"repo_type": "dataset", "revision": REVISION, "endpoint": hub.address}
    found = Path(huggingface_hub.hf_hub_download(REPO, "data/tales.txt", **where)).resolve()
    hub.requests.clear()
    return found


@pytest.mark.parametrize("pinned", [{}, {"bytes": None, "sha256": None}], ids=["pinned", "by the name of its blob"])
def test_a_file_in_the_cache_of_the_hub_is_not_stored_twice(
    hub: Hub, here: Here, cache: Path, pinned: dict[str, Any]
) -> None:
    (path,) = here.bring(serve(hub, **pinned))
    assert path.read_bytes() == BODY and path.stat().st_ino == cache.stat().st_ino
    assert hub.requests == []
    assert here.names() == {"tales.txt", "tales.txt.verified"}


def test_a_file_in_a_cache_on_another_disk_is_copied(
    hub: Hub, here: Here, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert here.bring(serve(hub))[0].read_bytes() == BODY
    assert hub.requests == []


def test_a_damaged_file_in_the_cache_is_not_used(hub: Hub, here: Here, cache: Path) -> None:
    cache.write_bytes(OTHER)
    assert here.bring(serve(hub))[0].read_bytes() == BODY


def test_a_beginning_is_taken_from_the_cache(hub: Hub, here: Here) -> None:
    source = serve(hub, body=STORIES)
    where = {"repo_type": "dataset", "revision": REVISION, "endpoint": hub.address}
    huggingface_hub.hf_hub_download(REPO, "data/tales.txt", **where)
    hub.requests.clear()
    assert STORIES.startswith(here.bring(source, limit_bytes=50_000)[0].read_bytes())
    assert hub.requests == []


# Mirrors and their listings


def test_the_mirror_comes_from_the_environment() -> None:
    assert hub_endpoint({}) == "https://huggingface.co"
    assert hub_endpoint({"HF_ENDPOINT": "  "}) == "https://huggingface.co"
    assert hub_endpoint({"HF_ENDPOINT": "https://mirror.example/"}) == "https://mirror.example/"


def test_a_mirror_with_a_slash_at_its_end_is_used(hub: Hub, here: Here) -> None:
    source, hub.prefix = serve(hub), "/mirror"
    here.bring(source, endpoint=hub_endpoint({"HF_ENDPOINT": f"{hub.address}/mirror/"}))
    assert {request.split(" ")[1].split("datasets")[0] for request in hub.requests} == {"/mirror/api/", "/mirror/"}


@pytest.mark.slow
@pytest.mark.parametrize("address", ["mirror.example", "ftp://mirror.example", "file:///etc", "https://", "http://[x"])
def test_a_mirror_that_is_no_address_is_refused(hub: Hub, here: Here, address: str) -> None:
    with pytest.raises(DownloadError, match=r"expected one like https://huggingface.co"):
        here.bring(serve(hub), endpoint=address)


def test_sizes_and_hashes_that_are_not_pinned_come_from_the_listing_once(hub: Hub, here: Here) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    source = corpus(*source.files, *serve(hub, "b.json", OTHER, sha256=None).files)
    hub.files["../../../escaped.json"] = BODY
    assert [path.read_bytes() for path in here.bring(source)] == [BODY, OTHER]
    assert len([request for request in hub.requests if "blobs" in request]) == 1
    assert here.names() == {"a.json", "a.json.verified", "b.json", "b.json.verified"}
    assert not list(here.folder.parent.parent.glob("escaped*"))
    hub.requests.clear()
    here.bring(source)
    assert hub.requests == []


def test_the_record_of_another_revision_is_not_believed(hub: Hub, here: Here) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    here.bring(source)
    hub.files["a.json"], hub.revision = OTHER, "cd" * 20
    assert here.bring(replace(source, revision=hub.revision))[0].read_bytes() == OTHER


def test_bytes_that_do_not_have_the_listed_hash_are_refused(hub: Hub, here: Here) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    hub.listed["a.json"] = {"sha256": sha256(OTHER)}
    assert f"expected {sha256(OTHER)}" in here.refusal(source)
    assert here.names() == set()


def test_a_listing_that_contradicts_the_table_is_refused(hub: Hub, here: Here) -> None:
    source = serve(hub, "a.json", bytes=7, sha256=None)
    assert f"{len(BODY):,} bytes and SHA-256 {sha256(BODY)} in the listing of {hub.address}, expected 7 and" in (
        here.refusal(source)
    )


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"sha256": "../x"}, {"size": "300000"}, {"size": -1}, {"sha256": None}])
def test_a_listing_without_size_or_hash_is_refused(hub: Hub, here: Here, change: dict[str, Any]) -> None:
    source = serve(hub, "a.json", bytes=None, sha256=None)
    hub.listed["a.json"] = change
    assert "lists no size and SHA-256 for a.json" in here.refusal(source)


# The disk


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    hub: Hub, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, needed = serve(hub), len(BODY) + SPARE_DISK_BYTES

    def set_free(size: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))

    set_free(needed - 1)
    message = here.refusal(source)
    assert f"{needed - 1:,} bytes free, expected at least {needed:,}" in message
    assert hub.requests == []
    set_free(needed)
    here.begun(source)
    set_free(needed - 2 * CHUNK)
    here.bring(source)
    set_free(0)
    here.bring(source)  # nothing is missing any more


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("limit_bytes", [None, 50_000])
def test_a_disk_that_runs_full_is_told_at_once(
    hub: Hub, here: Here, waited: list[float], limit_bytes: int | None
) -> None:
    source = serve(hub, body=STORIES * 8)
    part = here.folder / "tales.first-50000-bytes.txt.part" if limit_bytes else here.begun(source)
    here.folder.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    part.symlink_to("/dev/full")
    message = here.refusal(source, limit_bytes=limit_bytes)
    assert "is full" in message and "the partial download is kept" in message
    assert waited == []


def test_a_folder_that_cannot_be_made_is_told_as_such(hub: Hub, here: Here, tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file")
    message = here.refusal(serve(hub))
    assert "cannot write to" in message and "expected a writable folder" in message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_told_as_such_but_its_complete_files_are_used(hub: Hub, here: Here) -> None:
    source = serve(hub)
    here.put("tales.txt", BODY)
    here.folder.chmod(0o555)
    try:
        assert here.bring(source) == [here.folder / "tales.txt"]
        with pytest.raises(DownloadError, match="cannot write to"):
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
    assert hub.asked == [("data/tales.txt", "bytes=0-49999")]
    assert hub.bytes_sent == 50_000
    assert "cannot be verified by SHA-256" in here.said[0]
    hub.requests.clear()
    assert here.bring(source, limit_bytes=50_000) == [path]
    assert hub.requests == []
    assert here.bring(source) == [here.folder / "tales.txt"]
    assert (here.folder / "tales.txt").read_bytes() == STORIES


def test_the_beginning_of_lines_ends_with_a_line(hub: Hub, here: Here) -> None:
    line = b'{"story": "Once"}\n'
    (path,) = here.bring(serve(hub, "tales.jsonl", line * 1000), limit_bytes=1000)
    assert (path.name, path.read_bytes()) == ("tales.first-1000-bytes.jsonl", line * (1000 // len(line)))


def test_a_beginning_that_was_changed_or_has_no_record_is_fetched_again(hub: Hub, here: Here) -> None:
    source = serve(hub, body=STORIES)
    (path,) = here.bring(source, limit_bytes=50_000)
    text = path.read_bytes()
    path.write_bytes(text[:-100])
    assert here.bring(source, limit_bytes=50_000)[0].read_bytes() == text
    path.with_name(f"{path.name}.verified").unlink()
    assert here.bring(source, limit_bytes=50_000)[0].read_bytes() == text
    assert len(hub.asked) == 3


def test_a_long_beginning_comes_in_blocks_and_ends_with_its_last_story(hub: Hub, here: Here) -> None:
    limit = BLOCK_BYTES + 500_000
    (path,) = here.bring(serve(hub, body=STORY * 200_000), limit_bytes=limit)
    assert limit - len(STORY) < path.stat().st_size <= limit
    assert [span for _, span in hub.asked] == [f"bytes=0-{BLOCK_BYTES - 1}", f"bytes={BLOCK_BYTES}-{limit - 1}"]


def test_a_beginning_that_was_only_touched_is_kept(hub: Hub, here: Here) -> None:
    source = serve(hub, body=STORIES)
    (path,) = here.bring(source, limit_bytes=50_000)
    os.utime(path, ns=(1, 1))
    assert here.bring(source, limit_bytes=50_000) == [path]
    assert len(hub.asked) == 1


def test_a_beginning_that_drops_or_is_stopped_is_resumed(hub: Hub, here: Here) -> None:
    body, limit = STORY * 200_000, BLOCK_BYTES + 500_000
    source = serve(hub, body=body)
    hub.script = [Answer(stops_after=20_000), Answer(), Answer(stops_after=7, interrupts=True)]
    with pytest.raises(KeyboardInterrupt):
        here.bring(source, limit_bytes=limit)
    assert here.names() == {f"tales.first-{limit}-bytes.txt.part"}
    hub.asked.clear()
    (path,) = here.bring(source, limit_bytes=limit)
    assert body.startswith(path.read_bytes())
    assert [span for _, span in hub.asked] == [f"bytes={BLOCK_BYTES}-{limit - 1}"]


def test_a_part_of_a_beginning_that_is_too_long_is_fetched_again(hub: Hub, here: Here) -> None:
    here.put("tales.first-50000-bytes.txt.part", OTHER)
    assert STORIES.startswith(here.bring(serve(hub, body=STORIES), limit_bytes=50_000)[0].read_bytes())


@pytest.mark.parametrize("answer", [Answer(ignores_range=True), Answer(body=STORY, ignores_range=True)])
def test_a_hub_without_ranges_is_told_to_serve_whole_files_only(
    hub: Hub, here: Here, waited: list[float], answer: Answer
) -> None:
    hub.script = [answer]
    message = here.refusal(serve(hub, body=STORIES), limit_bytes=50_000)
    assert "ignores range requests; leave out --limit-mb" in message
    assert waited == []


def test_a_beginning_is_taken_from_the_whole_file_when_that_lies_here(hub: Hub, here: Here) -> None:
    source = serve(hub, body=STORIES)
    here.put("tales.txt", STORIES)
    (path,) = here.bring(source, limit_bytes=50_000)
    assert path.name == "tales.first-50000-bytes.txt"
    assert STORIES.startswith(path.read_bytes()) and path.stat().st_size > 49_000
    assert hub.asked == []


def test_a_limit_above_the_size_of_the_text_means_the_whole_file(hub: Hub, here: Here) -> None:
    assert here.bring(serve(hub), limit_bytes=len(BODY)) == [here.folder / "tales.txt"]


def test_a_beginning_without_the_end_of_a_story_is_refused(hub: Hub, here: Here) -> None:
    message = here.refusal(serve(hub), limit_bytes=100)
    assert "the first 100 bytes" in message and "hold no '<|endoftext|>'" in message
    assert here.names() == set()
