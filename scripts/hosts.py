"""Emulate hosts on one machine: `python scripts/hosts.py [--hosts 2] [--delay MS] [--loss SHARE] -- COMMAND ...`

Each host is a network namespace with its own address, 10.77.0.1 and so on; a relay between them can delay and drop
packets and disconnect a host. COMMAND runs on every host at once, with {host} replaced by 0, 1 ... and {first}
by the first host's address. Needs Linux, root and /dev/net/tun. Namespaces are removed again at the end.

The relay runs in user space instead of tc netem, because netem is a kernel module that many machines lack.

Leaves out disks: all hosts see the same files, as hosts of a cluster see a shared folder.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import heapq
import os
import random
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

INTERFACE = "dixit0"
MTU = 9000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def unavailable_reason() -> str:
    """Why hosts cannot be made here; empty if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    if not Path("/dev/net/tun").exists():
        return "this machine has no /dev/net/tun"
    name = f"dixit-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return ""


def enter(namespace: str) -> None:
    """Move the calling thread into a network namespace."""
    handle = os.open(f"/var/run/netns/{namespace}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(handle)


def _tunnel(namespace: str) -> int:
    """An interface of a namespace, as a file of packets that its host sends and takes."""
    made: list[int] = []

    def work() -> None:  # in a thread of its own, so that this one stays where it is
        enter(namespace)
        tunnel = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(tunnel, TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), IFF_TUN | IFF_NO_PI))
        made.append(tunnel)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


class Hosts:
    """Hosts and the network between them; a context manager."""

    def __init__(self, count: int = 2, delay: float = 0.0, loss: float = 0.0, seed: int = 0):
        """`delay` in seconds one way, `loss` the share of packets that do not arrive."""
        self.names = [f"dixit-{os.getpid()}-{i}" for i in range(count)]
        self.addresses = [f"10.77.0.{i + 1}" for i in range(count)]
        self.delay, self.loss, self.random = delay, loss, random.Random(seed)
        self.off: set[int] = set()  # hosts that are cut off
        self.sent = self.lost = 0
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> Hosts:
        self.tunnels: list[int] = []
        self.closing = threading.Event()
        try:
            for name, address in zip(self.names, self.addresses, strict=True):
                subprocess.run(["ip", "netns", "add", name], check=True)
                self.tunnels.append(_tunnel(name))
                for words in (["addr", "add", f"{address}/24", "dev", INTERFACE],
                              ["link", "set", INTERFACE, "mtu", str(MTU), "up"], ["link", "set", "lo", "up"]):
                    subprocess.run(["ip", "-n", name, *words], check=True)
            self.relay = threading.Thread(target=self._relay, daemon=True)
            self.relay.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.closing.set()
        if hasattr(self, "relay"):
            self.relay.join()
        for tunnel in self.tunnels:
            os.close(tunnel)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)

    def start(self, host: int, command: list[str], **keywords: Any) -> subprocess.Popen:
        """Run a command on a host; keywords go to Popen."""
        environment = (keywords.pop("env", None) or os.environ) | {"GLOO_SOCKET_IFNAME": INTERFACE,
                                                                   "NCCL_SOCKET_IFNAME": INTERFACE}
        process = subprocess.Popen(["ip", "netns", "exec", self.names[host], *command], start_new_session=True,
                                   env=environment, **keywords)
        self.processes.append(process)
        return process

    def kill(self, host: int) -> None:
        """End every process on a host at once, as a power cut does."""
        found = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=True)
        for number in found.stdout.split():
            os.kill(int(number), signal.SIGKILL)

    def _relay(self) -> None:
        places = {bytes(map(int, address.split("."))): i for i, address in enumerate(self.addresses)}
        waiting: list[tuple[float, int, int, bytes]] = []  # (time to send, sequence number, receiver, packet)
        while not self.closing.is_set():
            pause = max(0.0, min(0.1, waiting[0][0] - time.monotonic())) if waiting else 0.1
            for tunnel in select.select(self.tunnels, [], [], pause)[0]:
                packet, sender = os.read(tunnel, MTU + 100), self.tunnels.index(tunnel)
                goal = places.get(packet[16:20])
                if packet[0] >> 4 != 4 or goal is None or {sender, goal} & self.off:
                    continue
                self.sent += 1
                if self.random.random() < self.loss:
                    self.lost += 1
                    continue
                heapq.heappush(waiting, (time.monotonic() + self.delay, self.sent, goal, packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, goal, packet = heapq.heappop(waiting)
                os.write(self.tunnels[goal], packet)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds each way")
    parser.add_argument("--loss", type=float, default=0.0, help="share of packets that are lost, e.g. 0.01")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and what to run on every host")
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    reason = unavailable_reason() if command else "give a command after --"
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    with Hosts(arguments.hosts, arguments.delay / 1000, arguments.loss) as hosts:
        processes = [hosts.start(i, [word.replace("{host}", str(i)).replace("{first}", hosts.addresses[0])
                                     for word in command]) for i in range(arguments.hosts)]
        codes = [process.wait() for process in processes]
        print(f"exit codes {codes}; {hosts.sent} packets, {hosts.lost} lost", file=sys.stderr)
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main())
