"""Options that say who may call a server, and how a client proves who it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from splitlearn.errors import OptionError

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


def door_tree(
    *, certificate: Path | None, key: Path | None, client_ca: Path | None, token_file: Path | None, allow_insecure: bool
) -> dict[str, Any]:
    """Put these options of `splitlearn serve` together, as the table `server` of a configuration.

    Raises:
        OptionError: they do not go together.
    """
    if (certificate is None) != (key is None) or (client_ca and not certificate):
        raise OptionError("--tls-certificate and --tls-key go together, and --tls-client-ca only with them")
    files = {"certificate": certificate, "key": key, "client_ca": client_ca}
    tree: dict[str, Any] = {"tls": {name: str(path) for name, path in files.items() if path}} if certificate else {}
    tree |= {"tokens": str(token_file)} if token_file else {}
    return tree | ({"allow_insecure": True} if allow_insecure else {})


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


def connection_options(
    *, token: str | None, tls: bool, ca: Path | None, certificate: Path | None, key: Path | None
) -> dict[str, Any]:
    """Put the options of a client's connection together, as `GRPCComputeClient` takes them; empty without any.

    Raises:
        OptionError: certificate and key do not come together.
    """
    options: dict[str, Any] = {"token": token} if token else {}
    if (certificate is None) != (key is None):
        raise OptionError("--tls-certificate and --tls-key go together")
    if tls or ca or certificate:
        from splitlearn_comm.client import ClientTLS

        options["tls"] = ClientTLS(ca=ca, certificate=certificate, key=key)
    return options
