"""The dashboard server: what a person does at the pendant, as lines of text. Clients match its very words."""

from hesscale_rl.envs.ur.simulator.client import LineClient
from hesscale_rl.envs.ur.simulator.robot import (
    IDLE,
    PLAYING,
    POWER_OFF,
    RUNNING,
    SimulatedRobot,
    robot_name,
    safety_name,
)

LOCKED = (
    "Cannot unlock protective stop until 5s after occurrence. "
    "Always inspect cause of protective stop before unlocking"
)
DATES = {3: "Jun 01 2022", 5: "Jul 06 2022"}


class Dashboard(LineClient):
    """One dashboard client."""

    def __init__(self, robot: SimulatedRobot):
        super().__init__()
        self._robot = robot

    def greeting(self) -> bytes:
        """Return the line that clients wait for."""
        return b"Connected: Universal Robots Dashboard Server\n"

    def answer(self, line: str) -> bytes:
        """Carry out one command; case does not matter."""
        words = line.strip()
        return (self._answer(words, words.lower()) + "\n").encode("latin-1")

    def _answer(self, words: str, command: str) -> str:
        robot = self._robot
        playing = robot.program is not None
        told = {
            "polyscopeversion": "URSoftware {}.{}.{}.{} ({})".format(*robot.version, DATES[robot.version[0]]),
            "running": f"Program running: {str(playing).lower()}",
            "programstate": f"{'PLAYING' if robot.runtime_state == PLAYING else 'STOPPED'} uploaded",
            "robotmode": f"Robotmode: {robot_name(robot.robot_mode)}",
            "safetymode": f"Safetymode: {safety_name(robot.safety_mode)}",
            "safetystatus": f"Safetystatus: {safety_name(robot.safety_mode)}",
            "get robot model": robot.model,
            "get serial number": robot.serial,
            "get loaded program": "No program loaded",
            "isprogramsaved": "false",
            "is in remote control": str(robot.remote).lower(),
            "is simulated": "true",  # a real robot could not understand this
            # There are no programs of the pendant's own, so nothing to play or to pause.
            "play": "Failed to execute: play",
            "pause": "Failed to execute: pause",
            "close popup": "closing popup",
            "close safety popup": "closing safety popup",
        }
        if command in told:
            return told[command]
        if command == "stop":
            robot.stop("dashboard")
            return "Stopped"
        if command == "unlock protective stop":
            return "Protective stop releasing" if robot.unlock() else LOCKED
        for order, mode, reply in (
            ("power on", IDLE, "Powering on"),
            ("brake release", RUNNING, "Brake releasing"),
            ("power off", POWER_OFF, "Powering off"),
        ):
            if command == order:
                robot.power(mode)
                return reply
        if command == "quit":
            self.over = True
            return "Disconnected"
        for beginning, reply in (("popup ", "showing popup"), ("addtolog ", "Added log message")):
            if command.startswith(beginning):
                return reply
        if command.startswith("load "):
            return f"File not found: {words[5:]}"
        return f"could not understand: '{words}'"
