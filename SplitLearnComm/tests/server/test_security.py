"""Strangers at the door: each is refused and told what to do, and a good client beside them notices nothing."""

import asyncio
import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from splitlearn_comm import (
    AsyncComputeClient,
    AuthenticationError,
    CommError,
    ComputeFunction,
    GRPCComputeClient,
    GRPCComputeServer,
    GRPCServerConfig,
    RemoteInternalError,
    ResourceExhaustedError,
    ServerUnavailableError,
    SessionNotFoundError,
)
from splitlearn_comm.client import AsyncClientSession, ClientSession, ClientTLS, FixedDelay
from splitlearn_comm.framing import steps
from splitlearn_comm.framing.assembly import Packing
from splitlearn_comm.framing.inbox import Inbox
from splitlearn_comm.messages import Forward
from splitlearn_comm.protocol import COMPUTE, GET_SERVICE_INFO, REQUEST_ID_METADATA, SESSION
from splitlearn_comm.server import ClientLimits, ServerTLS, TokenFile
from splitlearn_comm.testing import Gated, Identity, RunningSumHost, eventually
from tests.support.certificates import DAY, Authority

ALICE, BOB = "a-secret-of-alice-0001", "a-secret-of-bob-000002"
TOKENS = {"alice": ALICE, "bob": BOB}
ONCE = FixedDelay(0, max_attempts=1)


class Steady:
    """A good client that makes steps in a thread for as long as the `with` block lasts, and checks each answer."""

    def __init__(self, client: GRPCComputeClient) -> None:
        self._client = client
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.num_steps = 0
        self.error: BaseException | None = None

    def _run(self) -> None:
        generator, total = torch.Generator().manual_seed(1), torch.zeros(1, 1, 4)
        try:
            while not self._is_over.is_set():
                with self._client.session() as session:
                    total = torch.zeros(1, 1, 4)
                    for _ in range(30):
                        hidden = torch.randn(1, 1, 4, generator=generator)
                        total = total + hidden
                        torch.testing.assert_close(session.step(hidden), total)
                        self.num_steps += 1
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "Steady":
        self._thread.start()
        eventually(lambda: self.num_steps > 3 or self.error is not None)
        return self

    def __exit__(self, *_: object) -> None:
        before = self.num_steps
        eventually(lambda: self.num_steps > before + 3 or self.error is not None)
        self._is_over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def server_tls(authority: Authority, client_ca: Path | None = None) -> ServerTLS:
    certificate, key = authority.issue("server")
    return ServerTLS(certificate=certificate, key=key, client_ca=client_ca)


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[GRPCComputeServer]:
    config = GRPCServerConfig(tls=server_tls(authority), tokens=TOKENS)
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server:
        yield server


@pytest.fixture
def steady(tls_server: GRPCComputeServer, authority: Authority) -> Iterator[Steady]:
    tls = ClientTLS(ca=authority.certificate)
    with GRPCComputeClient(tls_server.address, token=BOB, tls=tls) as client, Steady(client) as steady:
        yield steady


def refused(address: str, **options: object) -> CommError:
    """What both kinds of client raise, for a call and for a session."""
    errors: list[CommError] = []

    async def ask_asyncio() -> None:
        async with AsyncComputeClient(address, retry=ONCE, **options) as client:  # type: ignore[arg-type]
            with pytest.raises(CommError) as failed:
                await client.session().open()
            errors.append(failed.value)

    with GRPCComputeClient(address, retry=ONCE, **options) as client:  # type: ignore[arg-type]
        for ask in (client.get_info, client.session, lambda: client.compute(torch.ones(1, 1, 4))):
            with pytest.raises(CommError) as failed:
                ask()
            errors.append(failed.value)
    asyncio.run(ask_asyncio())
    assert len({type(error) for error in errors}) == 1
    return errors[0]


