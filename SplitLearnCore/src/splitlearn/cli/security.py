"""Options that say who may call a server, and how a client proves who it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitlearn.cli.options import check_readable
from splitlearn.errors import OptionError, needing
from splitlearn.model import NEEDS_COMM

if TYPE_CHECKING:
    from splitlearn_manager.config import ServerConfig

Certificate = Annotated[
    Path | None, typer.Option("--tls-certificate", help="PEM file of this side's certificate. Default: none.")
]
Key = Annotated[
    Path | None,
    typer.Option("--tls-key", help="PEM file of its private key, without a passphrase. Default: none."),
]
ClientCA = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca", help="PEM file of the authority of clients' certificates: no others get in. Default: none."
    ),
]
TokenPath = Annotated[
    Path | None,
    typer.Option(
        "--token-file", help="File of name:sha256:HEX lines: only clients with such a token may call. Default: anybody."
    ),
]
AllowInsecure = Annotated[
    bool,
    typer.Option(
        "--allow-insecure",
        help="Let other machines connect without TLS or without proving who they are. Default: refuse to start.",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="SPLITLEARN_TOKEN",
        help="Token the server knows you by; the variable keeps it out of process lists. Default: none.",
    ),
]
UseTLS = Annotated[
    bool,
    typer.Option(
        "--tls", help="Connect with TLS, trusting public authorities. Implied by --tls-ca. Default: in the clear."
    ),
]
TrustedCA = Annotated[
    Path | None,
    typer.Option("--tls-ca", help="PEM file of the authority of the server's certificate. Default: public ones."),
]


@dataclass(frozen=True, kw_only=True)
class DoorOptions:
    """A group: who may call a server."""

    tls_certificate: Certificate = None
    tls_key: Key = None
    tls_client_ca: ClientCA = None
    token_file: TokenPath = None
    allow_insecure: AllowInsecure = False

    def tree(self) -> dict[str, Any]:
        """Put them together, as the table `server` of a configuration.

        Raises:
            OptionError: they do not go together.
        """
        check_pair(self.tls_certificate, self.tls_key)
        if self.tls_client_ca and not self.tls_certificate:
            raise OptionError("--tls-client-ca goes with --tls-certificate and --tls-key")
        files = {"certificate": self.tls_certificate, "key": self.tls_key, "client_ca": self.tls_client_ca}
        tls = {name: str(path) for name, path in files.items() if path}
        tree: dict[str, Any] = {"tls": tls} if tls else {}
        tree |= {"tokens": str(self.token_file)} if self.token_file else {}
        return tree | ({"allow_insecure": True} if self.allow_insecure else {})


@dataclass(frozen=True, kw_only=True)
class CallerOptions:
    """A group: how a client reaches a server, and proves who it is."""

    token: Token = None
    tls: UseTLS = False
    tls_ca: TrustedCA = None
    tls_certificate: Certificate = None
    tls_key: Key = None

    def connection(self, address: str) -> dict[str, Any]:
        """Put them together, as `GRPCComputeClient` and `ControlClient` take them; empty without any.

        Args:
            address: of the server.

        Raises:
            OptionError: certificate and key do not come together, a file cannot be read, or the token cannot be sent
                there.
            MissingPackageError: they need SplitLearnComm, and it is not installed.
        """
        check_pair(self.tls_certificate, self.tls_key)
        if not (self.token or self.tls or self.tls_ca or self.tls_certificate):
            return {}
        with needing(NEEDS_COMM):
            from splitlearn_comm.client import ClientTLS
            from splitlearn_comm.client.credentials import Credentials
        files = {"--tls-ca": self.tls_ca, "--tls-certificate": self.tls_certificate, "--tls-key": self.tls_key}
        for option, path in files.items():
            check_readable(option, path)
        tls = ClientTLS(ca=self.tls_ca, certificate=self.tls_certificate, key=self.tls_key)
        has_tls = self.tls or any(files.values())
        try:
            Credentials(tls=tls if has_tls else False, token=self.token).check(address)
        except ValueError as error:
            raise OptionError(f"--token: {error}") from error
        return ({"token": self.token} if self.token else {}) | ({"tls": tls} if has_tls else {})


def check_pair(certificate: Path | None, key: Path | None) -> None:
    """Raise `OptionError` where one of certificate and key comes without the other."""
    if (certificate is None) != (key is None):
        raise OptionError("--tls-certificate and --tls-key go together")


def check_door(host: str, config: "ServerConfig") -> None:
    """Find out before a model is loaded whether certificates and tokens are of use and the server may listen there.

    Raises:
        OptionError: no.
    """
    from splitlearn_comm.server import check_binding
    from splitlearn_manager.listening import comm_config

    wire = comm_config(config)
    try:
        wire.check_files()
    except (OSError, ValueError) as error:
        raise OptionError(
            f"a file of --tls-certificate, --tls-key, --tls-client-ca or --token-file: {error}"
        ) from error
    try:
        check_binding(host, wire)
    except ValueError as error:
        raise OptionError(
            f"--host {host} can be reached from other machines: give --tls-certificate and --tls-key, and --token-file "
            f"or --tls-client-ca; or say --allow-insecure if everybody who can connect may use the model"
        ) from error
