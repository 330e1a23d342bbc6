"""The sources there are, and which one a repository's form means."""

from __future__ import annotations

from collections.abc import Mapping

from aima_lib.sources import huggingface, modelscope, oci, ollama, pypi, url
from aima_lib.sources.base import Config, Resolve, Search
from aima_lib.sources.choose import QUANTIZATION

SOURCES: Mapping[str, Resolve] = {
    "huggingface": huggingface.resolve,
    "ollama": ollama.resolve,
    "modelscope": modelscope.resolve,
    "pypi": pypi.resolve,
    "oci": oci.resolve,
    "url": url.resolve,
}
SEARCHES: Mapping[str, Search] = {
    "huggingface": huggingface.search,
    "ollama": ollama.search,
    "modelscope": modelscope.search,
}
SECRETS = {"huggingface": "huggingface_token"}  # what a source is shown, by the name of the secret
ENDPOINTS = ("huggingface_endpoint", "ollama_endpoint", "ollama_library", "modelscope_endpoint")
LOCAL = "local"


def guess(repo: str) -> str:
    """What a form means: an address, a path, `name:tag` of Ollama, `owner/name` or `owner/name:Q4_K_M` of a hub, or packages."""
    if repo.lower().startswith("oci://"):
        return "oci"
    if repo.lower().startswith(("https://", "http://")):
        return "url"
    if repo.startswith(("/", "./", "../", "~")):
        return LOCAL
    stem, colon, tag = repo.partition(":")
    if colon and not ("/" in stem and QUANTIZATION.fullmatch(tag)):
        return "ollama"
    return "huggingface" if "/" in repo or not pypi.fits(repo) else "pypi"


def endpoints(config: Config) -> list[str]:
    """Every place that the owner configured."""
    return [*filter(None, (config.get(name) for name in ENDPOINTS)), *pypi.indexes(config)]
