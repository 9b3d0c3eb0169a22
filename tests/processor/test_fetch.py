"""Downloads: limits of size, time and redirects, and addresses that must not be reached."""

import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from ernie45.config.errors import MediaError
from ernie45.processor.addresses import is_public
from ernie45.processor.fetch import FetchLimits, fetch
from ernie45.processor.media import MediaLimits, load_image

BODY = b"x" * 5000
hung_up = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        name, _, argument = self.path.lstrip("/").partition("/")
        getattr(self, f"send_{name}")(argument)

    def send_body(self, _):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def send_unannounced(self, _):
        """No length: the connection's end is the body's end. Far more than any limit here."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for _ in range(1000):
                self.wfile.write(BODY)
        except OSError:
            hung_up.set()
        self.close_connection = True

    def send_drip(self, _):
        """A byte at a time, each well within a read's time limit."""
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        try:
            for _ in range(1000):
                self.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:
            pass
        self.close_connection = True

    def send_hop(self, count):
        self.send_response(302)
        self.send_header("Location", f"/hop/{int(count) - 1}" if int(count) > 1 else "/body")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_to(self, target):
        self.send_response(307)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_picture(self, _):
        file = io.BytesIO()
        Image.new("RGB", (30, 20), "red").save(file, "PNG")
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(file.getvalue())))
        self.end_headers()
        self.wfile.write(file.getvalue())

    def send_missing(self, _):
        self.send_error(404)

    def send_compressed(self, _):
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"abc")


@contextmanager
def running(certificate: Path | None = None) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def host():
    with running() as server:
        yield server


def limits(**options) -> FetchLimits:
    return FetchLimits(**{"total_seconds": 5.0, "allow_private_addresses": True, **options})


def get(host, path: str, max_bytes: int = 10_000, **options) -> bytes:
    url = f"http://127.0.0.1:{host.server_port}/{path}"
    return fetch(url, max_bytes, limits(**options), "messages[0].content[1].image_url")


def test_a_body_comes_whole(host):
    assert get(host, "body") == BODY


def test_a_picture_is_loaded_whatever_type_the_host_declares(host):
    url = f"http://127.0.0.1:{host.server_port}/picture"
    assert load_image(url, MediaLimits(allow_private_addresses=True)).size == (30, 20)
    with pytest.raises(MediaError, match="not an address of the public internet"):
        load_image(url)


