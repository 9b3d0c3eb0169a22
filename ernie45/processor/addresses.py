"""Which network addresses may be reached for a user, and what a host name resolves to, off the event loop.

Knows nothing about HTTP or what is fetched.
"""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ernie45.config.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_LOOK_UPS = 32  # threads in getaddrinfo at once, those included that were given up waiting for
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that is handed out of IPv6
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # NAT64: the IPv4 address is in the last 32 bits
_COMPATIBLE = ipaddress.ip_network("::/96")  # the same, long out of use, but still understood
# Public by number, or for some versions of Python: the metadata host of Azure, protocol assignments (with the one of Oracle's
# cloud in them), relays to IPv6.
_NOT_PUBLIC = [ipaddress.ip_network(text) for text in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "2001::/23")]


class ForbiddenAddressError(Exception):
    """A host resolves to an address that users may not make this machine connect to."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(f"{host} ({address})")
        self.host = host
        self.address = address


@dataclass(frozen=True)
class AddressRules:
    """The public internet, and what was opened beside it.

    allow_private: everything. allowed: names of hosts, addresses, and networks such as 10.1.0.0/16 that may be reached as well.
    """

    allow_private: bool = False
    allowed: tuple[str, ...] = ()
    _networks: tuple[Network, ...] = field(init=False, repr=False, compare=False)
    _hosts: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        networks, hosts = [], []
        for entry in self.allowed:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError as error:
                if not entry or any(character in entry for character in "/:* \t"):
                    raise ConfigError(
                        f"allowed media host ({entry!r}) must be a host name, an address or a network such as 10.1.0.0/16 "
                        f"({error}); correct it"
                    ) from error
                hosts.append(entry.lower().rstrip("."))
        object.__setattr__(self, "_networks", tuple(networks))
        object.__setattr__(self, "_hosts", frozenset(hosts))

    def check(self, host: str, addresses: Iterable[str]) -> None:
        """ForbiddenAddressError if one of the addresses of a host may not be reached; one is enough to refuse the host."""
        if self.allow_private or host.lower().rstrip(".") in self._hosts:
            return
        for address in addresses:
            ip = ipaddress.ip_address(address.partition("%")[0])
            opened = any(candidate in network for candidate in (ip, _unwrap(ip)) for network in self._networks)
            if not opened and not is_public(address):
                raise ForbiddenAddressError(host, address)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, looking into IPv4 addresses wrapped in IPv6."""
    ip = _unwrap(ipaddress.ip_address(address.partition("%")[0]))
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL_UNICAST:
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not any(ip in network for network in _NOT_PUBLIC)


def _unwrap(ip: Address) -> Address:
    """The IPv4 address that a packet to an IPv6 address ends at, where there is one: mapped, 6to4, Teredo, NAT64."""
    if not isinstance(ip, ipaddress.IPv6Address):
        return ip
    if ip in _TRANSLATED or ip in _COMPATIBLE:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    teredo = ip.teredo
    return ip.ipv4_mapped or ip.sixtofour or (teredo[1] if teredo else ip)


class Resolver:
    """Host names to addresses, for one event loop.

    The system's look-up cannot be told to hurry or to stop: each gets a thread that is left behind if it is late. How many
    there are is bounded, so a name server that hangs costs those who ask it.
    """

    def __init__(self, max_look_ups: int = _MAX_LOOK_UPS) -> None:
        self._free = asyncio.Semaphore(max_look_ups)

    async def look_up(self, host: str, port: int) -> list[str]:
        """All addresses of a name, in the system's order. OSError if it has none; no time limit of its own."""
        try:
            return [str(ipaddress.ip_address(host.strip("[]")))]
        except ValueError:
            pass  # a name; also 127.1 and 0x7f000001, which the system takes for addresses
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[list[str]] = loop.create_future()

        def settle(addresses: list[str], error: Exception | None) -> None:
            self._free.release()
            if outcome.cancelled():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(addresses)

        threading.Thread(target=_look_up, args=(host, port, loop, settle), daemon=True, name="ernie45-look-up").start()
        return await outcome


def _look_up(host: str, port: int, loop: asyncio.AbstractEventLoop, settle: Any) -> None:
    addresses, failure = [], None
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    except (OSError, UnicodeError) as error:
        failure = OSError(f"{host} cannot be resolved ({error})")
    with suppress(RuntimeError):  # the loop may have ended meanwhile: nobody waits any more
        loop.call_soon_threadsafe(settle, addresses, failure)
