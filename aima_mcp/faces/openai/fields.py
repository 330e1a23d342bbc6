"""What a request to /v1 may hold: the fields that engines act on, and those that change no answer.

llama.cpp drops a field it does not know without a word, so a field is here only where it was seen to be heeded, or where it says nothing
about the answer.
"""

from __future__ import annotations

SAMPLING = {
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "n",
    "presence_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "user",
}
LLAMA_SAMPLING = {
    "cache_prompt",
    "dry_allowed_length",
    "dry_base",
    "dry_multiplier",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "dynatemp_range",
    "grammar",
    "ignore_eos",
    "json_schema",
    "min_keep",
    "min_p",
    "mirostat",
    "mirostat_eta",
    "mirostat_tau",
    "n_keep",
    "n_predict",
    "n_probs",
    "post_sampling_probs",
    "repeat_last_n",
    "repeat_penalty",
    "samplers",
    "timings_per_token",
    "top_k",
    "top_n_sigma",
    "typical_p",
    "xtc_probability",
    "xtc_threshold",
}
CHAT = (
    SAMPLING
    | LLAMA_SAMPLING
    | {
        "chat_template_kwargs",
        "max_completion_tokens",
        "messages",
        "metadata",
        "model",
        "parallel_tool_calls",
        "reasoning_effort",
        "reasoning_format",
        "response_format",
        "service_tier",
        "store",
        "tool_choice",
        "tools",
        "top_logprobs",
    }
)
COMPLETE = SAMPLING | LLAMA_SAMPLING | {"best_of", "echo", "model", "prompt", "suffix"}
EMBED = {"dimensions", "encoding_format", "input", "model", "user"}
# `text.format` and `reasoning.effort` reach the engine by their names in chats, see asked.py: llama.cpp heeds those and drops these.
COUNT_RESPONSE = {"input", "instructions", "model", "parallel_tool_calls", "reasoning", "text", "tool_choice", "tools", "truncation"}
RESPONSE = (
    COUNT_RESPONSE
    | LLAMA_SAMPLING
    | {
        "background",
        "chat_template_kwargs",
        "include",
        "max_output_tokens",
        "metadata",
        "prompt_cache_key",
        "safety_identifier",
        "seed",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "user",
    }
)
COUNT_MESSAGE = {"messages", "model", "system", "thinking", "tool_choice", "tools"}
MESSAGE = COUNT_MESSAGE | {"max_tokens", "metadata", "service_tier", "stop_sequences", "stream", "temperature", "top_k", "top_p"}