def test_an_encrypted_host_must_prove_its_name(tmp_path, monkeypatch):
    """Refused with a certificate that nobody trusts; read once it is trusted; refused again under another name."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    file = tmp_path / "host.pem"
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pictures.test"]
    options += ["-addext", "subjectAltName=DNS:pictures.test", "-keyout", str(file), "-out", str(tmp_path / "c")]
    subprocess.run(["openssl", "req", "-x509", *options], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (tmp_path / "c").read_bytes())
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kwargs: look_up("127.0.0.1", *args, **kwargs))
    with running(file) as server:
        url = f"https://pictures.test:{server.server_port}/body"
        with pytest.raises(MediaError, match=r"cannot be fetched: .*CERTIFICATE_VERIFY_FAILED"):
            fetch(url, 10_000, limits())
        monkeypatch.setattr("ernie45.processor.fetch._ssl_context", lambda: ssl.create_default_context(cafile=tmp_path / "c"))
        assert fetch(url, 10_000, limits()) == BODY
        with pytest.raises(MediaError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(url.replace("pictures.test", "other.test"), 10_000, limits())


def test_redirects_are_followed_up_to_the_limit(host):
    assert get(host, "hop/3", max_redirects=3) == BODY
    with pytest.raises(MediaError, match="redirects more than 3 times"):
        get(host, "hop/4", max_redirects=3)


def test_a_body_announced_too_large_is_not_read(host):
    with pytest.raises(MediaError, match="larger than the limit of 4999 bytes"):
        get(host, "body", max_bytes=4999)


def test_a_body_without_length_is_cut_at_the_limit(host):
    with pytest.raises(MediaError, match="larger than the limit"):
        get(host, "unannounced")
    assert hung_up.wait(5)


def test_a_slow_drip_ends_at_the_total_time(host):
    start = time.monotonic()
    with pytest.raises(MediaError, match=r"took longer than the limit \(5 s to connect, 0\.4 s in all\)"):
        get(host, "drip", total_seconds=0.4)
    assert time.monotonic() - start < 2


def test_other_statuses_and_encodings_are_errors(host):
    with pytest.raises(MediaError, match="status 404"):
        get(host, "missing")
    with pytest.raises(MediaError, match="came compressed"):
        get(host, "compressed")


def test_a_redirect_to_another_scheme_is_refused(host):
    with pytest.raises(MediaError, match="must begin with http"):
        get(host, "to/file:///etc/passwd")


@contextmanager
def names(monkeypatch, addresses):
    """Let every name resolve to these addresses."""
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: entries)
        yield


PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "255.255.255.255", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "ff02::1", "192.0.0.192", "::ffff:192.0.0.192", "192.88.99.1",
    "198.18.0.1", "192.0.2.1", "240.0.0.1", "100.100.100.200", "64:ff9b:1::7f00:1", "2001:20::1", "fec0::1", "5f00::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_inner_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("url", ["http://xn--/", "http://xn--\u00e9/", "https://a.xn--a\u3002b/", "http://[::1", "http://a:b/"])
def test_addresses_that_are_none(url):
    """The first was a defect: its host cannot be decoded, which was found out too late."""
    with pytest.raises(MediaError, match="valid address|must begin with"):
        fetch(url, 100, FetchLimits(), "picture")


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_outer_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{}/body", "http://localhost:{}/body", "http://[::ffff:127.0.0.1]:{}/body"])
def test_the_own_machine_is_refused_by_default(host, url):
    with pytest.raises(MediaError, match="not an address of the public internet"):
        fetch(url.format(host.server_port), 10_000, limits(allow_private_addresses=False))


def test_a_name_with_one_inner_address_is_refused(monkeypatch):
    with names(monkeypatch, ["8.8.8.8", "10.0.0.1"]), pytest.raises(MediaError, match=r"10\.0\.0\.1"):
        fetch("http://pictures.example/a.png", 10_000, limits(allow_private_addresses=False))


def test_a_redirect_inside_is_refused_where_the_first_host_was_allowed(host, monkeypatch):
    """The check is made at each connection: here the first is let through by hand, the second is not."""
    seen = []

    def public_at_first(address):
        seen.append(address)
        return len(seen) == 1

    monkeypatch.setattr("ernie45.processor.addresses.is_public", public_at_first)
    with pytest.raises(MediaError, match="not an address of the public internet"):
        get(host, f"to/http://localhost:{host.server_port}/body", allow_private_addresses=False)
    assert len(seen) >= 2


@pytest.mark.parametrize("url", ["ftp://a.example/b", "http://", "http:///x", "http://a b/", "http://[::1", "//x/y", "x"])
def test_what_is_no_http_address_is_refused(url):
    with pytest.raises(MediaError):
        fetch(url, 10_000, limits())


def test_a_closed_port_is_an_error():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(MediaError, match="cannot be fetched"):
        fetch(f"http://127.0.0.1:{port}/", 10_000, limits())


def test_an_unknown_name_is_an_error(monkeypatch):
    def unknown(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(MediaError, match="cannot be resolved"):
        fetch("http://nowhere.example/a.png", 10_000, limits())


def test_a_name_server_that_hangs_ends_at_the_connect_time(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: release.wait(10) and [])
    start = time.monotonic()
    with pytest.raises(MediaError, match=r"longer than the limit \(0\.2 s to connect"):
        fetch("http://slow.example/a.png", 10_000, limits(connect_seconds=0.2))
    assert time.monotonic() - start < 2
    release.set()
