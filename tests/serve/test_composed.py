"""The application as a part of somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from tinyqa_ray.reader import Reader
from tinyqa_ray.serve.app import build
from tinyqa_ray.serve.errors import RequestError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

LIBRARY = {
    "Boyle": "In the late 17th century, Robert Boyle proved that air is necessary for combustion.",
    "Owls": "Owls hunt voles at night.",
}


@serve.deployment
class Librarian:
    """Finds the texts that a question names, and has them read."""

    def __init__(self, reader: DeploymentHandle) -> None:
        self.reader = reader

    async def ask(self, question: str) -> dict[str, Any]:
        texts = [{"id": name, "text": text} for name, text in LIBRARY.items() if name in question]
        reply: dict[str, Any] = await self.reader.answer.remote({"question": question, "contexts": texts})
        return reply


@pytest.fixture(scope="module")
def librarian(tiny_bert: str, ray_cluster: None) -> Iterator[DeploymentHandle]:
    application = Librarian.options(ray_actor_options={"num_cpus": 0.1}).bind(  # type: ignore[attr-defined]
        build({"model": tiny_bert, "threads": 1, "threshold": 1.0})
    )
    yield serve.run(application, name="library", route_prefix=None)
    serve.shutdown()


def test_another_deployment_gets_answers_in_python(librarian: DeploymentHandle, tiny_bert: str) -> None:
    reply = librarian.ask.remote("What do Owls hunt?").result(timeout_s=60)
    (found,) = reply["answers"]
    (wanted,) = Reader.from_pretrained(tiny_bert).answer("What do Owls hunt?", LIBRARY["Owls"], threshold=1.0)
    assert (found["answer"], found["start"], found["document_id"]) == (wanted.answer, wanted.start, "Owls")
    assert found["score"] == pytest.approx(wanted.score, abs=1e-4)


def test_request_that_cannot_be_asked_raises_what_it_would_reply(librarian: DeploymentHandle) -> None:
    async def asked() -> None:
        await librarian.ask.remote("What do Boyle and Owls " + "and Owls " * 600)

    with pytest.raises(RayTaskError) as caught:
        asyncio.run(asked())
    causes = [caught.value, caught.value.cause]
    assert any(isinstance(each, RequestError) for each in causes), causes
    assert "tokens" in str(caught.value)