@pytest.mark.usefixtures("steady")
class TestOverTLS:
    def test_the_right_token_over_the_right_certificate(
        self, tls_server: GRPCComputeServer, authority: Authority
    ) -> None:
        tls = ClientTLS(ca=authority.certificate)
        with GRPCComputeClient(tls_server.address, token=ALICE, tls=tls) as client, client.session() as session:
            assert torch.equal(session.step(torch.ones(1, 1, 4)), torch.ones(1, 1, 4))

    @pytest.mark.parametrize("token", [None, "a-secret-of-nobody", ALICE[:-1]])
    def test_a_wrong_or_missing_token(
        self, tls_server: GRPCComputeServer, authority: Authority, token: str | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.DEBUG, "splitlearn_comm"):
            error = refused(tls_server.address, token=token, tls=ClientTLS(ca=authority.certificate))
        assert isinstance(error, AuthenticationError)
        assert isinstance(error, PermissionError)
        assert str(error).startswith("no valid token came with this call: give the client the token")
        assert error.request_id is not None
        assert error.request_id in caplog.text
        assert ALICE[:-1] not in caplog.text
        assert "nobody" not in caplog.text

    def test_a_certificate_of_another_authority(self, tls_server: GRPCComputeServer, stranger: Authority) -> None:
        error = refused(tls_server.address, token=ALICE, tls=ClientTLS(ca=stranger.certificate))
        assert isinstance(error, ServerUnavailableError)
        assert "an authority not trusted here: give that with tls=ClientTLS(ca=...)" in str(error)

    def test_authorities_of_the_system(self, tls_server: GRPCComputeServer) -> None:
        assert "not trusted here" in str(refused(tls_server.address, token=ALICE, tls=True))

    def test_a_certificate_for_another_name(self, tls_server: GRPCComputeServer, authority: Authority) -> None:
        tls = ClientTLS(ca=authority.certificate, server_name="elsewhere")
        assert "ClientTLS(server_name=...)" in str(refused(tls_server.address, token=ALICE, tls=tls))

    def test_plaintext_to_a_tls_port(self, tls_server: GRPCComputeServer) -> None:
        error = refused(tls_server.address, token=ALICE)
        assert isinstance(error, ServerUnavailableError)
        assert "it may want TLS (tls=True or tls=ClientTLS(ca=...))" in str(error)


def test_tls_to_a_plaintext_port(sum_server: GRPCComputeServer, authority: Authority) -> None:
    with GRPCComputeClient(sum_server.address) as client, Steady(client):
        error = refused(sum_server.address, tls=ClientTLS(ca=authority.certificate))
        assert isinstance(error, ServerUnavailableError)
        assert "it speaks no TLS: leave tls out" in str(error)


def test_an_expired_certificate_of_the_server(authority: Authority) -> None:
    certificate, key = authority.issue("expired", ends_in=-DAY)
    config = GRPCServerConfig(tls=ServerTLS(certificate=certificate, key=key))
    with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server:
        error = refused(server.address, tls=ClientTLS(ca=authority.certificate))
    assert isinstance(error, ServerUnavailableError)
    assert "its certificate has expired: whoever runs it has to renew it" in str(error)


class TestMutualTLS:
    @pytest.fixture
    def server(self, authority: Authority) -> Iterator[GRPCComputeServer]:
        config = GRPCServerConfig(
            tls=server_tls(authority, client_ca=authority.certificate), client_limits=ClientLimits(max_sessions=2)
        )
        with GRPCComputeServer(RunningSumHost(), port=0, config=config) as server:
            yield server

    def client(self, server: GRPCComputeServer, authority: Authority, name: str) -> GRPCComputeClient:
        certificate, key = authority.issue(name)
        tls = ClientTLS(ca=authority.certificate, certificate=certificate, key=key)
        return GRPCComputeClient(server.address, tls=tls, retry=ONCE)

    @pytest.mark.parametrize("whose", ["none", "stranger", "expired"])
    def test_who_shows_no_good_certificate_is_not_let_in(
        self, server: GRPCComputeServer, authority: Authority, stranger: Authority, whose: str
    ) -> None:
        tls = ClientTLS(ca=authority.certificate)
        if whose != "none":
            issuer, ends_in = (stranger, DAY) if whose == "stranger" else (authority, -DAY)
            certificate, key = issuer.issue("mallory", ends_in=ends_in)
            tls = ClientTLS(ca=authority.certificate, certificate=certificate, key=key)
        with self.client(server, authority, "alice") as good, Steady(good):
            error = refused(server.address, tls=tls)
        assert isinstance(error, ServerUnavailableError)

    def test_a_certificate_is_a_clients_name(self, server: GRPCComputeServer, authority: Authority) -> None:
        with (
            self.client(server, authority, "alice") as alice,
            self.client(server, authority, "bob") as bob,
            alice.session(),
            alice.session(),
            bob.session(),
        ):
            with pytest.raises(ResourceExhaustedError, match="client certificate:alice has 2 sessions open"):
                alice.session()
            bob.session().close()


