"""The run directory: everything a training run leaves behind, and the only place it writes to.

config.json     the arguments
meta.json       what ran: commit, versions, machine, command line, start time
status.json     {"status": "running", "done", "diverged", "failed" or "interrupted", "global_step", "total_steps",
                "checkpoint": the last step that was saved or null, "time", "reason", "output": why stdout or stderr
                were written to no more, if that came to pass}
metrics.jsonl   one JSON object a line: "global_step", "time" (Unix seconds), and the TensorBoard tags as keys
events.*        the same scalars for TensorBoard
checkpoints/    step_N.pt, the last two, and best_N.pt, that with the best evaluation (--eval-interval); each loads
                with torch.load(weights_only=True)
videos/         step_N.mp4 (--capture-video-interval)
AGENT.py        the agent's source as it ran

JSON has no NaN and no infinities: they are written as the strings "nan", "inf" and "-inf", which float() reads.
Every file but the two logs is replaced as a whole, so that a reader, or a run killed at any moment, never meets half
of one. A checkpoint knows how long the logs were when it was written: a resumed run cuts them there and goes on, so
that they become what they would have been without the interruption.
"""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

import hesscale_rl

from ..errors import InputError, Unwritable
from ..system.console import complain, lost, say
from ..system.files import atomic_write, json_bytes, jsonable, write_json
from ..system.locks import lock
from .arguments import check_new
from .checkpoint import BEST, FORMAT, KEPT, STEP, checkpoints
from .machine import account

# What ends a run in good order; SIGHUP comes from a terminal that is gone, and there is none on Windows.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
FULL = {errno.ENOSPC, errno.EDQUOT}  # not a wrong directory: a full disk
_files = itertools.count()  # for the names of TensorBoard's files


