"""The hub: never asked when offline, and each way in which it fails is one line, soon."""

import errno
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from embedcache.encoders.hub import NotFetched, hub_file, hub_off, why_unreachable
from embedcache.encoders.models import BUILTIN
from embedcache.encoders.weights import find_weights
from embedcache.errors import EncoderWeightsError


class Hub(BaseHTTPRequestHandler):
    """A hub that answers each file with the headers and the status of `answer`."""

    answer = (404, {})

    def do_HEAD(self):
        self.server.asked.append(self.path)
        status, headers = (200, {}) if self.path == "/" else self.server.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_: object):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.answer = [], (404, {"X-Error-Code": "EntryNotFound"})
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()
    server.server_close()


def point_to(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refused(match, **options):
    with pytest.raises(EncoderWeightsError, match=match) as raised:
        find_weights(BUILTIN["resnet50"], **options)
    assert "\n" not in str(raised.value)
    assert "or pass --weights FILE" in str(raised.value)


def test_offline_asks_nobody_whenever_the_client_was_imported(hub):
    refused("not in the Hugging Face cache, and --offline forbids", offline=True)
    with hub_off(), pytest.raises(NotFetched, match="HF_HUB_OFFLINE is set"):
        hub_file("org/name", ["config.json"], offline=False)
    with hub_off(), pytest.raises(errors.LocalEntryNotFoundError):
        huggingface_hub.hf_hub_download("org/name", "config.json")
    assert hub.asked == []
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ


def test_offline_by_the_clients_own_variable_is_said(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE is set; unset it to fetch")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((403, {"X-Error-Code": "GatedRepo"}), "its licence has to be accepted there"),
        ((404, {"X-Error-Code": "RepoNotFound"}), "no such repository, or a private one"),
        ((404, {"X-Error-Code": "EntryNotFound"}), "the hub has none of "),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "no such revision"),
        ((400, {}), "answered with status 400"),
    ],
)
def test_each_refusal_of_the_hub_has_its_reason(hub, answer, match):
    hub.answer = answer
    refused(match)


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    point_to(monkeypatch, "http://127.0.0.1:9")
    refused(r"http://127\.0\.0\.1:9 cannot be asked \(.*refused")


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert re.search("timed out|does not answer within 0.2 s", why_unreachable(0.2))


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left on device; mend that, or",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "set HF_HUB_CACHE to another folder"),
        (RuntimeError("proxy said 407"), r"cannot be asked \(proxy said 407\)"),
        (TimeoutError(), r"cannot be asked \(TimeoutError\)"),
    ],
)
def test_what_the_client_raises_is_one_line(hub, monkeypatch, error, match):
    def fail(*_: object, **__: object):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    refused(match)


def test_no_answer_in_the_middle_is_not_taken_for_a_file_that_the_hub_lacks(hub, monkeypatch):
    asked = []

    def fail(_: str, name: str, **__: object):
        asked.append(name)
        raise errors.LocalEntryNotFoundError("offline?") from ConnectionError("reset by peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(NotFetched, match="reset by peer"):
        hub_file("org/name", ["a", "b", "c"], offline=False)
    assert asked == ["a"]


def test_a_name_that_is_no_repository_is_said(hub):
    with pytest.raises(NotFetched, match="no name of a repository; expected ORG/NAME"):
        hub_file("a/b/c", ["config.json"], offline=False)
