"""Traces of OpenTelemetry: a span for each call, session and step, in one trace from the client to the server.

Needs the extra `otel`. An observer like any other: gRPC's instrumentation by OpenTelemetry wraps handlers that read and
write their stream as generators, and breaks ours; and it knows no steps. The context travels as W3C's `traceparent` in
the metadata of each call and stream. Spans hold names, sizes and status, no contents.
"""

from __future__ import annotations

import time

import grpc

from splitlearn_comm.observer import CallSummary, Metadata, ObservedCall, Observer, StepSummary

try:
    from opentelemetry import context as contexts
    from opentelemetry import propagate, trace
except ImportError as error:
    raise ImportError("tracing needs: pip install 'splitlearn-comm[otel]'") from error

__all__ = ["ClientTracing", "ServerTracing"]

# What is the server's fault and not its caller's, as OpenTelemetry sees it.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class ClientTracing(Observer):
    """Makes spans of a client's calls, sessions and steps (`observer=ClientTracing()`).

    The span of a call is a child of the one that is current where it is made; that of a session, of the one that is
    current where the session is; those of steps are children of their session's.

    Args:
        provider: Makes the tracer; None for the process's own.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("splitlearn_comm.client", tracer_provider=provider)

    def on_call(self, method: str, metadata: Metadata) -> ObservedCall:
        """Begin a span."""
        span = self._tracer.start_span(method[1:], kind=trace.SpanKind.CLIENT, attributes=_names_of(method))
        return _ClientSpan(self._tracer, span)


class ServerTracing(Observer):
    """Makes spans of a server's calls, streams and their messages (`observer=ServerTracing()`).

    The span of a call or stream is a child of the one its client sent, and current while it is served; those of a
    stream's messages are its children.

    Args:
        provider: Makes the tracer; None for the process's own.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("splitlearn_comm.server", tracer_provider=provider)

    def on_call(self, method: str, metadata: Metadata) -> ObservedCall:
        """Begin a span, and make it the current one."""
        parent = propagate.extract({key: value for key, value in metadata if isinstance(value, str)})
        span = self._tracer.start_span(
            method[1:], context=parent, kind=trace.SpanKind.SERVER, attributes=_names_of(method)
        )
        return _ServerSpan(self._tracer, span)


class _Span(ObservedCall):
    """The span of a call, and the making of those below it."""

    bad_codes: frozenset[grpc.StatusCode]

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = trace.set_span_in_context(span)

    def on_step(self, step: StepSummary) -> None:
        ended_ns = time.time_ns()
        span = self._tracer.start_span(
            f"splitlearn {step.action}",
            context=self._context,
            start_time=ended_ns - int(step.seconds * 1e9),
            attributes={
                "splitlearn.step_id": step.step_id,
                "splitlearn.queue_s": step.queue_s,
                "splitlearn.compute_s": step.compute_s,
                "splitlearn.bytes_received": step.bytes_received,
                "splitlearn.bytes_sent": step.bytes_sent,
            },
        )
        self._note(span, step.code)
        span.end(ended_ns)

    def on_end(self, summary: CallSummary) -> None:
        self._note(self._span, summary.code)
        self._span.end()

    def _note(self, span: trace.Span, code: grpc.StatusCode) -> None:
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code in self.bad_codes:
            span.set_status(trace.Status(trace.StatusCode.ERROR, code.name))


class _ClientSpan(_Span):
    bad_codes = frozenset(grpc.StatusCode) - {grpc.StatusCode.OK}

    def metadata(self) -> Metadata:
        carrier: dict[str, str] = {}
        propagate.inject(carrier, context=self._context)
        return tuple(carrier.items())


class _ServerSpan(_Span):
    bad_codes = _FAULTS

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        super().__init__(tracer, span)
        # Nothing to detach: gRPC serves each call in a task, and so in a context, of its own.
        contexts.attach(self._context)


def _names_of(method: str) -> dict[str, str]:
    _, service, name = method.split("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
