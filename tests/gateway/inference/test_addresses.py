"""Wrong addresses and methods are told so in OpenAI's shape."""

import pytest
from yarl import URL

from tests.gateway.client import CHAT, COMPLETIONS, EMBEDDINGS, Client

POSTS = (CHAT, COMPLETIONS, EMBEDDINGS)
GETS = ("/v1/models", "/v1/models/smollm2:135m")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [(method, path, "POST") for path in POSTS for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD")]
    + [(method, path, "GET") for path in GETS for method in ("POST", "PUT", "DELETE")],
)
async def test_a_wrong_method_is_405_and_names_the_right_one(
    client: Client, method: str, path: str, allowed: str
) -> None:
    answer = await client.ask(method, path, data=b"{}" if method in ("POST", "PUT", "PATCH") else None)
    assert answer.status == 405
    assert allowed in [name.strip() for name in answer.headers["allow"].split(",")]
    if method != "HEAD":
        assert answer.json()["error"] == {
            **answer.json()["error"],
            "type": "invalid_request_error",
            "code": "method_not_allowed",
        }
        assert allowed in answer.json()["error"]["message"]
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert int(answer.headers["content-length"]) > 0


@pytest.mark.parametrize("path", [*GETS, "/health/live"])
async def test_a_head_is_a_get_without_its_body(client: Client, path: str) -> None:
    before = await client.get(path)
    for _ in range(20):  # servers that other tests add and remove are in it
        head, whole = await client.ask("HEAD", path), await client.get(path)
        if whole.body == before.body:
            break
        before = whole
    assert (head.status, head.body) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v1/chat/completions/",
        "/v1/chat",
        "/v1/engines",
        "/v1/%00",
        "/metrics/x",
        "/health/nothing",
    ],
)
async def test_nothing_there_is_404(client: Client, method: str, path: str) -> None:
    answer = await client.ask(method, path, data=b"{}" if method == "POST" else None)
    assert answer.status == 404
    assert answer.headers["content-type"] == "application/json"
    if method != "HEAD":
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("invalid_request_error", "not_found")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        "/completions",
        "/embeddings",
        "/models",
        "/models/smollm2:135m",
        "//v1/chat/completions",
        "//v1/models",
    ],
)
async def test_who_forgets_where_the_api_is_is_told(client: Client, method: str, path: str) -> None:
    url = URL(f"{client.session._base_url}".rstrip("/") + path, encoded=True)
    data = b"{}" if method == "POST" else None
    async with client.session.request(method, url, data=data) as answer:
        assert answer.status == 404
        assert answer.headers["x-request-id"]
        error = (await answer.json())["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "not_found")
    assert "/v1" in error["message"].split("The API")[1]
    assert "base URL" in error["message"]


@pytest.mark.parametrize("name", ["nobody", "a/b:c", "smollm2", "x" * 3000])
async def test_a_model_that_is_not_there_is_named_in_the_error(client: Client, name: str) -> None:
    answer = await client.get(f"/v1/models/{name}")
    assert (answer.status, answer.code) == (404, "model_not_found")
    assert answer.json()["error"]["param"] == "model"
    assert len(answer.body) < 1000


@pytest.mark.parametrize(
    "path",
    [
        "/api/pull",
        "/api/delete",
        "/api/generate",
        "/api/tags",
        "/api/chat",
        "/slots",
        "/props",
        "/v1/load_lora_adapter",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_no_way_leads_to_a_servers_own_pages(client: Client, method: str, path: str) -> None:
    answer = await client.ask(method, path, data=b'{"model":"smollm2:135m"}' if method == "POST" else None)
    assert answer.status == 404


async def test_the_path_is_looked_at_before_the_key_no_more_than_a_stranger_may_know(client: Client) -> None:
    """A stranger learns nothing of models: whether one exists is told to callers alone."""
    for name in ("smollm2:135m", "nobody"):
        assert (await client.get(f"/v1/models/{name}", key="nobody")).status == 401
