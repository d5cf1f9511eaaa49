"""Certificates and keys, looked at before gRPC has them: it takes whatever it is given, and fails at the handshakes."""

from __future__ import annotations

import ssl
from os import PathLike

PemFile = str | PathLike[str]


def check_pem(context: ssl.SSLContext, certificate: PemFile | None, key: PemFile | None, ca: PemFile | None) -> None:
    """Have OpenSSL say now what is wrong with files in PEM format; what is None is left out.

    Args:
        context: Of the side that they are for.
        certificate: Of this side.
        key: The certificate's.
        ca: Authorities of the other side.

    Raises:
        OSError: A file cannot be read.
        ValueError: There is no certificate in a file, the key is another's, or has a passphrase.
    """
    given = {"certificate": certificate, "key": key, "ca": ca}
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key, password=_no_passphrase)
        if ca is not None:
            context.load_verify_locations(ca)
    except ssl.SSLError as error:
        shown = ", ".join(f"{name} {path}" for name, path in given.items() if path is not None)
        raise ValueError(
            f"{shown}: not what TLS needs ({error}); expected PEM files"
            + (", the key being the certificate's, without a passphrase" if certificate is not None else "")
        ) from error


def _no_passphrase() -> str:
    # Without this OpenSSL would ask for one on the terminal.
    raise ValueError("the private key is protected by a passphrase, which a program cannot type: save the key without")
