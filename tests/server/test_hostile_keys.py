"""What one API key leaves in the server, another cannot have."""

from typing import Any

import pytest


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keyed(start: Any) -> Any:
    return start(api_keys=("first", "second")).wait()


def test_a_stored_response_belongs_to_its_key(keyed: Any) -> None:
    mine, other = bearer("first"), bearer("second")
    stored = keyed.client.post("/v1/responses", json={"input": "a secret", "store": True}, headers=mine).json()
    url, follow = f"/v1/responses/{stored['id']}", {"input": "what?", "previous_response_id": stored["id"]}
    assert keyed.client.get(url, headers=other).status_code == 404
    assert keyed.client.delete(url, headers=other).status_code == 404
    refused = keyed.client.post("/v1/responses", json=follow, headers=other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "previous_response_not_found")
    assert keyed.client.get(url, headers=mine).json() == stored
    assert keyed.client.post("/v1/responses", json=follow, headers=mine).status_code == 200
    assert keyed.client.delete(url, headers=mine).status_code == 200


def test_on_an_open_server_a_key_says_nothing(server: Any) -> None:
    stored = server.client.post("/v1/responses", json={"input": "hi", "store": True}, headers=bearer("any")).json()
    assert server.client.get(f"/v1/responses/{stored['id']}").json() == stored


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_uuid_belongs_to_its_key(keyed: Any, data_url: str, path: str) -> None:
    def ask(key: str, part: dict[str, Any], path: str = path) -> int:
        body = {"messages": [{"role": "user", "content": [{"type": "image_url", "uuid": "logo", **part}]}]}
        return keyed.client.post(path, json=body, headers=bearer(key)).status_code

    assert ask("first", {"image_url": {"url": data_url}}, "/v1/chat/completions") == 200
    assert ask("first", {}) == 200
    assert ask("second", {}) == 400
