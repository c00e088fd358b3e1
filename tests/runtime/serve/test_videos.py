"""Videos and faces over the HTTP API, with the toy bundle: composed in turn, fetched once, and gone."""

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import cv2
import httpx
import numpy as np
import pytest
from fid.runtime.assets import FACES
from fid.runtime.commands.bench import made_frames
from fid.runtime.composer import Composer
from fid.runtime.labels.mark import embed_mark
from fid.runtime.labels.provenance import read_note
from fid.runtime.media.images import read_image, write_image
from fid.runtime.read_labels import check_labels
from fid.runtime.serve import videos
from fid.runtime.serve.app import Server
from fid.runtime.serve.guard import Access
from fid.runtime.serve.listen import Peers
from fid.runtime.serve.picture import Labelling
from fid.runtime.serve.worker import Limits
from serving import check

from ..media.test_video import write_clip

WHO = {"identity": "ada", "view": "paste"}


@pytest.fixture(scope="module")
def composer(toy_bundle: Path, fetched: Callable[[str], Path]) -> Composer:
    fetched("yunet")
    return Composer(toy_bundle, engine="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A face that moves for 6 frames, with a tone."""
    frames = made_frames(read_image(FACES / "identity-ben.jpg"), 6)
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, [22500 * number for number in range(6)], pictures=frames.__getitem__).read_bytes()


