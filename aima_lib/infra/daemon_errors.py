"""What goes wrong between us and Docker's daemon, as errors of ours."""

from __future__ import annotations

import errno
import json
import os
import socket as sockets
from collections.abc import Iterator
from contextlib import contextmanager

from aima_lib.errors import AimaError, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable

KNOCK_SECONDS = 5.0
AWAY = "start it (systemctl start docker, or systemctl --user start podman.socket), or say where it is: [docker] socket, or DOCKER_HOST=unix://…"


@contextmanager
def translated(socket: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What the SDK raises, as our errors; those of `passing` go through as they are.

    The socket is tried first: the SDK forgets to close one that nobody listens at, and does not say why.
    """
    import docker.errors
    import requests
    import urllib3

    try:
        with sockets.socket(sockets.AF_UNIX) as probe:
            probe.settimeout(KNOCK_SECONDS)
            probe.connect(socket)
        yield
    except passing:
        raise
    except docker.errors.APIError as error:
        raise refused(error.status_code or 0, str(error.explanation or error)) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise away(socket, error) from error


def present(socket: str) -> None:
    """Raise Unavailable where no socket is: known without the SDK."""
    if not os.path.exists(socket):
        raise Away(f"there is no Docker at {socket}", hint=AWAY)


def refused(status: int, said: str) -> AimaError:
    """The daemon's own error, by its status and words."""
    words = said.lower()
    if "port is already allocated" in words or "address already in use" in words:
        hint = "end what listens there, or ask for another port"
        return FailedPrecondition(f"Docker cannot have the port: {said}", hint=hint, details={"reason": "port"})
    if "no space left" in words:
        return ResourceExhausted(f"Docker has no room: {said}", hint="docker system df says what takes it")
    if status == 404:
        return NotFound(f"Docker: {said}")
    if status == 400:
        return InvalidArgument(f"Docker: {said}")
    return FailedPrecondition(f"Docker refused: {said}", hint="docker's own log has more")


def is_taken_port(error: AimaError) -> bool:
    """Whether it is that somebody else listens at a port that a container was to have."""
    return str(error.details.get("reason")) == "port"


def unpulled(said: str) -> AimaError:
    """Why a pull came to nothing, by the daemon's words: its status says little, and was 200 where it failed in the middle."""
    words = said.lower()
    if any(each in words for each in ("manifest unknown", "not found", "does not exist", "denied", "unauthorized")):
        return refused(404, said)
    if any(each in words for each in ("no such host", "refused", "timeout", "timed out", "unreachable", "eof", "reset")):
        return Unavailable(f"Docker cannot reach the registry: {said}", hint="[docker] mirrors in config.toml names others for it")
    return refused(500, said)


def message_of(text: str) -> str:
    """What the daemon said, of the body of an answer."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:1000]


class Away(Unavailable):
    """The daemon itself is not there, or does not answer."""


class Quiet(Away):
    """It did not answer in time; of a stream, nothing came of it."""


def away(socket: str, error: Exception) -> Away:
    """Why nothing answers at the socket."""
    said = str(error)
    if "timed out" in said.lower():
        return Quiet(f"Docker at {socket} did not answer in time", hint="is its machine short of memory, or its disk slow?")
    if not os.path.exists(socket):
        return Away(f"there is no Docker at {socket}", hint=AWAY)
    if not os.access(socket, os.R_OK | os.W_OK):
        return Away(f"Docker's socket {socket} may not be used by this user", hint="add the user to the group docker, and log in anew")
    if f"Errno {errno.ECONNREFUSED}" in said:
        return Away(f"Docker at {socket} does not run: its socket is there, and nobody listens", hint=AWAY)
    return Away(f"Docker at {socket} went away: {said[:300]}", hint=AWAY)
