"""The server that run.sh started, as clients and facts about it."""

import os
import time

import httpx
import openai
import pytest


class Server:
    """Where it is, and what its model and metrics say."""

    def __init__(self) -> None:
        self.url = os.environ["COMPUTEPOOL_URL"].rstrip("/")
        self.key = os.environ["COMPUTEPOOL_API_KEY"]
        self.root = self.url.removesuffix("/v1")
        self.headers = {"Authorization": f"Bearer {self.key}"}
        self.http = httpx.Client(headers=self.headers)

    def client(self, **options) -> openai.OpenAI:
        options = {"api_key": self.key, "max_retries": 0, "timeout": 120.0} | options
        return openai.OpenAI(base_url=self.url, **options)

    def gauge(self, name: str) -> float:
        text = self.http.get(f"{self.root}/metrics").text
        values = [line.split()[-1] for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        assert values, f"/metrics has no {name}:\n{text}"
        return sum(float(value) for value in values)

    def wait_for(self, name: str, value: float, seconds: float) -> float:
        """How long it took until the sum of a metric had this value."""
        begun = time.monotonic()
        while (found := self.gauge(name)) != value:
            waited = time.monotonic() - begun
            assert waited < seconds, f"{name} is still {found}, not {value}, after {waited:.1f} s"
            time.sleep(0.02)
        return time.monotonic() - begun


@pytest.fixture(scope="session")
def server() -> Server:
    return Server()


@pytest.fixture(scope="session")
def client(server) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def model(client) -> str:
    return client.models.list().data[0].id


@pytest.fixture(scope="session")
def context(client, model) -> int:
    """The longest prompt and answer together, in tokens."""
    return client.models.retrieve(model).computepool["max_context"]


@pytest.fixture
def ask(client, model):
    """One greedy chat answer, unless told otherwise."""

    def ask(content="What is a shard?", **options):
        options = {"model": model, "temperature": 0, "max_tokens": 24} | options
        return client.chat.completions.create(messages=[{"role": "user", "content": content}], **options)

    return ask


@pytest.fixture
def go_on(client, model):
    """One greedy plain completion, unless told otherwise."""

    def go_on(prompt="A shard is", **options):
        options = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 16} | options
        return client.completions.create(**options)

    return go_on


@pytest.fixture(autouse=True)
def nothing_left(server):
    """Whatever a test did, no sequence outlives it."""
    yield
    server.wait_for("computepool_sequences", 0, seconds=2)
