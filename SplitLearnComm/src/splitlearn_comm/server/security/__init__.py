"""Who may call a server, and how much of it: certificates, tokens, limits of each client."""

from splitlearn_comm.server.security.limits import ClientLimits
from splitlearn_comm.server.security.tls import ServerTLS
from splitlearn_comm.server.security.tokens import TokenFile, Tokens

__all__ = ["ClientLimits", "ServerTLS", "TokenFile", "Tokens"]
