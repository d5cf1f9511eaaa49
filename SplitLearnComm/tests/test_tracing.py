"""One trace from the client to the server: calls, sessions and steps, both kinds of client."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from splitlearn_comm import (
    AsyncComputeClient,
    ComputeFunction,
    GRPCComputeClient,
    GRPCComputeServer,
    InvalidRequestError,
)
from splitlearn_comm.testing import CuttableProxy, RunningSumHost, eventually
from splitlearn_comm.tracing import ClientTracing, ServerTracing

HIDDEN = torch.full((1, 3, 4), 7.25)
SERVICE = "splitlearn.v1.ComputeService"


class Spans:
    """Spans of both sides, as they end."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def all(self) -> tuple[ReadableSpan, ...]:
        return self._exporter.get_finished_spans()

    def named(self, name: str, kind: trace.SpanKind | None = None) -> list[ReadableSpan]:
        """By their beginning."""
        found = [span for span in self.all() if span.name == name and kind in (None, span.kind)]
        return sorted(found, key=lambda span: span.start_time or 0)

    def children(self, parent: ReadableSpan) -> list[str]:
        found = [span for span in self.all() if span.parent and span.parent.span_id == parent.context.span_id]
        return [span.name for span in sorted(found, key=lambda span: span.start_time or 0)]


@pytest.fixture
def spans() -> Iterator[Spans]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


def act_synchronously(address: str, spans: Spans) -> None:
    with GRPCComputeClient(address, observer=ClientTracing(spans.provider)) as client:
        client.compute(HIDDEN)
        with client.session() as session:
            session.step(HIDDEN)
            session.crop(1)


def act_asynchronously(address: str, spans: Spans) -> None:
    async def act() -> None:
        async with AsyncComputeClient(address, observer=ClientTracing(spans.provider)) as client:
            await client.compute(HIDDEN)
            async with client.session() as session:
                await session.step(HIDDEN)
                await session.crop(1)

    asyncio.run(act())


Act = Callable[[str, Spans], None]


@pytest.mark.parametrize("act", [act_synchronously, act_asynchronously])
def test_one_trace_from_the_client_to_the_server(spans: Spans, act: Act) -> None:
    with GRPCComputeServer(RunningSumHost(), port=0, observer=ServerTracing(spans.provider)) as server:
        with spans.provider.get_tracer("test").start_as_current_span("mine") as mine:
            act(server.address, spans)
        eventually(lambda: len(spans.named(f"{SERVICE}/Session")) == 2)
    assert {span.context.trace_id for span in spans.all()} == {mine.get_span_context().trace_id}
    for method in ("Compute", "Session"):
        (there,) = spans.named(f"{SERVICE}/{method}", trace.SpanKind.SERVER)
        (here,) = spans.named(f"{SERVICE}/{method}", trace.SpanKind.CLIENT)
        assert there.parent is not None
        assert there.parent.span_id == here.context.span_id
        assert here.parent == mine.get_span_context()
    assert sorted(spans.children(here)) == ["splitlearn crop", "splitlearn forward", f"{SERVICE}/Session"]
    assert spans.children(there) == ["splitlearn open", "splitlearn forward", "splitlearn crop", "splitlearn close"]


def test_spans_of_steps_lie_in_time_and_have_no_contents(spans: Spans) -> None:
    with GRPCComputeServer(RunningSumHost(), port=0, observer=ServerTracing(spans.provider)) as server:
        act_synchronously(server.address, spans)
        eventually(lambda: len(spans.named(f"{SERVICE}/Session")) == 2)
    there, here = sorted(spans.named("splitlearn forward"), key=lambda span: span.end_time - span.start_time)  # type: ignore[operator]
    assert there.instrumentation_scope is not None
    assert there.instrumentation_scope.name == "splitlearn_comm.server"
    slack_ns = 2_000_000  # the clock that dates a span is not the one that measures it
    assert here.start_time - slack_ns <= there.start_time < there.end_time <= here.end_time + slack_ns  # type: ignore[operator]
    assert there.attributes is not None
    assert there.attributes["splitlearn.step_id"] == 1
    assert there.attributes["splitlearn.bytes_received"] > HIDDEN.nbytes  # type: ignore[operator]
    assert not [span for span in spans.all() if "7.25" in span.to_json()]


def test_what_fails_is_an_error_for_whom_it_is_one(spans: Spans) -> None:
    with GRPCComputeServer(RunningSumHost(), port=0, observer=ServerTracing(spans.provider)) as server:
        with (
            GRPCComputeClient(server.address, observer=ClientTracing(spans.provider)) as client,
            pytest.raises(InvalidRequestError),
        ):
            client.compute(torch.ones(1, 1, 5))
        eventually(lambda: len(spans.all()) == 2)
    (there,) = spans.named(f"{SERVICE}/Compute", trace.SpanKind.SERVER)
    (here,) = spans.named(f"{SERVICE}/Compute", trace.SpanKind.CLIENT)
    assert there.status.is_unset
    assert here.status.status_code is trace.StatusCode.ERROR
    assert here.attributes["rpc.grpc.status_code"] == there.attributes["rpc.grpc.status_code"] == 3  # type: ignore[index]


def test_a_session_that_reconnects_stays_in_its_trace(spans: Spans) -> None:
    with (
        GRPCComputeServer(RunningSumHost(), port=0, observer=ServerTracing(spans.provider)) as server,
        CuttableProxy(server.address) as proxy,
        GRPCComputeClient(proxy.address, observer=ClientTracing(spans.provider)) as client,
    ):
        with client.session() as session:
            session.step(HIDDEN)
            proxy.cut()
            session.step(HIDDEN)
        eventually(lambda: len(spans.named(f"{SERVICE}/Session", trace.SpanKind.SERVER)) == 2)
    (here,) = spans.named(f"{SERVICE}/Session", trace.SpanKind.CLIENT)
    assert spans.children(here).count(f"{SERVICE}/Session") == 2
    assert len({span.context.trace_id for span in spans.all()}) == 1


def test_the_span_of_a_call_is_current_where_it_is_served(spans: Spans) -> None:
    class Asking(ComputeFunction):
        inline = True
        span_id = 0

        def compute(self, tensor: torch.Tensor) -> torch.Tensor:
            self.span_id = trace.get_current_span().get_span_context().span_id
            return tensor

    asking = Asking()
    with (
        GRPCComputeServer(asking, port=0, observer=ServerTracing(spans.provider)) as server,
        GRPCComputeClient(server.address) as client,
    ):
        for _ in range(2):
            client.compute(HIDDEN)
            eventually(lambda: asking.span_id in {span.context.span_id for span in spans.all()})
    assert [span.parent for span in spans.all()] == [None, None]  # no call is left current for the next


def test_without_opentelemetry_the_import_error_names_the_pip_line() -> None:
    program = "import sys; sys.modules['opentelemetry'] = None; import splitlearn_comm; import splitlearn_comm.tracing"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert ran.stderr.splitlines()[-1] == "ImportError: tracing needs: pip install 'splitlearn-comm[otel]'"
