"""The server's certificate, and the certificates it asks of its clients; read again when the files change."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import grpc

from splitlearn_comm.certificates import check_pem
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
        check_pem(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.certificate, self.key, self.client_ca)
        pair = (Path(self.key).read_bytes(), Path(self.certificate).read_bytes())
        roots = Path(self.client_ca).read_bytes() if self.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)
