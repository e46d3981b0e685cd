"""Error bodies as each kind of server writes them.

Sources: OpenAI's API reference "Error codes"; llama.cpp ``tools/server`` (``format_error_response``); Ollama
``openai/openai.go`` (``NewError``) and its native ``{"error": text}``; vLLM ``entrypoints/openai`` (``ErrorResponse``,
older versions put its fields at the top, its key check answers ``{"error":"Unauthorized"}``).
"""

from __future__ import annotations

from typing import Any, Literal

from ..answer import Answer

Shape = Literal["openai", "llamacpp", "ollama", "ollama_native", "vllm", "vllm_old", "fastapi", "text"]
Problem = Literal[
    "blame", "context", "auth", "forbidden", "model", "rate", "quota", "crash", "unsupported", "busy", "loading"
]

STATUS: dict[Problem, int] = {
    "blame": 400,
    "context": 400,
    "auth": 401,
    "forbidden": 403,
    "model": 404,
    "rate": 429,
    "quota": 429,
    "crash": 500,
    "unsupported": 501,
    "busy": 503,
    "loading": 503,
}
PROBLEM_OF_STATUS: dict[int, Problem] = {
    400: "blame",
    401: "auth",
    403: "forbidden",
    404: "model",
    422: "blame",
    429: "rate",
    501: "unsupported",
    503: "busy",
}

# problem: (message, type, param, code) as OpenAI writes them
_OPENAI: dict[Problem, tuple[str, str, str | None, str | None]] = {
    "blame": ("Invalid value for 'temperature': must be at most 2.", "invalid_request_error", "temperature", None),
    "context": (
        "This model's maximum context length is {limit} tokens. However, your messages resulted in {used} tokens.",
        "invalid_request_error",
        "messages",
        "context_length_exceeded",
    ),
    "auth": ("Incorrect API key provided.", "invalid_request_error", None, "invalid_api_key"),
    "forbidden": ("You are not allowed to sample from this model.", "invalid_request_error", None, "permission_denied"),
    "model": ("The model `{model}` does not exist.", "invalid_request_error", "model", "model_not_found"),
    "rate": ("Rate limit reached for requests.", "requests", None, "rate_limit_exceeded"),
    "quota": ("You exceeded your current quota.", "insufficient_quota", None, "insufficient_quota"),
    "crash": ("The server had an error while processing your request.", "server_error", None, None),
    "unsupported": ("This server does not support this endpoint.", "not_supported_error", None, None),
    "busy": ("The engine is currently overloaded, please try again later.", "server_error", None, "overloaded"),
    "loading": ("The model is being loaded.", "server_error", None, "model_loading"),
}
_LLAMACPP: dict[Problem, tuple[str, str]] = {
    "blame": ("Failed to parse messages: expected an array", "invalid_request_error"),
    "context": (
        "request ({used} tokens) exceeds the available context size ({limit} tokens), try increasing it",
        "exceed_context_size_error",
    ),
    "auth": ("Invalid API Key", "authentication_error"),
    "forbidden": ("Forbidden", "permission_error"),
    "model": ("File Not Found", "not_found_error"),
    "crash": ("Compute error.", "server_error"),
    "unsupported": (
        "This server does not support embeddings. Start it with `--embeddings`",
        "not_supported_error",
    ),
    "busy": ("no slot is available", "unavailable_error"),
    "loading": ("Loading model", "unavailable_error"),
}
_OLLAMA: dict[Problem, str] = {
    "context": "the input length exceeds the context length",
    "auth": "unauthorized",
    "model": 'model "{model}" not found, try pulling it first',
    "crash": "llama runner process has terminated: exit status 2",
    "unsupported": '"{model}" does not support this',
    "busy": "server busy, please try again.  maximum pending requests exceeded",
    "loading": "timed out waiting for llama runner to start - progress 0.40 - ",
}
_VLLM_TYPE: dict[int, str] = {
    400: "BadRequestError",
    401: "Unauthorized",
    404: "NotFoundError",
    500: "InternalServerError",
    501: "NotImplementedError",
    503: "ServiceUnavailableError",
}


def error_body(shape: Shape, status: int, problem: Problem, facts: dict[str, Any] | None = None) -> Any:
    """The decoded body of an error. ``facts`` fill the message: model, limit and used (tokens)."""
    known = {"model": "unknown", "limit": 8192, "used": 99999, **(facts or {})}
    message, kind, param, code = _OPENAI[problem]
    message = message.format(**known)
    if shape == "llamacpp":
        return _llamacpp(status, problem, known)
    if shape in ("ollama", "ollama_native"):
        return _ollama(shape, status, _OLLAMA.get(problem, message).format(**known))
    if shape in ("vllm", "vllm_old"):
        return _vllm(shape, status, problem, message, param)
    if shape == "fastapi":
        return {"detail": [{"loc": ["body", param or "model"], "msg": message, "type": "value_error"}]}
    if shape == "text":
        return message
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _llamacpp(status: int, problem: Problem, known: dict[str, Any]) -> Any:
    message, kind = _LLAMACPP.get(problem, (_OPENAI[problem][0], "server_error"))
    error: dict[str, Any] = {"code": status, "message": message.format(**known), "type": kind}
    if problem == "context":
        error |= {"n_prompt_tokens": known["used"], "n_ctx": known["limit"]}
    return {"error": error}


def _ollama(shape: Shape, status: int, message: str) -> Any:
    if shape == "ollama_native":
        return {"error": message}
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _vllm(shape: Shape, status: int, problem: Problem, message: str, param: str | None) -> Any:
    if problem == "auth":
        return {"error": "Unauthorized"}
    error = {"message": message, "type": _VLLM_TYPE.get(status, "BadRequestError"), "param": param, "code": status}
    return {"object": "error", **error} if shape == "vllm_old" else {"error": error}


def error_answer(
    shape: Shape,
    problem: Problem,
    status: int | None = None,
    facts: dict[str, Any] | None = None,
    retry_after: str | None = None,
) -> Answer:
    """An error as a whole answer; ``status`` is the problem's own unless given."""
    status = status or STATUS[problem]
    headers = {} if retry_after is None else {"retry-after": retry_after}
    body = error_body(shape, status, problem, facts)
    if isinstance(body, str):
        answer = Answer.of_text(body, status)
        answer.headers |= headers
        return answer
    return Answer.of_json(body, status, headers)
