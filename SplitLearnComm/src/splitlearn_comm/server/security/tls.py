"""The server's certificate, and the certificates it asks of its clients; read again when the files change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import grpc

from splitlearn_comm.server.security.watched import WatchedFiles


@dataclass(frozen=True, kw_only=True)
class ServerTLS:
    """Files in PEM format. They may be replaced while the server runs: new connections get the new certificate, and
    streams that are open go on. What cannot be used is logged, and the old one stays.
    """

    certificate: str | PathLike[str]
    """The server's certificate, and behind it those between it and its authority's."""
    key: str | PathLike[str]
    """Its private key, without a passphrase."""
    client_ca: str | PathLike[str] | None = None
    """The authorities of clients' certificates. With it a client without such a certificate is not let in (mTLS); None
    to ask for none."""

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC takes; the files are read.

        Raises:
            OSError: A file cannot be read.
            ValueError: The key is not the certificate's, or there is no certificate in a file.
        """
        paths = [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]
        files = WatchedFiles(paths, self._read)
        # gRPC asks, on a thread of its own, at each handshake.
        made: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            files.current(), files.current, require_client_authentication=self.client_ca is not None
        )
        return made

    def _read(self) -> grpc.ServerCertificateConfiguration:
        # gRPC takes whatever it is given, and fails at the handshakes; OpenSSL says now what is wrong.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_passphrase)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
        except ssl.SSLError as error:
            raise ValueError(
                f"certificate {self.certificate}, key {self.key} and client_ca {self.client_ca} are not what TLS needs "
                f"({error}); expected PEM files, the key being the certificate's, without a passphrase"
            ) from error
        pair = (Path(self.key).read_bytes(), Path(self.certificate).read_bytes())
        roots = Path(self.client_ca).read_bytes() if self.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)


def _no_passphrase() -> str:
    # Without this OpenSSL would ask for one on the terminal.
    raise ValueError("the private key is protected by a passphrase: a server cannot type it; save the key without")
