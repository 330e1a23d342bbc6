"""Sound, images and video that come into calls and go out of them: base64, a file beneath a root, or a blob that is kept a while."""

from __future__ import annotations

import base64
import binascii
import hashlib
import mimetypes
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio
from anyio import to_thread

from aima_lib.door import Caller
from aima_lib.errors import InvalidArgument, NotFound
from aima_lib.infra.blobs import disk_error, need_room
from aima_lib.infra.clock import now, parse, stamp
from aima_lib.infra.events import Events
from aima_lib.infra.roots import Roots
from aima_lib.infra.store import Document, Store

URI, FILE, DATA = "aima://blob/", "file:", "data:"
MAGIC = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"), (b"GIF8", "image/gif"))
INLINE_BYTES = 8 << 10  # more than that is no reply that anybody wants to read
LARGEST_BYTES = 256 << 20
FORMS = f"give base64, file:PATH, or {URI}ID"
# Where the system's own list has older names, or none.
KINDS = {".wav": "audio/wav", ".flac": "audio/flac", ".opus": "audio/ogg", ".m4a": "audio/mp4", ".webp": "image/webp"}
SHOWN = ("id", "media_type", "size_bytes", "sha256", "source", "created_at", "expires_at")


class Media:
    """The blobs of one home, in its folder `blobs`, each known to its maker and the owner."""

    def __init__(self, config: dict[str, Any] | Any, home: Path, store: Store, events: Events) -> None:
        self._folder, self._store, self._events = home / "blobs", store, events
        self._roots = Roots(config["files"]["roots"], home / "models")
        self._hours, self._most = float(config["blobs"]["retention_hours"]), int(float(config["blobs"]["largest_gib"]) * (1 << 30))

    # In

    async def take(self, given: str | bytes, caller: Caller, field: str) -> tuple[bytes, str | None]:
        """The bytes that `given` means (or is), and their media type where it is known.

        Raises:
            InvalidArgument: it is neither base64 nor one of the other forms, or there is nothing in it.
            PermissionDenied: its file is beneath no root.
            NotFound: no such blob, or somebody else's.
        """
        if isinstance(given, bytes):
            return given, None
        if given.startswith(URI):
            record = self._record(given.removeprefix(URI), caller)
            return await to_thread.run_sync(self._path(record).read_bytes), str(record["media_type"])
        if given.startswith(FILE):
            return await to_thread.run_sync(self._file, given, field)
        head, comma, data = given.partition(",") if given.startswith(DATA) else ("", "", given)
        try:
            if head and not (comma and head.endswith(";base64")):
                raise ValueError
            body = base64.b64decode("".join(data.split()), validate=True)
            if not body:
                raise ValueError
        except (binascii.Error, ValueError) as error:  # what it is stays out of the error
            raise InvalidArgument(f"{field} is not base64", hint=FORMS) from error
        return body, head.removeprefix(DATA).removesuffix(";base64").partition(";")[0] or None

    async def pictured(self, messages: Sequence[Mapping[str, Any]], caller: Caller) -> Sequence[Mapping[str, Any]]:
        """The messages of a chat, with each image that is a file, a blob or plain base64 as the data URI that engines take.

        URLs stay as they are. Raises as `take` does.
        """
        return [await self._pictured(message, caller, f"messages[{place}]") for place, message in enumerate(messages)]

    async def _pictured(self, message: Mapping[str, Any], caller: Caller, field: str) -> Mapping[str, Any]:
        parts = message.get("content")
        if not isinstance(parts, list):
            return message
        made = [await self._part(part, caller, f"{field}.content[{place}]") for place, part in enumerate(parts)]
        return {**message, "content": made}

    async def _part(self, part: Any, caller: Caller, field: str) -> Any:
        image = part.get("image_url") if isinstance(part, Mapping) else None
        url = image.get("url") if isinstance(image, Mapping) else None
        if image is None or not isinstance(url, str) or url.startswith((DATA, "http:", "https:")):
            return part
        data, kind = await self.take(url, caller, f"{field}.image_url.url")
        kind = kind or next((known for magic, known in MAGIC if data.startswith(magic)), "application/octet-stream")
        return {**part, "image_url": {**image, "url": f"{DATA}{kind};base64,{base64.b64encode(data).decode()}"}}

    def _file(self, given: str, field: str) -> tuple[bytes, str | None]:
        path = unquote(given.removeprefix("file://")) if given.startswith("file://") else given.removeprefix(FILE)
        if not path:
            raise InvalidArgument(f"{field}: {FILE} names no file", hint=FORMS)
        with self._roots.open(path) as opened:
            if opened.is_folder or not 0 < opened.size <= LARGEST_BYTES:
                what = "a folder" if opened.is_folder else f"{opened.size} bytes"
                raise InvalidArgument(f"{field}: {path} is {what}", hint=f"a file of 1 to {LARGEST_BYTES} bytes can be read")
            with open(opened.file, "rb") as stream:
                return stream.read(LARGEST_BYTES + 1)[:LARGEST_BYTES], KINDS.get(opened.path.suffix.lower()) or mimetypes.guess_type(path)[
                    0
                ]

    # Out

    async def give(self, data: bytes, media_type: str, caller: Caller, source: str) -> str:
        """What a reply says of these bytes: base64, or the URI of the blob they became."""
        if len(data) <= INLINE_BYTES:
            return base64.b64encode(data).decode()
        return str((await self.keep(data, media_type, caller, source))["uri"])

    async def keep(self, data: bytes, media_type: str, caller: Caller, source: str) -> Document:
        """Keep bytes as a blob. Raises ResourceExhausted when the disk has no room."""
        moment = now()
        record = {
            "id": secrets.token_urlsafe(18).replace("-", "x").replace("_", "y"), "media_type": media_type, "size_bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(), "source": source, "owner": caller.name, "created_at": moment,
            "expires_at": stamp(parse(moment) + timedelta(hours=self._hours)),
        }  # fmt: skip
        with anyio.CancelScope(shield=True):
            await self._make_room(len(data))
            await to_thread.run_sync(self._write, record, data)
            await self._store.insert("blob", record)
        return _shown(record)

    def _write(self, record: Document, data: bytes) -> None:
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            need_room(self._folder, len(data))
            with os.fdopen(os.open(self._path(record), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
        except OSError as error:
            self._path(record).unlink(missing_ok=True)
            raise disk_error(error, self._folder) from error

    # What is kept

    async def read(self, blob_id: str, caller: Caller) -> tuple[str, bytes]:
        """Media type and bytes of a blob. Raises NotFound, of somebody else's too."""
        record = self._record(blob_id, caller)
        return str(record["media_type"]), await to_thread.run_sync(self._path(record).read_bytes)

    def list(self, caller: Caller, limit: int, offset: int) -> tuple[Sequence[Document], int]:
        """A page of the caller's blobs, newest first, and how many there are; the owner sees all."""
        mine = {} if _sees_all(caller) else {"owner": caller.name}
        found = self._store.find("blob", limit=limit, offset=offset, newest_first=True, **mine)
        return [_shown(record) for record in found], self._store.count("blob", **mine)

    def size(self, blob_id: str, caller: Caller) -> int | None:
        """Bytes of a blob of the caller's, or None."""
        record = self._store.peek("blob", blob_id)
        return int(record["size_bytes"]) if record and _may(caller, record) else None

    async def delete(self, blob_id: str, caller: Caller) -> int:
        """Drop a blob of the caller's; the bytes that were freed."""
        record = self._store.peek("blob", blob_id)
        return await self._drop(record, "deleted") if record and _may(caller, record) else 0

    async def prune(self) -> None:
        """Drop what is over its time, and files that no record knows."""
        moment = stamp(datetime.now(UTC))
        kept = self._store.find("blob")
        for record in kept:
            if record["expires_at"] < moment:
                await self._drop(record, "expired")
        await to_thread.run_sync(self._sweep, {record["id"] for record in kept})

    async def _make_room(self, wanted: int) -> None:
        kept = self._store.find("blob")
        held = sum(record["size_bytes"] for record in kept) + wanted
        for record in kept:
            if held <= self._most:
                return
            held -= await self._drop(record, "room")

    async def _drop(self, record: Document, reason: str) -> int:
        with anyio.CancelScope(shield=True):
            if not await self._store.delete("blob", record["id"]):
                return 0
            await to_thread.run_sync(lambda: self._path(record).unlink(missing_ok=True))
        freed = int(record["size_bytes"])
        payload = {"blob_id": record["id"], "reason": reason, "freed_bytes": freed}
        self._events.publish("blob.deleted", payload, subject=record["id"])
        return freed

    def _sweep(self, known: set[str]) -> None:
        old = datetime.now(UTC).timestamp() - 3600
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if path.name not in known and path.is_file() and path.stat().st_mtime < old:
                path.unlink(missing_ok=True)

    def _record(self, blob_id: str, caller: Caller) -> Document:
        record = self._store.peek("blob", blob_id)
        if record is None or not _may(caller, record) or not self._path(record).exists():
            raise NotFound(
                f"no blob called {blob_id[:64]!r} is kept for {caller.name}",
                hint=f"they are kept for {self._hours:g} hours; make it anew",
                next=[{"unit": "blob.list", "arguments": {}}],
            )
        return record

    def _path(self, record: Document) -> Path:
        return self._folder / str(record["id"])


def _sees_all(caller: Caller) -> bool:
    return caller.may("admin")


def _may(caller: Caller, record: Document) -> bool:
    return _sees_all(caller) or record["owner"] == caller.name


def _shown(record: Document) -> Document:
    return {**{key: record[key] for key in SHOWN}, "uri": URI + str(record["id"])}
