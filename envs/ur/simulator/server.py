"""The simulated robot on its ports, in one loop: control cycles by the clock, clients in between."""

import errno
import heapq
import math
import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable

from hesscale_rl.envs.ur.clock import RobotClock
from hesscale_rl.envs.ur.simulator.client import Client, ProtocolError
from hesscale_rl.envs.ur.simulator.dashboard import Dashboard
from hesscale_rl.envs.ur.simulator.faults import Desk, Fault
from hesscale_rl.envs.ur.simulator.realtime import Realtime, packet_size
from hesscale_rl.envs.ur.simulator.robot import SimulatedRobot
from hesscale_rl.envs.ur.simulator.rtde import Rtde
from hesscale_rl.errors import InputError

DASHBOARD, REALTIME, RTDE = 29999, 30003, 30004  # ports, which clients take for granted
CATCH_UP = 0.04  # s: well below the 0.1 s after which a client's watchdog bites
CLIENTS = 100  # of all ports together
CHUNK = 1 << 16
LOOK = 0.2  # s after which a robot that waits for a client looks whether it shall end


class Wire:
    """A connection: the client behind it, and what is on its way in either direction."""

    def __init__(self, sock: socket.socket, client: Client):
        self.sock, self.client = sock, client
        self._out: deque[tuple[float, bytes]] = deque()
        self._in: deque[tuple[float, bytes]] = deque()
        self._unsent = bytearray()
        self.closed = False

    @property
    def waiting(self) -> int:
        """Bytes that the client is slow to take; those that are delayed on purpose do not count."""
        return len(self._unsent)

    @property
    def idle(self) -> bool:
        """Whether the client has got all that it will get."""
        return not (self._out or self._unsent)

    def send(self, data: bytes, due: float) -> None:
        """Give data to the network, which delivers it at a time, after all that was sent before."""
        if data:
            self._out.append((max(due, self._out[-1][0]) if self._out else due, data))

    def receive(self, data: bytes, due: float) -> None:
        """Take data from the client, which reaches the robot at a time."""
        self._in.append((max(due, self._in[-1][0]) if self._in else due, data))

    def arrived(self, now: float) -> bytes:
        """Return what has reached the robot."""
        return b"".join(_due(self._in, now))

    def collect(self, now: float) -> None:
        """Put what is due before the client's door."""
        self._unsent += b"".join(_due(self._out, now))

    def flush(self) -> None:
        """Deliver what is there, as far as the client takes it; OSError if it is gone."""
        try:
            while self._unsent:
                del self._unsent[: self.sock.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            pass

    def next(self) -> float:
        """Return when something is due."""
        return min([queue[0][0] for queue in (self._in, self._out) if queue], default=float("inf"))


def _due(queue: deque[tuple[float, bytes]], now: float) -> list[bytes]:
    data = []
    while queue and queue[0][0] <= now:
        data.append(queue.popleft()[1])
    return data


class Server:
    """A robot and its ports on one address: `run` serves until `end` is called, from any thread or a signal.

    A cycle begins when it is due by the monotonic clock. If the host was late, up to CATCH_UP seconds are made up for
    by cycles in quick succession, with the clients heard in between; what is more is lost, so that robot time lags
    and no watchdog bites because the host stood still. Stamps go up by one period per cycle in any case.

    In lock step, a client that has set a watchdog is waited for: the next cycle begins when it has spoken, however
    long that takes or however soon it is. Nobody else is, nor is anybody while packages are delayed.

    faults: (robot time in s, Fault), as `faults.scheduled` gives them. control: (address, port) of the control port.
    clock: where lock step is wanted, told of the robot's time.
    """

    def __init__(
        self,
        robot: SimulatedRobot,
        host: str = "127.0.0.1",
        control: tuple[str, int] | None = None,
        faults: list[tuple[float, Fault]] | None = None,
        packet: int = 0,
        clock: RobotClock | None = None,
    ):
        self.robot, self._clock = robot, clock
        self._released: tuple[str, float, float] | None = None
        self._hurry_until = 0.0
        self._packet = packet or packet_size(robot.version)
        self._faults = [(at, n, fault) for n, (at, fault) in enumerate(faults or [])]
        heapq.heapify(self._faults)
        self._holders: dict[str, Rtde] = {}
        self._wires: list[Wire] = []
        self._frozen_until = 0.0
        self._mean = self._jitter = 0.0
        self._random = random.Random(0)
        self._over = False
        # Of all selectors, only this one waits for less than whole milliseconds.
        self._all, self._desk = selectors.SelectSelector(), selectors.SelectSelector()
        self._listeners: list[socket.socket] = []
        try:
            self._listen(host, RTDE, lambda: Rtde(robot, self._holders))
            self._listen(host, DASHBOARD, lambda: Dashboard(robot))
            self._listen(host, REALTIME, lambda: Realtime(robot, self._packet))
            if control is not None:
                self._listen(*control, lambda: Desk(self), desk=True)
        except BaseException:
            self.close()
            raise

    # -- what faults do

    @property
    def clients(self) -> int:
        """How many are connected to the robot's own ports."""
        return sum(not isinstance(wire.client, Desk) for wire in self._wires)

    def clear(self) -> None:
        """End every stop, as somebody at the robot would, and a freeze."""
        self._frozen_until = 0.0
        self.robot.clear()

    def freeze(self, seconds: float) -> None:
        """Neither send nor read for so long in robot time."""
        self._frozen_until = self.robot.stamp + seconds

    def drop(self) -> None:
        """Close all connections of the robot's own ports."""
        for wire in list(self._wires):
            if not isinstance(wire.client, Desk):
                self._close(wire)

    def delay(self, mean: float, jitter: float) -> None:
        """Deliver later, in both directions."""
        self._mean, self._jitter = mean, jitter

    def release(self) -> None:
        """Wait no more for the client that has set a watchdog, until one is set anew."""
        self._released = self.robot.watched

    def hurry(self, seconds: float) -> None:
        """Let so much robot time pass as fast as it can, but for clients that are waited for."""
        self._hurry_until = self.robot.stamp + seconds

    def size_packets(self, size: float) -> None:
        """Send real-time packets of another size to clients that come from now on."""
        self._packet = int(size)

    # -- the loop

    def run(self) -> None:
        """Serve until `end`."""
        period = self.robot.joints.period
        due = time.monotonic() + period
        while not self._over:
            self._serve(due)
            now = time.monotonic()
            due = min(max(due + period, now - CATCH_UP), now + period)
            self.robot.step()
            while self._faults and self._faults[0][0] <= self.robot.stamp:
                heapq.heappop(self._faults)[2].apply(self)
            self._report()
            if self._clock is not None:
                self._clock.set(self.robot.stamp)

    def end(self) -> None:
        """Let `run` return after its cycle."""
        self._over = True

    def close(self) -> None:
        """Close all connections and ports."""
        for wire in list(self._wires):
            self._close(wire)
        for listener in self._listeners:
            listener.close()
        self._all.close()
        self._desk.close()

    @property
    def _frozen(self) -> bool:
        return self.robot.stamp < self._frozen_until

    def _begins(self, due: float) -> float:
        """When the next cycle begins, by the host's clock: `due`, at once (0), or not before a client speaks."""
        watched = self.robot.watched
        late = self._frozen or self._mean or self._jitter
        if self._clock is not None and watched not in (None, self._released) and not late:
            return math.inf if self.robot.unheard in self._holders else 0.0
        return 0.0 if self.robot.stamp < self._hurry_until else due

    def _serve(self, due: float) -> None:
        """Hear the clients until the next cycle begins, and once at least."""
        now = time.monotonic()
        again = now + LOOK
        while not self._over:
            frozen = self._frozen
            until = min(self._begins(due), now + LOOK)
            if not frozen:
                until = min([until, *(wire.next() for wire in self._wires)])
            for key, _ in (self._desk if frozen else self._all).select(max(until - now, 0.0)):
                key.data()
            now = time.monotonic()
            for wire in list(self._wires):
                self._exchange(wire, now)
            if now >= self._begins(due):
                return
            if now > again:
                self._report()  # the same once more: ur_rtde takes a second of silence for a broken link
                again = now + LOOK

    def _report(self) -> None:
        """Send every client what this cycle has for it."""
        now = time.monotonic()
        for wire in list(self._wires):
            if wire.waiting <= wire.client.backlog:
                wire.send(self._guarded(wire, wire.client.cycle), now + self._lag(wire))
            self._exchange(wire, now)

    def _exchange(self, wire: Wire, now: float) -> None:
        """Hand over what is due between robot and client."""
        wire.collect(now)
        if wire.closed or (self._frozen and not isinstance(wire.client, Desk)):
            return
        data = wire.arrived(now)
        if data:
            wire.send(self._guarded(wire, lambda: wire.client.feed(data)), now + self._lag(wire))
            wire.collect(now)
        try:
            wire.flush()
        except OSError:
            self._close(wire)
        if wire.client.over and wire.idle:
            self._close(wire)

    def _guarded(self, wire: Wire, call: Callable[[], bytes]) -> bytes:
        """A client that breaks the protocol loses its connection, and that is all."""
        try:
            return call()
        except ProtocolError:
            self._close(wire)
            return b""

    def _lag(self, wire: Wire) -> float:
        if isinstance(wire.client, Desk) or not (self._mean or self._jitter):
            return 0.0
        return self._mean + (self._random.expovariate(1 / self._jitter) if self._jitter else 0.0)

    # -- sockets

    def _listen(self, host: str, port: int, client: Callable[[], Client], desk: bool = False) -> None:
        listener = socket.socket()
        self._listeners.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(CLIENTS)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"port {port} at {host} is taken, perhaps by another simulated robot: end that one, "
                    "or give this one an address of its own, such as --host 127.0.0.2"
                ) from None
            raise InputError(f"cannot listen at {host}, port {port}: {error.strerror}") from None
        listener.setblocking(False)
        self._register(listener, lambda: self._accept(listener, client), desk)

    def _register(self, sock: socket.socket, ready: Callable[[], None], desk: bool) -> None:
        self._all.register(sock, selectors.EVENT_READ, ready)
        if desk:
            self._desk.register(sock, selectors.EVENT_READ, ready)

    def _accept(self, listener: socket.socket, client: Callable[[], Client]) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # gone again
            return
        if len(self._wires) >= CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(sock, client())
        self._wires.append(wire)
        self._register(sock, lambda: self._read(wire), isinstance(wire.client, Desk))
        wire.send(wire.client.greeting(), time.monotonic() + self._lag(wire))

    def _read(self, wire: Wire) -> None:
        if wire.closed:
            return
        try:
            data = wire.sock.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            wire.receive(data, time.monotonic() + self._lag(wire))
        else:
            self._close(wire)

    def _close(self, wire: Wire) -> None:
        if not wire.closed:
            wire.closed = True
            self._wires.remove(wire)
            for selector in (self._all, self._desk):
                if wire.sock in selector.get_map():
                    selector.unregister(wire.sock)
            wire.client.close()
            wire.sock.close()
