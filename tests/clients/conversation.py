"""What a program does with the `openai` package for Python, told as facts: a JSON object on standard output.

It runs with whichever release of the package comes first on its path, knows of the server no more than base URL, key
and names of models (JSON on standard input), and is free of any knowledge of Citadel. `conversation.mjs` is the same
in JavaScript: the steps and the facts have the same names.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import openai
from pydantic import BaseModel

Facts = dict[str, Any]

HELLO = [{"role": "user", "content": "Say hello."}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
CHOICE = {"type": "function", "function": {"name": "weather"}}
TOKENS = 8


class Verdict(BaseModel):
    """What a model is asked to fill in."""

    good: bool


def main() -> None:
    """Has every conversation and tells what came of it."""
    plan = json.load(sys.stdin)
    client = openai.OpenAI(base_url=plan["base_url"], api_key=plan["key"], max_retries=0)
    facts = {
        "version": openai.__version__,
        "models": {name: converse(client, name) for name in plan["models"]},
        "tools": {name: call_tools(client, name) for name in plan["test_models"]},
        "options": {name: use_options(client, name) for name in plan["test_models"]},
        "embeddings": {name: embed(client, name) for name in plan["embedding_models"]},
        "catalogue": look_up(client, plan["models"]),
        "errors": meet_errors(client, plan),
        "limits": meet_limits(client.with_options(api_key=plan["limited_key"]), plan["trouble"]),
        "leaving": leave(client, plan["trouble"]),
        "retries": retry(client.with_options(max_retries=2), plan["trouble"]),
    }
    json.dump(facts, sys.stdout)


def converse(client: Any, model: str) -> Facts:
    """Chat and completions, whole and streamed, and an answer by a schema."""
    asked = {"model": model, "messages": HELLO, "max_tokens": TOKENS}
    whole = client.chat.completions.create(**asked)
    plain = client.completions.create(model=model, prompt="Once upon", max_tokens=TOKENS)
    several = {"model": model, "prompt": ["Once", "Twice"], "max_tokens": TOKENS}
    return {
        "chat": {
            "role": whole.choices[0].message.role,
            "text": whole.choices[0].message.content,
            "finish": whole.choices[0].finish_reason,
            "tokens": whole.usage.completion_tokens,
        },
        "stream": chat_streamed(client.chat.completions.create(**asked, stream=True)),
        "stream_with_usage": chat_streamed(
            client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        ),
        "schema": filled_in(client, model),
        "completion": {"text": plain.choices[0].text, "tokens": plain.usage.completion_tokens},
        "completion_stream": completion_streamed(
            client.completions.create(model=model, prompt="Once upon", max_tokens=TOKENS, stream=True)
        )["0"],
        "completions": {str(choice.index): choice.text for choice in client.completions.create(**several).choices},
        "completions_stream": completion_streamed(client.completions.create(**several, stream=True)),
    }


def chat_streamed(stream: Iterable[Any]) -> Facts:
    """Text, finish reason and usage of a stream, and how many chunks had no choice."""
    facts: Facts = {"text": "", "finish": None, "tokens": None, "without_choice": 0}
    for chunk in stream:
        facts["without_choice"] += not chunk.choices
        if chunk.usage:
            facts["tokens"] = chunk.usage.completion_tokens
        for choice in chunk.choices:
            facts["text"] += choice.delta.content or ""
            facts["finish"] = choice.finish_reason or facts["finish"]
    return facts


def completion_streamed(stream: Iterable[Any]) -> dict[str, str]:
    """The text of each choice."""
    texts: dict[str, str] = {}
    for chunk in stream:
        for choice in chunk.choices:
            texts[str(choice.index)] = texts.get(str(choice.index), "") + choice.text
    return texts


def filled_in(client: Any, model: str) -> Any:
    """An answer by a schema, read by the package's own `parse`, which older releases keep under `beta`."""
    chat = client.beta.chat if hasattr(client.beta, "chat") else client.chat
    answer = chat.completions.parse(model=model, messages=HELLO, response_format=Verdict, max_tokens=64)
    return answer.choices[0].message.parsed.model_dump()


def call_tools(client: Any, model: str) -> Facts:
    """A tool call, whole and streamed."""
    asked = {"model": model, "messages": HELLO, "tools": TOOLS, "tool_choice": CHOICE}
    whole = client.chat.completions.create(**asked).choices[0]
    (call,) = whole.message.tool_calls
    name, arguments, finish = "", "", None
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for delta in choice.delta.tool_calls or ():
                name += delta.function.name or ""
                arguments += delta.function.arguments or ""
    return {
        "whole": {"name": call.function.name, "arguments": call.function.arguments, "finish": whole.finish_reason},
        "stream": {"name": name, "arguments": arguments, "finish": finish},
    }


