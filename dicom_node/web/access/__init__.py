"""Who calls, and what they may do: users, logins, tokens, the proxy and the OpenID provider."""

from dicom_node.web.access.principal import Denied, Principal, require, this_principal

__all__ = ["Denied", "Principal", "require", "this_principal"]
