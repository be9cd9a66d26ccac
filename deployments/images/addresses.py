"""Which addresses images may be downloaded from: the guard against server-side request forgery.

Every connection passes three checks: `AddressRules.check` on the URL as it will be used (scheme,
user, port, host lists, literal addresses), `GuardedResolver` on all addresses of a name, from the
one look-up that the connection then uses, and `AddressRules.open_socket` on the very address that
a socket is opened for. Reasons name no address, so that an answer tells nothing about the inside.
"""

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.connector import AddrInfoType
from yarl import URL

from deployments.image_config import ImageConfig

Address = IPv4Address | IPv6Address

MAX_URL_CHARS = 8192
SCHEMES = ("http", "https")
NOT_PUBLIC = "its host has no address that may be fetched from (only public ones may)"

# What `is_global` of the supported Python versions lets pass although it is not plain public
# unicast: IANA's special-purpose registries, and Azure's host agent, which only a virtual machine
# reaches. 6to4 and Teredo, which carry an IPv4 address to a relay, are refused whole.
NON_PUBLIC_NETWORKS = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "168.63.129.16/32",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    )
)
UNICAST_IPV6 = ip_network("2000::/3")
NAT64 = ip_network("64:ff9b::/96")

# Letters, digits, hyphens and, as many real names have them, underscores (RFC 1123, RFC 2181).
HOST_NAME = re.compile(r"(?=.{1,254}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
# A last label such as these makes the C library read the name as an IPv4 address.
NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
FORBIDDEN_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\\]")


class RefusedError(Exception):
    """Why a URL is not fetched, in words for the caller."""


def parse_url(text: str, base: URL | None = None) -> URL:
    """Parse a URL, or one relative to a base, with the parser that the HTTP client uses.

    Raises:
        RefusedError: not a URL with a host.
    """
    if len(text) > MAX_URL_CHARS:
        raise RefusedError(f"it has more than {MAX_URL_CHARS:,} characters")
    if FORBIDDEN_CHARACTERS.search(text):
        raise RefusedError("it contains a backslash or a control character")
    try:
        # Joining may write a host differently than it was read, so that the result is read again.
        url = URL(text) if base is None else URL(str(base.join(URL(text))))
        host = url.raw_host
    except (ValueError, IndexError):  # IndexError for some brackets, as in http://[::1]@
        raise RefusedError("it is not a valid URL") from None
    if not host:
        raise RefusedError("it names no host")
    return url


def embedded_ipv4(address: Address) -> Address:
    """Return the IPv4 address that a mapped or NAT64 address stands for, or the address itself."""
    if not isinstance(address, IPv6Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address


def is_public(address: Address) -> bool:
    """Whether the address is globally routable unicast, by its own meaning and not its spelling."""
    if isinstance(address, IPv6Address) and address not in UNICAST_IPV6:
        return False
    if any(address in network for network in NON_PUBLIC_NETWORKS):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


class AddressRules:
    """The rules of an `ImageConfig` about hosts, ports and addresses.

    Raises:
        ValueError: the configuration has a network or host that is none.
    """

    def __init__(self, config: ImageConfig) -> None:
        self._ports = config.ports
        self._networks = tuple(ip_network(network) for network in config.allow_networks)
        self._allow_hosts = tuple(map(normal_host, config.allow_hosts))
        self._deny_hosts = tuple(map(normal_host, config.deny_hosts))

    def check(self, url: URL) -> URL:
        """Return the URL if it may be fetched as far as can be told without a look-up.

        Raises:
            RefusedError: it may not.
        """
        if url.scheme not in SCHEMES:
            raise RefusedError("its scheme is not http or https")
        if url.raw_user is not None or url.raw_password is not None:
            raise RefusedError("it holds a user name or password; use a signed URL instead")
        if url.port not in self._ports:
            raise RefusedError(
                f"its port is {url.port}; allowed are {', '.join(map(str, self._ports))}"
            )
        self._check_host(url.raw_host or "")
        return url

    def _check_host(self, host: str) -> None:
        name = host.removesuffix(".")
        if belongs(name, self._deny_hosts):
            raise RefusedError("its host is on the deny list of this server")
        if self._allow_hosts and not belongs(name, self._allow_hosts):
            raise RefusedError("its host is not on the allow list of this server")
        if ":" in host or NUMERIC_LABEL.fullmatch(name.rsplit(".", 1)[-1]):
            if not self.allows_text(host):
                raise RefusedError(NOT_PUBLIC)
        elif not HOST_NAME.fullmatch(host):
            raise RefusedError("its host is not a valid name")

    def allows(self, address: Address) -> bool:
        """Whether a connection to the address may be opened."""
        address = embedded_ipv4(address)
        return is_public(address) or any(address in network for network in self._networks)

    def allows_text(self, text: str) -> bool:
        """Like `allows`; only the standard spelling passes, and no zone."""
        try:
            return "%" not in text and self.allows(ip_address(text))
        except ValueError:
            return False

    def open_socket(self, address: AddrInfoType) -> socket.socket:
        """Open a socket for the connector, unless its address is refused.

        Raises:
            PermissionError: the address is refused.
        """
        family, kind, protocol, _, target = address
        if not self.allows_text(str(target[0])):
            raise PermissionError(NOT_PUBLIC)
        return socket.socket(family, kind, protocol)


def normal_host(name: str) -> str:
    """Return a configured host in the form that `URL.raw_host` has, without outer dots."""
    host = URL.build(scheme="http", host=name.strip(".")).raw_host
    if not host:
        raise ValueError(f"{name!r} is not a host; write it as in example.com")
    return host


def belongs(host: str, parents: tuple[str, ...]) -> bool:
    """Whether the host is one of the parents or a subdomain of one."""
    return any(host == parent or host.endswith(f".{parent}") for parent in parents)


class GuardedResolver(AbstractResolver):
    """Looks a name up once, and returns its addresses only if every one of them is allowed."""

    def __init__(self, rules: AddressRules, resolver: AbstractResolver) -> None:
        self._rules = rules
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name, all allowed.

        Raises:
            RefusedError: the name has no address, or one that is refused; which of the two is not
                said, as it would tell which internal names exist.
        """
        try:
            found = await self._resolver.resolve(host, port, family)
        except (OSError, UnicodeError):
            raise RefusedError(NOT_PUBLIC) from None
        if not found or not all(self._rules.allows_text(result["host"]) for result in found):
            raise RefusedError(NOT_PUBLIC)
        return [{**result, "port": port} for result in found]

    async def close(self) -> None:
        """Close the resolver underneath."""
        await self._resolver.close()


class SystemResolver(AbstractResolver):
    """The system's look-up on its own threads, so that slow name servers hold up nothing else."""

    def __init__(self, num_threads: int) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="image-host-lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name; OSError if there are none."""
        lookup = partial(
            socket.getaddrinfo,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
        found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for found_family, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Let the threads end; look-ups under way are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