def use_options(client: Any, model: str) -> Facts:
    """n (whole and streamed), logprobs, stop and seed."""
    asked = {"model": model, "messages": HELLO}
    several = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=2).choices
    first = several[0].message.content
    word = first.split()[2]
    streamed: dict[int, str] = {}
    for chunk in client.chat.completions.create(**asked, n=2, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    return {
        "texts": [choice.message.content for choice in several],
        "streamed": [streamed[index] for index in sorted(streamed)],
        "logprobs": "".join(entry.token for entry in several[0].logprobs.content),
        "rivals": len(several[0].logprobs.content[0].top_logprobs),
        "stop_word": word,
        "stopped": client.chat.completions.create(**asked, stop=[word]).choices[0].message.content,
        "seeded": [client.chat.completions.create(**asked, seed=seed).choices[0].message.content for seed in (1, 1, 2)],
    }


def embed(client: Any, model: str) -> Facts:
    """Vectors of texts and tokens, as the package asks for them itself (base64) and as floats."""
    ask = client.embeddings.create
    tokens = ask(model=model, input=[[101, 7592, 102], [101, 102]])
    return {
        "by_default": ask(model=model, input="hello").data[0].embedding,
        "floats": ask(model=model, input=["hello", "world"], encoding_format="float").data[0].embedding,
        "used": ask(model=model, input=f"hello {time.time()}").usage.total_tokens,
        "of_tokens": [row.index for row in tokens.data],
        "of_one": ask(model=model, input=[101, 7592, 102]).data[0].embedding == tokens.data[0].embedding,
    }


def look_up(client: Any, models: list[str]) -> Facts:
    """The list of models, and each by its name."""
    return {
        "ids": [model.id for model in client.models.list()],
        "retrieved": [client.models.retrieve(name).id for name in models],
    }


def meet_errors(client: Any, plan: Facts) -> Facts:
    """What the package raises for each thing that goes wrong. The server does as a message says: see `trouble`."""

    def chat(message: str, *, key: str = plan["key"], **more: Any) -> Any:
        messages = [{"role": "user", "content": message}]
        asking = client.with_options(api_key=key)
        return asking.chat.completions.create(**{"model": plan["trouble"], "messages": messages, **more})

    stranger = client.with_options(api_key="sk-nobody")
    return {
        "wrong_key": error_of(stranger.models.list),
        "unknown_model": error_of(lambda: chat("hello", model="nobody/has:this")),
        "wrong_type": error_of(lambda: chat("hello", temperature="hot")),
        "out_of_bounds": error_of(lambda: chat("hello", temperature=5)),
        "blamed": error_of(lambda: chat("[[behave:error 400]]")),
        "forbidden": error_of(lambda: chat("hello", key=plan["auditors_key"])),
        "busy": error_of(lambda: chat("[[behave:error 429 retry_after=7]]")),
        "crashed": error_of(lambda: chat("[[behave:error 500]]")),
        "late": error_of(lambda: chat("[[behave:error 504]]")),
        "not_ready": error_of(lambda: chat("[[behave:error 503 retry_after=3]]", stream=True)),
        "fine": chat("hello").choices[0].finish_reason,
        "cut": error_of(lambda: list(chat("[[behave:die chunk:3 rst]]", stream=True))),
        "too_large": error_of(lambda: chat("x" * 11_000_000)),
        "dimensions": error_of(
            lambda: client.embeddings.create(model=plan["embedding_models"][0], input="hello", dimensions=100)
        ),
    }


def error_of(action: Callable[[], Any]) -> Facts:
    """What an action raises, as a program sees it."""
    try:
        return {"none": str(action())}
    except openai.APIError as error:
        response = getattr(error, "response", None)
        return {
            "class": type(error).__name__,
            "status": getattr(error, "status_code", None),
            "code": error.code,
            "param": error.param,
            "type": error.type,
            "message": error.message,
            "request_id": getattr(error, "request_id", None),
            "retry_after": response.headers.get("retry-after") if response is not None else None,
        }


def meet_limits(client: Any, model: str) -> Facts:
    """Two requests with a key that has one a minute: the headers of the first, the error of the second."""
    asked = {"model": model, "messages": HELLO}
    raw = client.chat.completions.with_raw_response.create(**asked)
    return {
        "headers": {name.lower(): value for name, value in raw.headers.items()},
        "finish": raw.parse().choices[0].finish_reason,
        "refused": error_of(lambda: client.chat.completions.create(**asked)),
    }


def leave(client: Any, model: str) -> Facts:
    """Gives up on an answer, on a stream that doesn't begin, and on one that has; tells when, by the system's clock."""
    sort = sys.argv[1]

    def hanging(where: str, **more: Any) -> Facts:
        messages = [{"role": "user", "content": f"[[behave:hang]] {where} {sort}"}]
        error = error_of(lambda: impatient.chat.completions.create(model=model, messages=messages, **more))
        return {"class": error["class"], "at": time.monotonic()}

    impatient = client.with_options(timeout=0.3)
    messages = [{"role": "user", "content": f"[[behave:slow_chunks 100]] stream {sort}"}]
    with client.chat.completions.create(model=model, messages=messages, stream=True) as stream:
        text = next(chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content)
    return {
        "stream": {"text": text, "at": time.monotonic()},
        "plain": hanging("plain"),
        "silence": hanging("silence", stream=True),
    }


def retry(client: Any, model: str) -> Facts:
    """Requests that fail once on the server, and that the package sends again."""

    def chat(message: str) -> str:
        messages = [{"role": "user", "content": f"{message} {sys.argv[1]}"}]
        return str(client.chat.completions.create(model=model, messages=messages).choices[0].finish_reason)

    return {name: chat(name) for name in ("busy once", "not ready once")}


main()
