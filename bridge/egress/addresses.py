"""Which addresses a callback may go to, when only a name was configured. Pure.

A name is somebody else's to answer: whoever runs its DNS could have us POST to this machine, to the
cloud's metadata service, or to a router's page (Standard Webhooks names it: SSRF). So a name may
only lead to addresses of the public Internet, unless the settings say that more is meant.
"""

from __future__ import annotations

import ipaddress

# IPv6 that means an IPv4 address: NAT64 (RFC 6052, the last four bytes), and 6to4 (after 2002).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_KINDS = ("loopback", "link_local", "multicast", "unspecified", "private", "reserved")


def not_public(text: str) -> str:
    """What kind of address it is, such as ``private``; empty for a public one.

    What is no address at all is ``no`` address either.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return "no"
    if isinstance(address, ipaddress.IPv6Address):
        inner = _inner(address)
        if inner is not None:
            return not_public(str(inner))
    if address.is_global and not address.is_multicast:
        return ""
    kind = next((kind for kind in _KINDS if getattr(address, f"is_{kind}")), "special")
    return kind.replace("_", "-")


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
