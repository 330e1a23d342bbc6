"""Which files of a repository are one model: one quantization whole with the projector that lets it see, or all the safetensors with what
belongs to them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from aima_lib.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from aima_lib.names import nearest, slug
from aima_lib.sources.base import Request, matches

QUANTIZATION = re.compile(
    r"(?<![a-z0-9])(iq\d_(?:xxs|xs|s|m|nl)|q\d_k(?:_(?:xl|xs|s|m|l))?|q\d_[01]|tq\d_0|mxfp4|bf16|f16|f32)(?![a-z0-9])", re.I
)
SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.(?:gguf|safetensors)$)", re.I)
PREFERRED = ("Q4_K_M", "Q4_0", "Q8_0", "Q5_K_M", "Q4_K_S", "Q6_K", "BF16", "F16", "F32")
PROJECTORS = ("F16", "BF16", "Q8_0", "F32")
WITH_SAFETENSORS = (".safetensors", ".json", ".jinja", "tokenizer.model", "merges.txt", "vocab.txt")
BESIDE_ONNX = (".json", ".txt", ".npz", ".bin", ".onnx_data", ".onnx.data")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a repository, as the hub lists it. `git_oid` is what git calls the content of a small one."""

    name: str
    size: int | None
    sha256: str | None
    git_oid: str | None = None


def split_quantization(request: Request) -> Request:
    """`owner/name:Q4_K_M` as the repository and its quantization.

    Raises:
        InvalidArgument: the two ways to name a quantization disagree.
    """
    repo, colon, tag = request.repo.partition(":")
    if not colon:
        return request
    if not QUANTIZATION.fullmatch(tag):
        raise InvalidArgument(f"{tag!r} is not a quantization", hint="write owner/name:Q4_K_M; a revision goes into revision")
    if request.quantization and request.quantization.upper() != tag.upper():
        raise InvalidArgument(f"repo says {tag}, quantization says {request.quantization}", hint="name the quantization once")
    return Request(repo, request.revision, request.file, tag.upper(), request.mirror, request.sha256)


def choose(request: Request, files: Sequence[File]) -> tuple[str, str, list[File], str | None]:
    """Which files to fetch: name, format, files and quantization.

    Raises:
        NotFound: no such file or quantization.
        FailedPrecondition: the repository holds nothing that is read.
    """
    weights = [file for file in files if file.name.lower().endswith(".gguf") and not re.search(r"mmproj|imatrix", file.name, re.I)]
    if request.file:
        weights = [file for file in files if matches(file.name, request.file)]
        if not weights:
            raise NotFound(f"{request.repo} has no file {request.file}", hint=_near(request.file, [f.name for f in files]))
        if all(file.name.lower().endswith(".onnx") for file in weights):
            return _choose_onnx(request, weights, files)
        if not all(file.name.lower().endswith(".gguf") for file in weights):
            raise InvalidArgument(f"{weights[0].name} is not GGUF", hint="leave file out to take the whole safetensors model")
    if weights:
        name, kind, chosen, quantization = _choose_gguf(request, weights)
        alone = request.file or request.sha256  # one file was described: it is all that is wanted
        return name, kind, chosen if alone else [*chosen, *_projectors(files)], quantization
    if request.quantization:
        raise NotFound(
            f"{request.repo} has no GGUF, so no quantization {request.quantization}", hint="leave quantization out to take the safetensors"
        )
    return _choose_safetensors(request, files)


def _choose_safetensors(request: Request, files: Sequence[File]) -> tuple[str, str, list[File], str | None]:
    """All shards of the model at the top of the repository, and its configuration and tokenizer."""
    flat = [file for file in files if "/" not in file.name and file.name.endswith(WITH_SAFETENSORS)]
    tensors = [file for file in flat if file.name.endswith(".safetensors")]
    named = [file for file in tensors if file.name.startswith("model")]
    if named and len(named) < len(tensors):  # the same weights once more in another layout, or an adapter: not what loads
        flat = [file for file in flat if file not in tensors or file in named]
        tensors = named
    if tensors:
        _refuse_gaps(request.repo, tensors)
        return slug(request.repo.rpartition("/")[2]), "safetensors", flat, None
    if (folder := _ctranslate2(files)) is not None:
        return slug(request.repo.rpartition("/")[2]), "ctranslate2", folder, None
    kinds = sorted({PurePosixPath(file.name).suffix for file in files} - {""})
    found = f"{request.repo} holds neither GGUF nor safetensors, only {', '.join(kinds) or 'nothing'}"
    if any(kind in PICKLES for kind in kinds):
        raise FailedPrecondition(
            f"{found}: pickles run code when they are loaded, so they are not taken", hint="look for a conversion to safetensors or GGUF"
        )
    raise FailedPrecondition(found, hint="look for a conversion to GGUF: model.search")


