"""What measurements teach an estimate, and what they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aima_lib.services import memory
from aima_lib.services.learning import Ran, corrected, settings_of
from aima_lib.services.memory import Load

MIB = 1 << 20
GEOMETRY = {
    "block_count": 24, "head_count": 14, "embedding_length": 896, "feed_forward_length": 4864, "vocabulary_size": 151_936,
    "context_length": 32_768, "tensor_bytes": {}, "block_bytes": 240 * MIB,
    "cache": [{"layers": 24, "key_elements": 128, "value_elements": 128, "window": None}], "state_elements": 0,
}  # fmt: skip
WEIGHTS = 470 * MIB
RAN = Ran("llamacpp", "1", "cpu", "sha256:a", "qwen2", "Q4_K_M")


def formula(load: Load) -> memory.Memory:
    return memory.estimate(GEOMETRY, WEIGHTS, load.context_length, load.parallel, load)


def row(load: Load, off: int, **more: Any) -> dict[str, Any]:
    """A start that took `off` bytes more than the formula had said."""
    said = formula(load)
    taken = said["total_bytes"] + off
    return {
        "digest": RAN.digest, "architecture": RAN.architecture, "version": RAN.version, "context_length": load.context_length,
        "parallel": load.parallel, "batch_size": load.batch, "settings": settings_of(load, {}), "predicted_bytes": said["total_bytes"],
        "compute_bytes": said["compute_bytes"], "ready_bytes": taken - said["compute_bytes"], "peak_bytes": taken, "device_kind": "cpu", **more,
    }  # fmt: skip


def after(load: Load, *rows: dict[str, Any], ran: Ran = RAN) -> memory.Memory:
    return corrected(formula(load), rows, ran, load, settings_of(load, {}))


HERE = Load(4096)


def test_nothing_measured_changes_nothing() -> None:
    assert after(HERE) == formula(HERE)


def test_the_very_same_start_is_its_own_estimate() -> None:
    said = after(HERE, row(HERE, 30 * MIB), row(HERE, 34 * MIB), row(Load(8192), 0))
    assert (said["basis"], said["observations"]) == ("measured", 2)
    assert said["total_bytes"] == formula(HERE)["total_bytes"] + 32 * MIB
    assert said["low_bytes"] < said["total_bytes"] < said["high_bytes"] < formula(HERE)["high_bytes"]


@pytest.mark.parametrize("change", [{"version": "2"}, {"digest": "sha256:b"}, {"parallel": 2}, {"batch_size": 64}, {"settings": {}}])
def test_a_start_that_differs_in_anything_is_not_the_same(change: dict[str, Any]) -> None:
    assert after(HERE, row(HERE, 0, **change))["basis"] != "measured"


def test_an_unknown_version_or_digest_equals_nothing() -> None:
    assert after(HERE, row(HERE, 0, version=None), ran=replace(RAN, version=None))["basis"] == "adjusted"
    assert after(HERE, row(HERE, 0, digest=None), ran=replace(RAN, digest=None))["basis"] == "formula"


def test_other_contexts_of_a_model_move_the_formula_and_narrow_it() -> None:
    before, rows = formula(HERE), [row(Load(context), 50 * MIB) for context in (512, 2048, 8192, 16_384)]
    said = after(HERE, *rows)
    assert (said["basis"], said["observations"]) == ("adjusted", 4)
    assert before["total_bytes"] + 35 * MIB < said["total_bytes"] <= before["total_bytes"] + 50 * MIB
    assert said["high_bytes"] - said["low_bytes"] < before["high_bytes"] - before["low_bytes"]


def test_measurements_that_differ_leave_the_interval_wide() -> None:
    agreed = after(HERE, *(row(Load(context), 10 * MIB) for context in (512, 2048, 8192)))
    unsure = after(HERE, *(row(Load(context), off * MIB) for context, off in ((512, -40), (2048, 10), (8192, 60))))
    assert unsure["high_bytes"] - unsure["low_bytes"] > agreed["high_bytes"] - agreed["low_bytes"]


def test_two_other_models_teach_nothing_and_three_a_share() -> None:
    strangers = [row(Load(context), 60 * MIB, digest=f"sha256:{context}", architecture="llama") for context in (512, 2048, 8192)]
    assert after(HERE, *strangers[:2])["basis"] == "formula"
    said = after(HERE, *strangers)
    assert said["basis"] == "adjusted" and said["total_bytes"] > formula(HERE)["total_bytes"] + 40 * MIB


def test_one_wild_measurement_among_many_moves_little() -> None:
    tame = [row(Load(512 * number), 5 * MIB) for number in range(1, 8)]
    assert abs(after(HERE, *tame, row(Load(8192), 4000 * MIB))["total_bytes"] - after(HERE, *tame)["total_bytes"]) < 8 * MIB


def test_an_engine_that_never_worked_is_taken_to_need_its_buffers() -> None:
    idle = row(HERE, 0)
    idle["peak_bytes"] = idle["ready_bytes"]
    assert after(HERE, idle)["total_bytes"] == idle["ready_bytes"] + idle["compute_bytes"]
    on_gpu = idle | {"device_kind": "gpu"}
    assert corrected(formula(HERE), [on_gpu], RAN, replace(HERE, kind="gpu"), settings_of(HERE, {}))["total_bytes"] == idle["ready_bytes"]


@given(offs=st.lists(st.integers(-200, 800), max_size=12), context=st.sampled_from((512, 4096, 16_384)))
def test_the_interval_always_holds_the_estimate(offs: list[int], context: int) -> None:
    rows = [row(Load(512 * (number + 1)), off * MIB, digest=f"sha256:{number % 3}") for number, off in enumerate(offs)]
    said = after(Load(context), *rows, ran=replace(RAN, digest="sha256:1"))
    assert 0 < said["low_bytes"] <= said["total_bytes"] <= said["high_bytes"]


def test_what_does_not_fit_is_told_with_what_would() -> None:
    model = {"geometry": GEOMETRY, "size_bytes": WEIGHTS, "quantization": "Q8_0"}

    def at(context: int, cache_type: str, weights: int | None) -> memory.Memory:
        load = Load(context, cache_type=cache_type)
        return memory.estimate(GEOMETRY, weights or WEIGHTS, context, 1, load)

    load = Load(32_768)
    verdict = memory.fit("cpu", 1000 * MIB, at, load, model)
    assert verdict["fits"] is False and len(verdict["reason"]) <= 60
    ways = {next(key for key in ("context_length", "cache_type", "quantization") if way[key]): way for way in verdict["instead"]}
    assert set(ways) == {"context_length", "cache_type", "quantization"}
    assert 512 <= ways["context_length"]["context_length"] < 32_768
    for way in verdict["instead"]:
        assert way["high_bytes"] <= 1000 * MIB
    again = at(ways["context_length"]["context_length"] + 256, "f16", None)
    assert again["high_bytes"] > 1000 * MIB, "the longest context is the longest"


def test_layers_go_to_gpus_by_their_room_and_the_rest_stays() -> None:
    there = replace(HERE, kind="gpu", runtime="cuda")
    said = formula(there)
    whole = memory.split(GEOMETRY, said, there, {"gpu-0": 8 << 30, "gpu-1": 8 << 30}, "cpu")
    assert [(share["device_id"], share["layers"]) for share in whole] == [("gpu-0", 12), ("gpu-1", 12), ("cpu", 0)]
    part = memory.split(GEOMETRY, said, there, {"gpu-0": 860 * MIB}, "cpu")
    assert 0 < part[0]["layers"] < 24 and part[0]["layers"] + part[1]["layers"] == 24
    assert part[0]["total_bytes"] <= 860 * MIB
    assert sum(share["weights_bytes"] for share in part) == pytest.approx(WEIGHTS, abs=64)
    assert memory.split(GEOMETRY, said, there, {}, "cpu") == []


def test_many_starts_of_one_stranger_leave_the_interval_nearly_as_wide() -> None:
    rows = [row(Load(512 * number), 5 * MIB, digest="sha256:other", architecture="llama") for number in range(1, 9)]
    before, said = formula(HERE), after(HERE, *rows)
    assert (said["high_bytes"] - said["low_bytes"]) > 0.6 * (before["high_bytes"] - before["low_bytes"])


def test_a_model_that_no_formula_knows_is_known_once_it_ran() -> None:
    unknown = memory.estimate({}, WEIGHTS, HERE.context_length, 1, HERE)
    assert unknown["total_bytes"] is None and unknown["high_bytes"] is None
    ran = row(HERE, 0, predicted_bytes=0, compute_bytes=0, ready_bytes=300 * MIB, peak_bytes=400 * MIB)
    said = corrected(unknown, [ran], RAN, HERE, settings_of(HERE, {}))
    assert (said["basis"], said["total_bytes"], said["reason"]) == ("measured", 400 * MIB, None)
    assert said["high_bytes"] >= 400 * MIB
    other = replace(RAN, digest="sha256:b")
    assert corrected(unknown, [ran], other, HERE, settings_of(HERE, {})) == unknown
    assert corrected(formula(HERE), [ran] * 3, other, HERE, settings_of(HERE, {}))["basis"] == "formula"
