"""What schemathesis makes of our OpenAPI document: no request makes a 5xx, and every answer is what the document says.

ERNIE45_SCHEMATHESIS_CASES sets how many requests each operation gets in each of the two modes.
"""

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

NUM_CASES = int(os.environ.get("ERNIE45_SCHEMATHESIS_CASES", "25"))
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
# Where there is something to get wrong.
BODIES = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def document(shared_server: Any) -> Any:
    return shared_server.client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def operations(document: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_made_from_the_document(
    server: Any, engine: Any, document: Any, session: requests.Session, mode: GenerationMode
) -> None:
    engine.at_once = True
    schema = schemathesis.openapi.from_dict(document)
    num_statuses: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.NEGATIVE and operation.path not in BODIES:
            continue

        @seed(4)
        @settings(max_examples=NUM_CASES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and sum(num_statuses.values()) % 8:
                case.body.pop("model", None)  # nearly all names would be unknown ones
            response = case.call_and_validate(base_url=server.url, session=session, checks=CHECKS)
            num_statuses[response.status_code] = num_statuses.get(response.status_code, 0) + 1

        check()
    assert num_statuses[400] >= NUM_CASES
    assert mode is GenerationMode.NEGATIVE or num_statuses[200] >= NUM_CASES, num_statuses


def test_every_field_is_described(document: Any) -> None:
    schemas = document["components"]["schemas"] | {
        path: operation["requestBody"]["content"]["application/json"]["schema"]
        for path, _, operation in operations(document)
        if "requestBody" in operation
    }
    bare = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field, properties in schema.get("properties", {}).items()
        if not properties.get("description")
    ]
    assert not bare


def test_every_reference_leads_somewhere(document: Any) -> None:
    for name in re.findall(r"'#/components/schemas/([^']+)'", str(document)):
        assert name in document["components"]["schemas"]


def test_every_route_says_what_it_answers(document: Any) -> None:
    for path, method, operation in operations(document):
        assert operation["summary"], (path, method)
        assert "422" not in operation["responses"]
        wanted = {"200", "400", "401", "404", "405", "413", "415", "429", "500", "503", "504"}
        if path in ("/v1/chat/completions", "/v1/completions"):
            assert wanted <= set(operation["responses"])
            assert operation["requestBody"]["content"]["application/json"]["examples"]


def test_the_examples_are_answered(server: Any, document: Any) -> None:
    for path, method, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        for name, example in content.get("examples", {}).items():
            body = str(example["value"])
            if "https://" not in body:
                assert server.client.request(method, path, json=example["value"]).status_code == 200, (path, name)


def test_methods_that_are_not_there(server: Any, document: Any) -> None:
    for path, method, _ in operations(document):
        wrong = "delete" if "{" not in path else "put"
        response = server.client.request(wrong, path.replace("{", "").replace("}", ""))
        assert response.status_code == 405, (path, method)
        assert response.json()["error"]["type"] == "invalid_request_error"
