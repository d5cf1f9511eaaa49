"""How a client proves who it is and asks a server to do so: certificates, a token, the channel made with them."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from splitlearn_comm.addresses import stays_here
from splitlearn_comm.certificates import check_pem
from splitlearn_comm.protocol import AUTHORIZATION_METADATA, BEARER, REQUEST_ID_METADATA

Options = Sequence[tuple[str, int | str]]


@dataclass(frozen=True, kw_only=True)
class ClientTLS:
    """Files in PEM format, read when the client is made; a client whose certificate is renewed is made again."""

    ca: str | PathLike[str] | None = None
    """The authorities a server's certificate may come from; None for those gRPC comes with."""
    certificate: str | PathLike[str] | None = None
    """The client's own certificate, for servers that ask for one (mTLS)."""
    key: str | PathLike[str] | None = None
    """Its private key, without a passphrase."""
    server_name: str | None = None
    """The name the server's certificate must have; None for the one in the address."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client's certificate and its key go together; give both or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC takes; the files are read.

        Raises:
            OSError: A file cannot be read.
            ValueError: There is no certificate in a file, or the key is another's.
        """
        check_pem(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.certificate, self.key, self.ca)
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))

    def channel_options(self) -> list[tuple[str, str]]:
        """The options of the channel that belong to it."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What a client proves itself with, and what it wants of servers."""

    tls: ClientTLS | bool = False
    """`ClientTLS`, or True for it with nothing set; False for connections in the clear."""
    token: str | None = field(default=None, repr=False)
    """Sent with each call; None to send none."""
    insecure: bool = False
    """Send the token in the clear to other machines."""

    def check(self, address: str) -> None:
        """Raise `ValueError` if the token would travel in the clear to another machine, or cannot be sent at all."""
        if self.token is None:
            return
        # The error must not hold the token.
        if not self.token:
            raise ValueError("the token is empty: give one of printable ASCII characters, or None to send none")
        if self.token != self.token.strip():
            raise ValueError(
                "the token begins or ends with a blank or a line break, as one read from a file does: token.strip() "
                "leaves the printable ASCII characters that it consists of"
            )
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise ValueError("a token consists of printable ASCII characters without spaces; this one does not")
        if not self.tls and not self.insecure and not stays_here(address):
            raise ValueError(
                f"the token would go to {address} in the clear, and whoever sees it could use it: give tls=True, or "
                f"tls=ClientTLS(ca=...) for a certificate of your own, or insecure=True to send it all the same"
            )

    def channel(self, address: str, options: Options, interceptors: Sequence[Any] = ()) -> grpc.Channel:
        """A synchronous channel to an address."""
        return grpc.intercept_channel(self._channel(address, options), *interceptors)

    def _channel(self, address: str, options: Options) -> grpc.Channel:
        if not self.tls:
            return grpc.insecure_channel(address, options)
        tls = self._tls()
        return grpc.secure_channel(address, tls.credentials(), [*options, *tls.channel_options()])

    def aio_channel(self, address: str, options: Options, interceptors: Sequence[Any] = ()) -> grpc.aio.Channel:
        """An asyncio channel to an address."""
        if not self.tls:
            return grpc.aio.insecure_channel(address, options, interceptors=interceptors)
        tls = self._tls()
        return grpc.aio.secure_channel(
            address, tls.credentials(), [*options, *tls.channel_options()], interceptors=interceptors
        )

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with one call: a name for it in the server's log, and the token."""
        named = (REQUEST_ID_METADATA, uuid.uuid4().hex[:16])
        return (named,) if self.token is None else (named, (AUTHORIZATION_METADATA, f"{BEARER} {self.token}"))

    def _tls(self) -> ClientTLS:
        return self.tls if isinstance(self.tls, ClientTLS) else ClientTLS()


def explained(details: str) -> str | None:
    """What to do about a connection that was not made, by what gRPC says of it; None if it says nothing of TLS."""
    if "WRONG_VERSION_NUMBER" in details:
        return "it speaks no TLS: leave tls out, or start it with tls=ServerTLS(...)"
    if "certificate has expired" in details:
        return "its certificate has expired: whoever runs it has to renew it"
    if "Hostname Verification" in details:
        return "its certificate is for another name: use that in the address, or say it with ClientTLS(server_name=...)"
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return "its certificate comes from an authority not trusted here: give that with tls=ClientTLS(ca=...)"
    if "failed to connect" in details and ("Socket closed" in details or "handshake" in details.lower()):
        return (
            "it hung up before the first call: it may want TLS (tls=True or tls=ClientTLS(ca=...)), or a client's "
            "certificate that it trusts and that has not expired (ClientTLS(certificate=..., key=...))"
        )
    return None


def _read(path: str | PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