def _ctranslate2(files: Sequence[File]) -> list[File] | None:
    """The files of a CTranslate2 folder, weights first. Its model.bin is no pickle, which is looked at when it is here."""
    flat = {file.name: file for file in files if "/" not in file.name}
    if not {"model.bin", "config.json"} <= set(flat) or not any(name.startswith("vocabulary.") for name in flat):
        return None
    return [flat["model.bin"], *(file for name, file in flat.items() if name.endswith((".json", ".txt")))]


def _choose_onnx(request: Request, networks: Sequence[File], files: Sequence[File]) -> tuple[str, str, list[File], str | None]:
    """One network that was named, and what stands beside it: settings, tokenizers, voices, weights in a file of their own."""
    if len(networks) > 1:
        raise InvalidArgument(f"{request.file} fits {len(networks)} networks: {', '.join(file.name for file in networks[:5])}")
    network = networks[0]
    folder, name = PurePosixPath(network.name).parent, PurePosixPath(network.name).name
    beside = [file for file in files if file is not network and PurePosixPath(file.name).parent in (folder, PurePosixPath("."))]
    taken = {name: network}
    for file in sorted(beside, key=lambda each: PurePosixPath(each.name).parent != folder):  # its own folder's come before the top's
        own = PurePosixPath(file.name).name
        other = own.endswith((".onnx.json", ".onnx_data", ".onnx.data")) and not own.startswith(name)
        if own.endswith(BESIDE_ONNX) and not other and not ("voices" not in own and own.endswith(".bin")):
            taken.setdefault(own, file)
    return slug(PurePosixPath(name).stem), "onnx", [*taken.values()], None


def _choose_gguf(request: Request, weights: list[File]) -> tuple[str, str, list[File], str | None]:
    """One quantization, whole: all shards of it."""
    sets: dict[str, list[File]] = {}
    for file in weights:
        sets.setdefault(SHARD.sub("", file.name), []).append(file)
    by_quantization = {(quantization_of(stem) or "unknown"): stem for stem in sorted(sets, reverse=True)}
    wanted = request.quantization.upper() if request.quantization else None
    if wanted and wanted not in by_quantization:
        raise NotFound(
            f"{request.repo} has no quantization {wanted}",
            hint=f"there are {', '.join(sorted(by_quantization))}",
            details={"quantizations": sorted(by_quantization)},
        )
    if request.file and not wanted and len(sets) > 1:
        raise InvalidArgument(
            f"{request.file} fits {len(sets)} models: {', '.join(sorted(sets)[:5])}", hint="name one file, or a quantization"
        )
    found = wanted or next((name for name in PREFERRED if name in by_quantization), min(by_quantization))
    stem = by_quantization[found]
    shards = sorted(sets[stem], key=lambda file: file.name)
    _refuse_gaps(stem, shards)
    return slug(PurePosixPath(stem).stem), "gguf", shards, None if found == "unknown" else found


def _projectors(files: Sequence[File]) -> list[File]:
    """The one projector that is taken where there are several: those of a model differ in precision alone."""
    found = [file for file in files if file.name.lower().endswith(".gguf") and "mmproj" in file.name.lower()]
    order = {name: place for place, name in enumerate(PROJECTORS)}
    return sorted(found, key=lambda file: (order.get(quantization_of(file.name) or "", len(order)), file.name))[:1]


def _refuse_gaps(stem: str, shards: Sequence[File]) -> None:
    numbered = [found for file in shards if (found := SHARD.search(file.name))]
    if numbered and len(numbered) != int(numbered[0][2]):
        raise Unavailable(
            f"{stem} comes in {int(numbered[0][2])} shards, the hub lists {len(numbered)}", hint="the upload may be under way: try later"
        )


def quantization_of(name: str) -> str | None:
    """The quantization a file's name tells, e.g. Q4_K_M."""
    found = QUANTIZATION.findall(PurePosixPath(name).name)
    return found[-1].upper() if found else None


def _near(name: str, names: list[str]) -> str:
    return f"there are {', '.join(nearest(name, names) or sorted(names)[:5])}"
