"""A Debian mirror on this machine. Its packages are real and really signed. Its HTTP server can
fail as mirrors, proxies and networks do."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from orchestrator.kernels.debian.apt import KEYRING
from tests.unit.kernels.fakes import folder_kernel

SUITE, PACKAGE, RELEASE = "trixie", "linux-image-cloud-amd64", "7.0.0-mirror"
DEB = f"pool/{PACKAGE}_1.0_amd64.deb"
LISTS = f"dists/{SUITE}/main/binary-amd64/Packages"
_TICK = 0.1


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        with contextlib.suppress(ConnectionError):  # the client has gone
            if not self.server.behaviour(self):
                super().do_GET()

    def say(self, code: int, body: bytes = b"", **headers: str) -> bool:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        return True

    def log_message(self, *_: object) -> None:
        pass

    def guess_type(self, _: object) -> str:
        return "application/octet-stream"


Behaviour = Callable[[Handler], bool]
"""Function that answers a request in place of the server. It returns False to have the requested
file served."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, folder: Path, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.behaviour = behaviour
        self.asked: list[str] = []
        self.released = threading.Event()
        """Event that ends the answers that hang or trickle."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def until_asked(self, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not self.asked:
            assert time.monotonic() < end, "nobody asked the mirror"
            time.sleep(0.02)


@contextlib.contextmanager
def serving(folder: Path, behaviour: Behaviour) -> Iterator[Server]:
    with Server(folder, behaviour) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_TICK / 2,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()


# what mirrors do -----------------------------------------------------------------------------


def works(_: Handler) -> bool:
    return False


def hangs(handler: Handler) -> bool:
    """Send nothing until the server is released, then close the connection."""
    handler.server.released.wait()
    handler.close_connection = True
    return True


def trickles(handler: Handler) -> bool:
    """Announce a file of 1 MB and send one byte of it every 0.1 s."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not handler.server.released.wait(_TICK):
        handler.wfile.write(b"x")
        handler.wfile.flush()
    return True


def fails(code: int) -> Behaviour:
    return lambda handler: handler.say(code, b"no\n")


def redirects_to_itself(handler: Handler) -> bool:
    return handler.say(302, Location=f"{handler.server.url}{handler.path}")


def redirects_to(url: str) -> Behaviour:
    return lambda handler: handler.say(302, Location=f"{url}{handler.path}")


def portal(handler: Handler) -> bool:
    """Serve the login page of a captive portal in place of every file."""
    return handler.say(200, b"<!DOCTYPE html><title>Welcome</title><p>Please log in.\n" * 20)


def hangs_up(handler: Handler) -> bool:
    """Close the connection after 1000 bytes of each file."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    handler.wfile.write(b"x" * 1000)
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


def instead(file: str, behaviour: Behaviour) -> Behaviour:
    """Apply a behaviour to one file only. All others are served."""
    return lambda handler: handler.path.endswith(file) and behaviour(handler)


def changed(file: str, change: Callable[[bytes], bytes]) -> Behaviour:
    """Serve one file with other content than was signed."""

    def serve(handler: Handler) -> bool:
        local = Path(handler.directory) / handler.path.lstrip("/")
        return handler.say(200, change(local.read_bytes()))

    return instead(file, serve)


# what is served ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    """A key of an archive, made for this test run."""

    home: Path

    @classmethod
    @contextlib.contextmanager
    def made(cls) -> Iterator[Key]:
        # a short path, because it holds the socket of gpg-agent
        home = Path(tempfile.mkdtemp(prefix="gpg-"))
        key = cls(home)
        try:
            key.gpg("--quick-generate-key", "archive@example.org", "ed25519", "sign", "never")
            key.public.write_bytes(key.gpg("--export"))
            yield key
        finally:
            subprocess.run(
                ["gpgconf", "--homedir", home, "--kill", "all"], check=False, timeout=30
            )
            shutil.rmtree(home, ignore_errors=True)

    @property
    def public(self) -> Path:
        return self.home / "public.gpg"

    def gpg(self, *words: str, stdin: bytes = b"") -> bytes:
        argv = ["gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
        return subprocess.run(
            [*argv, "--homedir", self.home, *words], input=stdin, stdout=subprocess.PIPE,
            check=True, timeout=60,
        ).stdout  # fmt: skip

    def trusted(self) -> str:
        """Return a script that makes this the key that barometer trusts."""
        return f"mount --bind {shlex.quote(str(self.public))} {KEYRING}"


@dataclass(frozen=True)
class Archive:
    """A suite with one kernel package."""

    folder: Path
    key: Key
    more: Mapping[str, str] = field(default_factory=dict)
    """Fields of the Release file that are added to the usual ones, or replace them."""

    def make(self, kernel: Path | None = None) -> Archive:
        """Write the package, its list and the signed Release. `kernel`: folder to pack (default:
        a made-up kernel with its modules)."""
        _deb(self.folder / DEB, kernel)
        content = (self.folder / DEB).read_bytes()
        lists = self.folder / LISTS
        lists.parent.mkdir(parents=True)
        lists.write_text(
            f"Package: {PACKAGE}\nVersion: 1.0\nSource: linux\nArchitecture: amd64\n"
            f"Maintainer: X <x@example.org>\nDescription: a kernel\nFilename: {DEB}\n"
            f"Size: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
        )
        self.sign()
        return self

    def sign(self) -> None:
        lists = (self.folder / LISTS).read_bytes()
        fields = {
            "Origin": "Debian", "Suite": SUITE, "Codename": SUITE, "Architectures": "amd64",
            "Components": "main", "Date": rfc(0.0), **self.more,
        }  # fmt: skip
        text = "".join(f"{name}: {value}\n" for name, value in fields.items())
        line = f" {hashlib.sha256(lists).hexdigest()} {len(lists)} main/binary-amd64/Packages\n"
        release = f"{text}SHA256:\n{line}".encode()
        suite = self.folder / "dists" / SUITE
        (suite / "Release").write_bytes(release)
        (suite / "InRelease").write_bytes(self.key.gpg("--clearsign", stdin=release))


def rfc(days: float) -> str:
    """Return the date `days` from now, as a Release file spells it."""
    return email.utils.formatdate(time.time() + days * 86400, usegmt=True).replace("GMT", "UTC")


def _deb(path: Path, kernel: Path | None) -> None:
    tree = path.parent / "tree"
    made = kernel or folder_kernel(path.parent / "kernel", RELEASE)
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {PACKAGE}\nVersion: 1.0\nSource: linux\nArchitecture: amd64\n"
        "Maintainer: X <x@example.org>\nDescription: a kernel\n"
    )
    if (made / "vmlinuz").exists():
        (tree / "boot").mkdir()
        shutil.copy(made / "vmlinuz", tree / f"boot/vmlinuz-{RELEASE}")
        shutil.copytree(made / "lib", tree / "lib")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, path], check=True,
        stdout=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