def renew(paths: tuple[Path, Path], fresh: tuple[Path, Path]) -> None:
    for path, new in zip(paths, fresh, strict=True):
        shutil.copy(new, path)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))


def test_certificates_are_renewed_and_no_stream_is_dropped(
    authority: Authority, stranger: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    paths = authority.issue("renewed")
    config = GRPCServerConfig(tls=ServerTLS(certificate=paths[0], key=paths[1]))

    def connects(trusted: Authority) -> bool:
        tls = ClientTLS(ca=trusted.certificate)
        with contextlib.suppress(ServerUnavailableError), GRPCComputeClient(server.address, tls=tls, retry=ONCE) as new:
            return new.health()
        return False

    with (
        GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
        GRPCComputeClient(server.address, tls=ClientTLS(ca=authority.certificate), retry=ONCE) as old,
        old.session() as session,
    ):
        session.step(torch.ones(1, 1, 4))
        renew(paths, stranger.issue("renewed"))
        assert connects(stranger)
        assert not connects(authority)
        paths[1].write_text("no key")
        with caplog.at_level(logging.ERROR):
            assert connects(stranger)
        assert "what was there before still counts" in caplog.text
        assert torch.equal(session.step(torch.ones(1, 1, 4)), torch.full((1, 1, 4), 2.0))


@pytest.mark.parametrize("broken", ["key of another", "no certificate", "missing"])
def test_a_certificate_that_cannot_be_used_is_told_before_the_service_is_set_up(
    authority: Authority, tmp_path: Path, broken: str
) -> None:
    certificate, key = authority.issue("good")
    other = authority.issue("other")[1]
    if broken == "no certificate":
        certificate = tmp_path / "empty"
        certificate.write_text("nothing")
    paths = {"certificate": certificate, "key": other if broken == "key of another" else key}
    if broken == "missing":
        paths["key"] = tmp_path / "none"
    server = GRPCComputeServer(Identity(), port=0, config=GRPCServerConfig(tls=ServerTLS(**paths)))
    with pytest.raises(FileNotFoundError if broken == "missing" else ValueError, match=r"none|the key being the"):
        server.start(block=False)
    assert not server.is_running


class TestTokens:
    @pytest.fixture
    def server(self) -> Iterator[GRPCComputeServer]:
        with GRPCComputeServer(RunningSumHost(), port=0, config=GRPCServerConfig(tokens=TOKENS)) as server:
            yield server

    def test_health_is_told_to_everybody_and_nothing_else(self, server: GRPCComputeServer) -> None:
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
            watched = next(iter(health.Watch(health_pb2.HealthCheckRequest())))
            assert watched.status == health_pb2.HealthCheckResponse.SERVING
            for path in (COMPUTE, GET_SERVICE_INFO):
                with pytest.raises(grpc.RpcError) as failed:
                    channel.unary_unary(path)(b"")
                assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as failed:
                next(channel.stream_stream(SESSION)(iter([b""])))
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED

    @pytest.mark.parametrize("is_open", [False, True])
    def test_reflection_wants_a_token_unless_told_otherwise(self, is_open: bool) -> None:
        config = GRPCServerConfig(tokens=TOKENS, open_reflection=is_open)
        with (
            GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)

            def services(metadata: tuple[tuple[str, str], ...] = ()) -> int:
                asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
                return len(next(stub.ServerReflectionInfo(asked, metadata=metadata)).list_services_response.service)

            assert services((("authorization", f"bearer {ALICE}"),)) == 3
            if is_open:
                assert services() == 3
            else:
                with pytest.raises(grpc.RpcError, match="no valid token"):
                    services()

    def test_a_client_cannot_take_anothers_session(self, server: GRPCComputeServer) -> None:
        with (
            GRPCComputeClient(server.address, token=ALICE, retry=ONCE) as alice,
            grpc.insecure_channel(server.address) as channel,
            alice.session() as session,
        ):
            session.step(torch.ones(1, 1, 4))
            taken = steps.encode_open(steps.Open(session.session_id, resume=True))
            metadata = (("authorization", f"Bearer {BOB}"),)
            answer = Inbox(1 << 20).answer(next(channel.stream_stream(SESSION)(iter([taken]), metadata=metadata)))
            assert answer is not None
            assert isinstance(answer.error, SessionNotFoundError)
            assert torch.equal(session.step(torch.ones(1, 1, 4)), torch.full((1, 1, 4), 2.0))

    def test_tokens_are_renewed_while_streams_go_on(self, tmp_path: Path) -> None:
        path = tmp_path / "tokens"
        path.write_text(f"alice:{ALICE}\n")
        config = GRPCServerConfig(tokens=TokenFile(path))
        with (
            GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
            GRPCComputeClient(server.address, token=ALICE, retry=ONCE) as alice,
            GRPCComputeClient(server.address, token=BOB) as bob,
            alice.session() as session,
        ):
            write_tokens(path, f"# renewed\nalice:{ALICE}\nbob:{BOB}\n")
            with bob.session() as other:
                other.step(torch.ones(1, 1, 4))
            write_tokens(path, f"bob:{BOB}\n")
            assert bob.health()
            with pytest.raises(AuthenticationError):
                alice.session()
            assert session.position == 0

    @pytest.mark.parametrize("change", ["taken out", "renewed", "another's"])
    def test_open_streams_of_a_token_that_is_no_more_end(self, tmp_path: Path, change: str) -> None:
        path = tmp_path / "tokens"
        write_tokens(path, f"alice:{ALICE}\nbob:{BOB}\n")
        config = GRPCServerConfig(tokens=TokenFile(path), detached_session_timeout_s=1.0)
        lines = {"taken out": "", "renewed": "alice:a-new-secret-of-alice", "another's": f"carol:{ALICE}"}

        async def until_refused(address: str) -> CommError | None:
            async with AsyncComputeClient(address, token=ALICE) as client, client.session() as session:
                await session.step(torch.ones(1, 1, 4))
                write_tokens(path, f"bob:{BOB}\n{lines[change]}\n")
                return await asyncio.wait_for(refusal_of_async(session), 20)

        with (
            GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
            GRPCComputeClient(server.address, token=ALICE) as alice,
            GRPCComputeClient(server.address, token=BOB) as bob,
            alice.session() as session,
            bob.session() as good,
        ):
            session.step(torch.ones(1, 1, 4))
            good.step(torch.ones(1, 1, 4))
            errors = [asyncio.run(until_refused(server.address)), refusal_of(session)]
            # Whoever does not read the end of the stream, hears the same of the next one, unless that is let in again.
            if errors[0] is None and change == "another's":
                del errors[0]
            for error in errors:
                assert isinstance(error, AuthenticationError)
                assert "was taken out while its session was open" in str(error) or "no valid token" in str(error)
            # The state goes with it, when its time is over; the sessions of others go on.
            eventually(lambda: server.statistics().sessions_open == 1)
            assert torch.equal(good.step(torch.ones(1, 1, 4)), torch.full((1, 1, 4), 2.0))

    def test_a_step_that_runs_when_its_token_is_taken_out_is_answered(self, tmp_path: Path) -> None:
        path = tmp_path / "tokens"
        write_tokens(path, f"alice:{ALICE}\nbob:{BOB}\n")
        function = Gated()
        config = GRPCServerConfig(tokens=TokenFile(path), detached_session_timeout_s=0.4)
        with (
            GRPCComputeServer(function, port=0, config=config) as server,
            GRPCComputeClient(server.address, token=ALICE) as alice,
            ThreadPoolExecutor(1) as pool,
            alice.session() as session,
            alice.session() as idle,
        ):
            step = pool.submit(session.step, torch.ones(1, 1, 4))
            function.entered.acquire()
            write_tokens(path, f"bob:{BOB}\n")
            eventually(lambda: server.statistics().sessions_open == 1)
            function.gate.set()
            assert torch.equal(step.result(), torch.ones(1, 1, 4))
            for over in (session, idle):
                with pytest.raises(AuthenticationError):
                    over.step(torch.ones(1, 1, 4))


def write_tokens(path: Path, text: str) -> None:
    """Another content, and another time whatever the file system's resolution."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    path.write_text(text)
    os.utime(path, ns=(0, before + 1_000_000_000))


def refusal_of(session: ClientSession) -> CommError:
    """What a session that makes steps is refused with at last."""
    while True:
        try:
            session.start_recording()
        except CommError as error:
            return error


async def refusal_of_async(session: AsyncClientSession) -> CommError | None:
    """The same; None where it was rebuilt under another name, as by whom the secret belongs to now."""
    name = session.session_id
    while session.session_id == name:
        try:
            await session.start_recording()
        except CommError as error:
            return error
    return None


class TestLimits:
    def test_a_client_above_its_rate_is_refused_and_another_is_not_slowed(self) -> None:
        config = GRPCServerConfig(tokens=TOKENS, client_limits=ClientLimits(requests_per_s=200))
        with (
            GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
            GRPCComputeClient(server.address, token=ALICE, retry=ONCE) as alice,
            GRPCComputeClient(server.address, token=BOB) as bob,
            bob.session() as good,
            alice.session() as wild,
        ):
            refusals = [error for _ in range(400) if (error := self._try_step(wild)) is not None]
            assert refusals
            assert isinstance(refusals[0], ResourceExhaustedError)
            assert refusals[0].retry_after_s
            assert "client alice sends more requests than 200 a second" in str(refusals[0])
            for number in range(20):
                assert torch.equal(good.step(torch.ones(1, 1, 4)), torch.full((1, 1, 4), number + 1.0))
            eventually(lambda: self._try_step(wild) is None)

    def _try_step(self, session: object) -> CommError | None:
        try:
            session.start_recording()  # type: ignore[attr-defined]
        except CommError as error:
            return error
        return None

    def test_a_call_over_the_limit_says_when_to_come_back(self) -> None:
        config = GRPCServerConfig(client_limits=ClientLimits(bytes_per_s=1e4))
        with (
            GRPCComputeServer(Identity(), port=0, config=config) as server,
            GRPCComputeClient(server.address, retry=ONCE) as client,
        ):
            client.compute(torch.ones(10_000))
            with pytest.raises(ResourceExhaustedError, match="more bytes than 10000 a second") as refused:
                client.compute(torch.ones(1))
            assert refused.value.retry_after_s is not None
            assert 2.0 < refused.value.retry_after_s < 3.1

    def test_a_client_that_does_not_wait_is_made_to(self) -> None:
        config = GRPCServerConfig(client_limits=ClientLimits(requests_per_s=20))
        with (
            GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
            GRPCComputeClient(server.address, retry=ONCE) as client,
            client.session() as session,
        ):
            refusals = [error for _ in range(40) if (error := self._try_step(session)) is not None]
        assert 1 <= len(refusals) <= 12

    def test_bytes_of_a_session(self) -> None:
        config = GRPCServerConfig(client_limits=ClientLimits(bytes_per_s=1e5))
        with (
            GRPCComputeServer(Identity(), port=0, config=config) as server,
            GRPCComputeClient(server.address, retry=ONCE) as client,
            client.session() as session,
        ):
            session.step(torch.ones(1, 1, 100_000))
            with pytest.raises(ResourceExhaustedError, match="more bytes than 100000 a second"):
                session.step(torch.ones(1, 1, 1))

    def test_replies_that_are_kept(self) -> None:
        config = GRPCServerConfig(tokens=TOKENS, client_limits=ClientLimits(max_bytes_held=10_000))
        with (
            GRPCComputeServer(Identity(), port=0, config=config) as server,
            GRPCComputeClient(server.address, token=ALICE, retry=ONCE) as alice,
            GRPCComputeClient(server.address, token=BOB) as bob,
        ):
            with alice.session() as first, alice.session() as second:
                first.step(torch.ones(1, 1, 1500))
                with pytest.raises(ResourceExhaustedError, match=r"client alice has 6.* bytes held here"):
                    second.step(torch.ones(1, 1, 1500))
                with bob.session() as good:
                    good.step(torch.ones(1, 1, 1500))
            with alice.session() as third:
                third.step(torch.ones(1, 1, 1500))

    def test_chunks_of_streams_that_ended_are_held_no_more(self) -> None:
        config = GRPCServerConfig(client_limits=ClientLimits(max_bytes_held=100_000))
        piece = steps.encode_step(1, 0, Forward(torch.ones(1, 1, 20_000)), Packing("", 1 << 16))

        def comes_through(name: str) -> bool:
            outbox: SimpleQueue[bytes | None] = SimpleQueue()
            call = channel.stream_stream(SESSION)(iter(outbox.get, None))
            outbox.put(steps.encode_open(steps.Open(name)))
            next(call)
            before = server.statistics().bytes_received
            outbox.put(next(iter(piece)))
            eventually(lambda: not call.is_active() or server.statistics().bytes_received > before)
            outbox.put(None)
            return call.is_active() and call.cancel()

        with (
            GRPCComputeServer(Identity(), port=0, config=config) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            for number in range(5):
                eventually(lambda name=f"s{number}": comes_through(name))

    def test_calls_in_flight(self) -> None:
        config = GRPCServerConfig(tokens=TOKENS, client_limits=ClientLimits(max_calls=2))
        with (
            GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
            GRPCComputeClient(server.address, token=ALICE, retry=ONCE) as alice,
            GRPCComputeClient(server.address, token=BOB) as bob,
            alice.session(),
        ):
            second = alice.session()
            with pytest.raises(ResourceExhaustedError, match="client alice has 2 calls in flight"):
                alice.compute(torch.ones(1, 1, 4))
            bob.compute(torch.ones(1, 1, 4))
            second.close()
            eventually(lambda: self._computes(alice))

    def _computes(self, client: GRPCComputeClient) -> bool:
        try:
            client.compute(torch.ones(1, 1, 4))
        except ResourceExhaustedError:
            return False
        return True

    def test_sessions(self) -> None:
        config = GRPCServerConfig(tokens=TOKENS, client_limits=ClientLimits(max_sessions=1))
        with (
            GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
            GRPCComputeClient(server.address, token=ALICE, retry=ONCE) as alice,
            GRPCComputeClient(server.address, token=BOB) as bob,
            bob.session(),
        ):
            with alice.session(), pytest.raises(ResourceExhaustedError, match="client alice has 1 sessions open"):
                alice.session()
            alice.session().close()

    def test_who_tries_tokens_pays_with_his_address(self) -> None:
        config = GRPCServerConfig(tokens=TOKENS, client_limits=ClientLimits(requests_per_s=10))
        with (
            GRPCComputeServer(RunningSumHost(), port=0, config=config) as server,
            GRPCComputeClient(server.address, token=BOB) as bob,
            GRPCComputeClient(server.address, token="a-secret-of-nobody", retry=ONCE) as nobody,
        ):
            kinds = set()
            for _ in range(30):
                with pytest.raises((AuthenticationError, ResourceExhaustedError)) as refused:
                    nobody.health()
                kinds.add(type(refused.value))
            assert kinds == {AuthenticationError, ResourceExhaustedError}
            assert bob.health()


def test_a_refusal_never_overtakes_what_a_client_writes_first() -> None:
    async def ask(address: str) -> None:
        for _ in range(60):
            async with AsyncComputeClient(address, retry=ONCE) as client:
                with pytest.raises(AuthenticationError):
                    await client.session().open()

    with GRPCComputeServer(RunningSumHost(), port=0, config=GRPCServerConfig(tokens=TOKENS)) as server:
        asyncio.run(ask(server.address))


class TestRequestIds:
    def test_what_a_client_sends_makes_no_lines_in_the_log_and_no_long_errors(
        self, sum_server: GRPCComputeServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        opening = steps.Open("a\nfailed b", resume=True), steps.Open("c", expected_fingerprint="d" * 10_000)
        with grpc.insecure_channel(sum_server.address) as channel, caplog.at_level(logging.INFO, "splitlearn_comm"):
            answers = list(channel.stream_stream(SESSION)(iter([steps.encode_open(one) for one in opening])))
        assert all(len(answer) < 1500 for answer in answers)
        assert "there is no session a?failed b" in caplog.text
        assert all("\n" not in record.getMessage() for record in caplog.records)

    def test_the_clients_id_is_in_the_log_and_in_the_error(self, caplog: pytest.LogCaptureFixture) -> None:
        with (
            GRPCComputeServer(RunningSumHost(), port=0) as server,
            grpc.insecure_channel(server.address) as channel,
            caplog.at_level(logging.INFO, "splitlearn_comm"),
        ):
            metadata = ((REQUEST_ID_METADATA, "mine-1"),)
            with pytest.raises(grpc.RpcError) as failed:
                channel.unary_unary(COMPUTE)(b"\xff", metadata=metadata)
            assert dict(failed.value.trailing_metadata())[REQUEST_ID_METADATA] == "mine-1"
            answer = Inbox(1 << 20).answer(next(channel.stream_stream(SESSION)(iter([b"\xff"]), metadata=metadata)))
        assert answer is not None
        assert answer.error is not None
        assert answer.error.request_id == "mine-1"
        assert caplog.text.count("mine-1") == 2

    @pytest.mark.parametrize("sent", ["", "two words", "x" * 65, "a=b"])
    def test_an_id_that_does_not_belong_in_a_log_is_replaced(self, sent: str) -> None:
        with (
            GRPCComputeServer(RunningSumHost(), port=0) as server,
            grpc.insecure_channel(server.address) as channel,
            pytest.raises(grpc.RpcError) as failed,
        ):
            channel.unary_unary(COMPUTE)(b"\xff", metadata=((REQUEST_ID_METADATA, sent),))
        made = dict(failed.value.trailing_metadata())[REQUEST_ID_METADATA]
        assert made != sent
        assert len(made) == 16


class Telling(ComputeFunction):
    def compute(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.sum() < 0:
            raise ValueError(f"cannot do {tensor} which is {tensor.tolist()} and {tensor.max().item()}")
        return tensor


def test_the_log_of_a_run_holds_nothing_of_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    numbers = torch.tensor([[[0.7183, -3.1416, 0.5772, -1.6180]]])
    with (
        caplog.at_level(logging.DEBUG),
        GRPCComputeServer(Telling(), port=0) as server,
        GRPCComputeClient(server.address) as client,
    ):
        with client.session() as session:
            for hidden in (-numbers, numbers.repeat(1, 3, 1)):
                with contextlib.suppress(RemoteInternalError):
                    session.step(hidden)
        for tensor in (-numbers, numbers, numbers / 0):
            with contextlib.suppress(CommError):
                client.compute(tensor)
    assert "ValueError: cannot do" in caplog.text
    for number in numbers.flatten().tolist():
        assert f"{abs(number):.3f}"[:-1] not in caplog.text
