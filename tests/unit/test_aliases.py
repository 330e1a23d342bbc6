"""Names that stand for models: [models.aliases] of config.toml, whoever asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aima_lib.errors import AimaError
from aima_lib.gateway import Gateway
from aima_lib.infra.home import Home
from aima_lib.runtime import host
from tests.workshop import agreed

pytestmark = pytest.mark.anyio
ALIASES = '[models.aliases]\n"llama3.2" = "tiny"\n"other" = "tiny"\n"twice" = "llama3.2"\n'


@pytest.fixture
async def hosted(home: Home, anyio_backend: str) -> AsyncIterator[Gateway]:
    (home.path / "config.toml").write_text(ALIASES, encoding="utf-8")
    async with host(home) as gateway:
        for id in ("tiny", "other"):
            await gateway.services.store.insert("model", {"id": id, "type": "llm", "files": []})
        yield gateway


async def refused(gateway: Gateway, model: str, **more: Any) -> AimaError:
    asked = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    with pytest.raises(AimaError) as raised:
        await gateway.call("inference.chat", asked, **more)
    return raised.value


async def test_an_alias_means_its_model_also_where_something_else_is_called_so(hosted: Gateway) -> None:
    for name in ("llama3.2", "other", "tiny"):
        assert "no engine reads tiny" in str(await refused(hosted, name))


async def test_an_alias_of_an_alias_is_none(hosted: Gateway) -> None:
    assert (await refused(hosted, "twice")).code == "not_found"


async def test_a_key_is_held_to_what_a_name_means(hosted: Gateway) -> None:
    callers = {}
    for model in ("tiny", "other"):
        made = await agreed(hosted, "key.create", {"name": f"for-{model}", "scopes": ["inference"], "models": [model]})
        callers[model] = hosted.services.keys.caller(made["secret"])
    assert (await refused(hosted, "llama3.2", caller=callers["tiny"])).code == "failed_precondition"
    assert (await refused(hosted, "llama3.2", caller=callers["other"])).code == "permission_denied"
    assert (await refused(hosted, "other", caller=callers["other"])).code == "permission_denied"
