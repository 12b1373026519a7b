"""What an IP address says about who is there. Pure."""

from __future__ import annotations

import ipaddress

# A proxy on this machine makes the whole world a loopback peer; it says so in one of these.
FORWARDING = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")


def is_loopback(address: str | None) -> bool:
    """True for 127/8, ::1 and ::ffff:127/104 (a dual-stack socket's spelling of the former)."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def neighbourhood(address: str) -> str:
    """Whom failures are held against: an IPv4 address, or an IPv6 /64, which one host has whole."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))
    return str(ip)