@pytest.fixture
def server(composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = Server(composer, Access("127.0.0.1"), Limits(video_mb=1.0, queue=4))
    yield server
    server.faces.close()
    server.worker.close()


@asynccontextmanager
async def client_of(server: Server) -> AsyncIterator[Callable[..., Any]]:
    """Ask a server, each answer held to the API's description."""
    transport = httpx.ASGITransport(server.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8421") as client:

        async def ask(method: str, path: str, **request: Any) -> httpx.Response:
            answer = await client.request(method, path, **request)
            shape = re.sub(r"/videos/[\w-]+", "/videos/{video}", path)
            answer.request.url = answer.request.url.copy_with(path=shape)  # as the description calls it
            return check(answer)

        yield ask


async def finished(ask: Callable[..., Any], video: str) -> dict[str, Any]:
    for _ in range(600):
        told = (await ask("GET", f"/api/videos/{video}")).json()
        if told["state"] not in ("uploaded", "running"):
            return told
        await asyncio.sleep(0.05)
    raise AssertionError("the video is not done")


def test_a_video_is_composed_fetched_once_and_gone(server: Server, clip: bytes, tmp_path: Path) -> None:
    async def whole() -> bytes:
        async with client_of(server) as ask:
            told = (await ask("POST", "/api/videos", content=clip)).json()
            assert (told["state"], told["total"], told["width"], told["height"]) == ("uploaded", 6, 640, 480)
            (folder,) = tmp_path.glob("fid-videos-*/*")
            assert folder.stat().st_mode & 0o077 == 0  # for the server's user alone
            name = told["video"]
            assert (await ask("GET", f"/api/videos/{name}/result")).status_code == 409
            assert (await ask("POST", f"/api/videos/{name}", json=WHO)).status_code == 202
            assert (await ask("POST", f"/api/videos/{name}", json=WHO)).status_code == 409
            health = await ask("GET", "/api/health")  # others are answered meanwhile
            assert health.json()["video"] == {"mb": 1.0, "seconds": 300.0}
            told = await finished(ask, name)
            assert (told["state"], told["frames"], told["error"]) == ("done", 6, None)
            assert not (folder / "upload").exists()  # it is gone already
            result = await ask("GET", f"/api/videos/{name}/result")
            assert result.headers["cache-control"] == "no-store"
            assert (await ask("GET", f"/api/videos/{name}")).status_code == 404
            return result.content

    (tmp_path / "out.mp4").write_bytes(asyncio.run(whole()))
    assert list(tmp_path.glob("fid-videos-*/*")) == []
    note = read_note(tmp_path / "out.mp4")
    assert note is not None
    assert note.kind == "reenactment"
    with av.open(str(tmp_path / "out.mp4")) as film:
        assert len(film.streams.audio) == 1
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 6
    assert frames[0].shape == (480, 640, 3)


def test_a_stopped_video_and_those_at_the_servers_end_leave_nothing(
    server: Server, clip: bytes, tmp_path: Path
) -> None:
    async def whole() -> None:
        async with client_of(server) as ask:
            names = [(await ask("POST", "/api/videos", content=clip)).json()["video"] for _ in range(2)]
            await ask("POST", f"/api/videos/{names[0]}", json=WHO)
            assert (await ask("DELETE", f"/api/videos/{names[0]}")).status_code == 204
            assert len(list(tmp_path.glob("fid-videos-*/*"))) == 1
            await server.videos.close()
        assert list(tmp_path.glob("fid-videos-*")) == []

    asyncio.run(whole())


def test_a_video_that_nobody_fetches_is_deleted(
    server: Server, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(videos, "LIFE_SECONDS", 0.05)

    async def whole() -> None:
        async with client_of(server) as ask:
            assert (await ask("POST", "/api/videos", content=clip)).status_code == 201
            await asyncio.sleep(0.3)
            assert list(tmp_path.glob("fid-videos-*/*")) == []
            await server.videos.close()

    asyncio.run(whole())


def test_processes_that_share_a_folder_answer_for_each_others_videos(
    composer: Composer, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composers = composer, Composer(composer.bundle, engine="onnxruntime", threads=1)  # one for each thread
    peers = [Peers(number, 2, tmp_path) for number in range(2)]
    one, other = (
        Server(own, Access("127.0.0.1"), peers=peer, videos=peer.videos)
        for own, peer in zip(composers, peers, strict=True)
    )

    async def whole() -> None:
        async with client_of(one) as ask, client_of(other) as ask_other:
            names = [(await ask("POST", "/api/videos", content=clip)).json()["video"] for _ in range(3)]
            path = f"/api/videos/{names[0]}"
            begun = await asyncio.gather(ask("POST", path, json=WHO), ask_other("POST", path, json=WHO))
            assert sorted(answer.status_code for answer in begun) == [202, 409]
            assert (await finished(ask_other, names[0]))["state"] == "done"
            assert len((await ask_other("GET", f"{path}/result")).content) > 1000
            assert (await ask("GET", path)).status_code == 404
            path = f"/api/videos/{names[1]}"
            assert (await ask_other("POST", path, json=WHO)).status_code == 202
            assert (await ask("DELETE", path)).status_code == 204, "while the other one composes it"
            while other.videos._running:
                await asyncio.sleep(0.02)
            assert [folder.name for folder in (tmp_path / "videos").iterdir()] == [names[2]]
            path = f"/api/videos/{names[2]}"
            assert (await ask_other("POST", path, json=WHO)).status_code == 202
            monkeypatch.setattr(videos, "LOST_SECONDS", -1.0)
            assert "send it again" in (await ask("GET", path)).json()["error"]
            await asyncio.gather(one.videos.close(), other.videos.close())

    asyncio.run(whole())
    for own in (one, other):
        own.faces.close()
        own.worker.close()


def test_what_is_no_video_too_large_too_long_or_too_many_is_refused(
    server: Server, clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def whole() -> None:
        async with client_of(server) as ask:

            async def refused(status: int, words: str, **request: Any) -> None:
                answer = await ask("POST", "/api/videos", **request)
                assert answer.status_code == status, answer.text
                assert words in answer.json()["error"]
                assert str(tmp_path) not in answer.text

            await refused(415, "not a video", content=b"hello" * 100)
            await refused(415, "not a video", content=b"")
            await refused(413, "1 MB are the limit", content=bytes(1_000_001))
            with monkeypatch.context() as patch:
                patch.setattr(videos, "MOST_SECONDS", 1.0)
                await refused(413, "longer than", content=clip)
            with monkeypatch.context() as patch:
                patch.setattr(server.videos, "_limits", Limits(megapixels=0.3))
                await refused(413, "more than 0.3 megapixels", content=clip)
            assert list(tmp_path.glob("fid-videos-*/*")) == []
            with monkeypatch.context() as patch:
                patch.setattr(server.videos, "_limits", Limits(videos=0))
                await refused(503, "try again later", content=clip)
            name = (await ask("POST", "/api/videos", content=clip)).json()["video"]
            for body, status, words in (
                ({}, 400, "who is to be composed"),
                ({"identity": "nobody"}, 400, "none of the identities"),
                ({"wish": 1}, 400, "no setting"),
                ([], 400, "the body"),
            ):
                answer = await ask("POST", f"/api/videos/{name}", json=body)
                assert answer.status_code == status
                assert words in answer.json()["error"]
            assert (await ask("POST", "/api/videos/other", json=WHO)).status_code == 404
            await server.videos.close()

    asyncio.run(whole())


def test_faces_are_told_with_their_places(server: Server) -> None:
    pair = np.hstack([read_image(FACES / "identity-ada.jpg"), np.full((256, 256, 3), 150, np.uint8)])
    small = cv2.resize(read_image(FACES / "identity-ben.jpg"), (64, 64), interpolation=cv2.INTER_AREA)
    pair[100:164, 340:404] = small
    data = cv2.imencode(".png", pair[..., ::-1])[1].tobytes()

    async def whole() -> dict[str, Any]:
        async with client_of(server) as ask:
            refused = await ask("POST", "/api/faces", files=[("photo", (None, "ada"))])
            assert refused.status_code == 400
            return (await ask("POST", "/api/faces", files=[("photo", ("a.png", data))])).json()

    told = asyncio.run(whole())
    assert (told["width"], told["height"]) == (512, 256)
    large, little = told["faces"]
    assert (large["number"], large["problem"]) == (1, None)
    assert 0.05 < large["box"][0] < 0.3
    assert 0.6 < little["box"][0] < 0.8
    assert "only" in little["problem"]


def test_labels_of_a_picture_are_told_as_the_command_tells_them(server: Server, tmp_path: Path) -> None:
    face, note = read_image(FACES / "identity-ada.jpg"), server.composer.note("composition")
    write_image(tmp_path / "ours.png", face, note)
    marked = cv2.imencode(".jpg", embed_mark(face)[..., ::-1])[1].tobytes()  # without metadata
    plain = cv2.imencode(".png", face)[1].tobytes()

    async def whole() -> list[dict[str, Any]]:
        async with client_of(server) as ask:
            refused = await ask("POST", "/api/check", files=[("photo", (None, "ada"))])
            assert refused.status_code == 400
            large = await ask("POST", "/api/check", files=[("photo", ("a.png", bytes(3_000_000)))])
            assert large.status_code in (413, 415)
            files = (tmp_path / "ours.png").read_bytes(), marked, plain
            return [(await ask("POST", "/api/check", files=[("photo", ("a.png", data))])).json() for data in files]

    ours, marked_only, other = asyncio.run(whole())
    assert ours == {**check_labels(tmp_path / "ours.png").report(), "file": "a.png"}
    assert ours["made_by_fid"]
    assert ours["note"]["kind"] == "composition"
    assert (marked_only["made_by_fid"], marked_only["note"], marked_only["mark"]["found"]) == (True, None, True)
    assert not other["made_by_fid"]


def test_the_note_for_files_of_the_page(server: Server, composer: Composer, tmp_path: Path) -> None:
    import base64

    async def whole(server: Server) -> dict[str, Any]:
        async with client_of(server) as ask:
            return (await ask("GET", "/api/notes")).json()["reenactment"]

    told = asyncio.run(whole(server))
    plain = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    (tmp_path / "a.png").write_bytes(plain[:33] + base64.b64decode(told["png"]) + plain[33:])
    note = read_note(tmp_path / "a.png")
    assert note == composer.note("reenactment")
    assert read_image(tmp_path / "a.png").shape == (8, 8, 3)
    unlabelled = Server(composer, Access("127.0.0.1"), label=Labelling(provenance=False, mark=False))
    assert asyncio.run(whole(unlabelled)) == {"png": "", "mp4": ""}
    unlabelled.faces.close()
    unlabelled.worker.close()
