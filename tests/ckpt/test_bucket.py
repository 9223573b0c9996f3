"""A T5X checkpoint in a bucket: the same reader, over a local server that speaks as GCS does."""

import http.server
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

import pytest

from prompt_jax.ckpt import load, zarr
from prompt_jax.ckpt.paths import resolve_path

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "t5x"


class Bucket(http.server.BaseHTTPRequestHandler):
    """GET /storage/v1/b/BUCKET/o/OBJECT?alt=media over the fixtures."""

    asked: list[str] = []

    def do_GET(self):  # noqa: N802
        path = urllib.parse.urlsplit(self.path).path.split("/")
        name = urllib.parse.unquote(path[-1])
        file = FIXTURES / name
        self.asked.append(name)
        found = path[1:6] == ["storage", "v1", "b", "models", "o"] and file.is_file()
        body = file.read_bytes() if found else b"{}"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-goog-generation", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Bucket.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def prompt_jax(server, *flags):
    """The command line, in a process whose TensorStore and TensorFlow ask that server."""
    environment = {
        **os.environ,
        "TENSORSTORE_GCS_HTTP_URL": server,
        "TENSORSTORE_GCS_REQUEST_CONCURRENCY": "4",
        "TENSORSTORE_GCS_RETRY_MAX_ATTEMPTS": "1",
        "GCE_METADATA_ROOT": server.removeprefix("http://"),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-m", "prompt_jax", *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_checkpoint_in_a_bucket_is_converted(server, tmp_path):
    out = prompt_jax(server, "convert", "--from=gs://models/mixed", f"--to={tmp_path / 'out'}")
    assert out.returncode == 0, out.stderr
    local = load.load_backbone(FIXTURES / "mixed").fingerprint
    assert load.load_backbone(tmp_path / "out").fingerprint == local
    assert "mixed/checkpoint" in Bucket.asked
    assert not any("param_states" in name for name in Bucket.asked)


@pytest.mark.slow
def test_what_is_not_in_the_bucket_is_one_line(server, tmp_path):
    out = prompt_jax(server, "convert", "--from=t5x:gs://models/absent", f"--to={tmp_path / 'o'}")
    assert out.returncode == 2 and "Traceback" not in out.stderr, out.stderr
    last = out.stderr.splitlines()[-1]  # the library may have told of missing credentials
    assert last.startswith("gs://models/absent: holds no file `checkpoint`")


def test_paths_of_buckets():
    assert zarr.kvstore(resolve_path("gs://b/c/checkpoint_1")) == {
        "driver": "gcs",
        "bucket": "b",
        "path": "c/checkpoint_1/",
    }
    assert zarr.kvstore(resolve_path("t5x:gs://b/c"))["bucket"] == "b"
    assert zarr.kvstore(resolve_path("/x/y")) == {"driver": "file", "path": "/x/y/"}
