"""Certificates for tests, made on the spot."""

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority of its own.

    Args:
        directory: Where its files are put.
        name: Its name.
    """

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._key = generate_private_key(SECP256R1())
        self._name = named(name)
        self._now = datetime.datetime.now(datetime.UTC)
        certificate = self._begun(self._name, self._key, 30 * DAY).add_extension(
            x509.BasicConstraints(True, None), True
        )
        self.certificate = directory / f"{name}.pem"
        self.certificate.write_bytes(certificate.sign(self._key, SHA256()).public_bytes(Encoding.PEM))

    def issue(self, name: str, *, ends_in: datetime.timedelta = DAY, host: str = "localhost") -> tuple[Path, Path]:
        """Make a certificate for a name; returns the files of it and of its key, written again if they were there.

        Args:
            name: The common name, and the files' name.
            ends_in: When it expires; negative for one that has.
            host: A name it is good for, beside 127.0.0.1.
        """
        key = generate_private_key(SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = self._begun(named(name), key, ends_in).add_extension(names, False).sign(self._key, SHA256())
        paths = self._directory / f"{name}.crt", self._directory / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return paths

    def _begun(
        self, name: x509.Name, key: EllipticCurvePrivateKey, ends_in: datetime.timedelta
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - 30 * DAY)
            .not_valid_after(self._now + ends_in)
        )


def named(name: str) -> x509.Name:
    """A name with nothing but a common name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