class Run:
    """One run directory, open for writing. Use it as a context manager: leaving it records how the run ended.

    `args` is the agent's dataclass of arguments; its `env_id`, `exp_name` and `seed` name the default directory under
    runs/. `directory` names it exactly instead: InputError if that holds anything already. `source` is the agent's
    file. `checkpoint`, one of the directory's own, resumes the run there. `quiet` leaves out the line by which
    `tell` says the path, the attribute `directory`.

    `watch(run, step, scalars)`, where somebody sets it, is told of all that is logged; False ends the run as SIGINT
    does.

    While it is open, SIGINT, SIGTERM and SIGHUP only set `stop`, for the agent to end after its current update; a
    second SIGINT interrupts at once. `track`: Weights & Biases as well.

    Files that cannot be written end in Unwritable, with the path and the last good checkpoint; the status is then
    "failed", whatever it was to be.
    """

    def __init__(
        self,
        args: Any,
        directory: str | None,
        quiet: bool,
        source: str | Path,
        total_steps: int,
        checkpoint: dict[str, Any] | None = None,
        track: bool = False,
    ) -> None:
        wandb = _wandb() if track else None
        place = Path("runs" if directory is None else directory)
        made = [folder for folder in (place, *place.parents) if not folder.exists()]
        self.directory = _create(args, directory) if checkpoint is None else Path(directory or "")
        self._made = [self.directory, *made] if directory is None else made  # what is there for this run alone
        self.stop = False
        self.watch: Callable[[Run, int, Mapping[str, float]], Any] | None = None
        self._handlers: dict[int, Any] = {}
        self.total_steps, self.global_step = total_steps, checkpoint["global_step"] if checkpoint else 0
        self.saved = self.global_step if checkpoint and checkpoint["logs"] else None  # the last checkpoint's step
        self.status, self.quiet, self.began = "running", quiet, time.monotonic()
        self.reason = ""
        self._lines: list[str] = []
        self._records = io.BytesIO()
        meta = account(Path(source))
        self._lock = lock(self.directory, f"--run-dir {self.directory}: another process is writing to it")
        try:
            if checkpoint is not None:
                _go_back(self.directory, checkpoint["global_step"], checkpoint["logs"])
            write_json(self.directory / "config.json", dataclasses.asdict(args))
            if not checkpoint or not checkpoint["logs"]:  # a resumed run keeps the account of its beginning
                write_json(self.directory / "meta.json", meta)
                shutil.copy(source, self.directory)
            self._metrics = open(self.directory / "metrics.jsonl", "ab")  # noqa: SIM115 - finish closes
            # TensorBoard reads the files in the order of their names, and two may be of one second.
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_files):06d}"
            self._events = open(self.directory / name, "ab")  # noqa: SIM115
        except OSError as error:
            self._lock.release()
            if checkpoint is None:
                with contextlib.suppress(OSError):
                    self._clear()
            what = f"{error.filename}: cannot be written ({error.strerror})"
            raise (Unwritable(what) if error.errno in FULL else InputError(f"--run-dir {what}")) from None
        # One event per call of `log` is ten times cheaper than SummaryWriter's one per tag.
        self._record = RecordWriter(self._records)
        self._record.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        device = getattr(args, "device", "cpu")
        threads = f"{device}, {meta['torch_threads']} thread{'s' * (meta['torch_threads'] != 1)}"
        versions = "  ".join(f"{name} {meta['versions'][name]}" for name in ("gymnasium", "mujoco", "torch"))
        self._about = f"run  {self.directory}  {threads}  {versions}"
        self._wandb = None
        if wandb is not None:
            self._wandb = wandb.init(
                project="hesscale-rl", name=self.directory.name, config=dataclasses.asdict(args), dir=self.directory
            )

    def tell(self) -> None:
        """Say where the run is, unless it is `quiet`; a run that has come to nothing may be discarded unsaid."""
        if not self.quiet:
            say(self._about)

    def log(self, global_step: int, scalars: Mapping[str, float]) -> None:
        """Record scalars by TensorBoard tag ("charts/episodic_return") at one step. `flush` brings them to disk."""
        now = time.time()
        values = {tag: float(value) for tag, value in scalars.items()}
        line = jsonable({"global_step": global_step, "time": now, **values})
        self._lines.append(json.dumps(line, allow_nan=False) + "\n")
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._record.write(Event(wall_time=now, step=global_step, summary=summary).SerializeToString())
        if self._wandb is not None:
            self._wandb.log(values, step=global_step)
        self.global_step = global_step
        if self.watch is not None and self.watch(self, global_step, values) is False:
            self.stop = True

    def flush(self) -> None:
        """Bring everything logged to disk. Call it at every update: a killed run loses what came after."""
        # Held back until here and written at once, so that a reader of a live run finds only whole lines.
        lines, records = "".join(self._lines).encode(), self._records.getvalue()
        self._lines.clear()
        self._records.seek(0)
        self._records.truncate()
        for file, content in ((self._metrics, lines), (self._events, records)):
            with self._writing(file.name):
                file.write(content)
                file.flush()

    def save_checkpoint(self, step: int, payload: dict[str, Any]) -> Path:
        """Write checkpoints/step_N.pt and return its path. Payload: tensors, numbers, text and containers of them."""
        path = self._write_checkpoint(STEP, step, payload)
        self.saved = step
        with self._writing(self.directory / "status.json"):
            self._write_status({})
        # A run that goes on from here knows the last best one alone.
        for old in (*checkpoints(path.parent)[:-KEPT], *checkpoints(path.parent, BEST)[:-1]):
            old.unlink()
        return path

    def save_best(self, step: int, payload: dict[str, Any]) -> Path:
        """Write checkpoints/best_N.pt, of the policy with the best evaluation yet, and return its path."""
        return self._write_checkpoint(BEST, step, payload)

    def _write_checkpoint(self, kind: str, step: int, payload: dict[str, Any]) -> Path:
        self.flush()  # no checkpoint is ahead of its curve
        logs = {path.name: path.stat().st_size for path in _logs(self.directory)}
        data = io.BytesIO()
        torch.save({"format": FORMAT, "version": hesscale_rl.__version__, "logs": logs} | payload, data)
        path = self.directory / "checkpoints" / f"{kind}_{step}.pt"
        self.global_step = step
        with self._writing(path):
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, data.getvalue())
        try:
            torch.load(path, weights_only=True, map_location="cpu")
        except Exception:  # as many as there are ways for a file to be torn; the older ones are not touched
            path.unlink()
            raise
        return path

    def finish(self, status: str, **details: Any) -> None:
        """End the run: close the logs, then write the status ("done", "diverged" ...), so that it vouches for them.

        `details` go to status.json as well (reason="..."). Only the first call counts. Unwritable if the end of the
        logs is lost, unless the run had failed anyway.
        """
        if self.status != "running":
            return
        self.status, problem = status, None
        try:
            self.flush()
        except Unwritable as error:
            if status != "failed":
                self.status, problem, details = "failed", error, {"reason": str(error)}
        self.reason = details.get("reason", "")
        for file in (self._metrics, self._events):
            with contextlib.suppress(OSError):
                file.close()
        try:
            self._write_status(details)
        except OSError:  # no room for a second file beside it: over the first one, which is about as long
            with contextlib.suppress(OSError), open(self.directory / "status.json", "r+b") as first:
                first.write(self._status(details))
                first.truncate()
        self._lock.release()
        self._let_signals_go()
        if self._wandb is not None:
            self._wandb.finish()
        if problem is not None:
            raise problem

    def discard(self) -> None:
        """End a run that has nothing worth keeping: its files go, and the folders that were made for it."""
        self.finish("failed")
        self._clear()

    def _clear(self) -> None:
        for path in self.directory.iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        for folder in self._made:
            with contextlib.suppress(OSError):  # others have put something there
                folder.rmdir()

    def report(self, returns: Sequence[float], evaluated: str = "") -> None:
        """Say how the run ended, with the mean of `returns`, those of the last episodes, and what to type next.

        `evaluated`: what is to be said of its evaluations.
        """
        if self.status == "diverged":
            complain(f"diverged at step {self.global_step:,}: {self.reason}; the curve is kept in {self.directory}")
        if self.quiet:
            return
        minutes, seconds = divmod(round(time.monotonic() - self.began), 60)
        mean = "no episode ended"
        if returns:
            mean = f"return {sum(returns) / len(returns):,.0f} (mean of the last {len(returns)} episodes)"
        say(f"{self.status}  {self.global_step:,} steps in {minutes}:{seconds:02}  {mean}")
        if evaluated:
            say(f"eval  {evaluated}")
        say(f"run   {self.directory}")
        tensorboard = os.path.relpath(Path(sys.executable).with_name("tensorboard"))
        say(f"next  {shlex.join([tensorboard, '--logdir', str(self.directory.parent)])}")

    @contextlib.contextmanager
    def _writing(self, path: str | Path) -> Iterator[None]:
        """What is raised when a file cannot be written becomes Unwritable."""
        try:
            yield
        except OSError as error:
            left = "there is no checkpoint yet"
            if self.saved is not None:
                left = f"the last good checkpoint is {self.directory / 'checkpoints' / f'step_{self.saved}.pt'}"
            raise Unwritable(f"{path}: cannot be written ({error.strerror or error}); {left}") from error

    def _status(self, details: dict[str, Any]) -> bytes:
        content = {"status": self.status, "global_step": self.global_step, "total_steps": self.total_steps}
        content |= {"checkpoint": self.saved, "time": time.time()} | details
        return json_bytes(content | ({"output": lost} if lost else {}))

    def _write_status(self, details: dict[str, Any]) -> None:
        atomic_write(self.directory / "status.json", self._status(details))

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.stop and number == signal.SIGINT and self.status == "running":
            raise KeyboardInterrupt
        self.stop = True

    def _let_signals_go(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
                    self._handlers[number] = signal.signal(number, self._on_signal)
        try:
            with self._writing(self.directory / "status.json"):
                self._write_status({})
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish("interrupted" if self.stop and self.global_step < self.total_steps else "done")
            elif isinstance(error, KeyboardInterrupt):
                self.finish("interrupted")
            else:
                told = "" if isinstance(error, Unwritable) else f"{type(error).__name__}: "
                self.finish("failed", reason=f"{told}{error}")
        finally:
            self._let_signals_go()


def _logs(directory: Path) -> list[Path]:
    return [directory / "metrics.jsonl", *sorted(directory.glob("events.*"))]


def _go_back(directory: Path, step: int, lengths: dict[str, int]) -> None:
    """Bring the run back to the checkpoint of a step: its logs to the lengths that they had then."""
    for path in checkpoints(directory / "checkpoints", BEST):
        if int(path.stem.partition("_")[2]) > step:
            path.unlink()  # of the steps that will be taken anew
    for path in _logs(directory):
        if path.name not in lengths:
            path.unlink(missing_ok=True)  # begun after the checkpoint
        elif not path.exists() or path.stat().st_size < lengths[path.name]:
            raise InputError(f"{path}: shorter than its checkpoint says, or gone; the run cannot be resumed")
        else:
            os.truncate(path, lengths[path.name])


def _wandb() -> Any:
    try:
        import wandb
    except ImportError:
        raise InputError("--track: needs Weights & Biases, pip install 'hesscale-rl[track]'") from None
    return wandb


def _create(args: Any, directory: str | None) -> Path:
    """Make the directory. A default name that is taken gets _2, _3 ... (runs that start in the same second)."""
    path = Path("runs" if directory is None else directory)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        if directory is not None:
            check_new(path)
            path.mkdir(parents=True, exist_ok=True)
            for part in path.glob(".*.part"):  # of a run that was killed while it wrote its first file
                part.unlink()
            return path
        name = f"{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}".replace("/", "-")
        path, number = Path("runs", name), 1
        path.parent.mkdir(exist_ok=True)
        while True:
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1
                path = Path("runs", f"{name}_{number}")
    except OSError as error:
        for folder in made:  # parents that were made on the way to a name that cannot be
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise InputError(f"--run-dir {error.filename}: cannot be made ({error.strerror})") from None
