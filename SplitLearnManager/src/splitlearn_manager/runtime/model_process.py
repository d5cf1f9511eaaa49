"""A model in a process of its own, seen from the serving process.

A load in a thread holds the interpreter lock for hundreds of milliseconds at a time, and every call waits. In a process
of its own it can be cancelled by ending the process, leaves nothing behind when it fails, and gives all memory back.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable

from splitlearn_comm import ServerUnavailableError, ServiceInfo
from splitlearn_comm.framing.service import decode_info
from splitlearn_manager.errors import ModelLoadError
from splitlearn_manager.runtime.load_reporter import LoadProgress, ModelSize
from splitlearn_manager.runtime.model_spec import ModelSpec
from splitlearn_manager.runtime.process_channel import Channel
from splitlearn_manager.runtime.process_exit import Output, described
from splitlearn_manager.runtime.process_frames import Frame, Kind

logger = logging.getLogger(__name__)

PROGRAM = "splitlearn_manager.runtime.model_process_main"
OUTPUT_TIMEOUT_S = 1.0
"""How long to wait for last words: a process that the model started may hold the pipe open."""

Admit = Callable[[ModelSize], Awaitable[None]]
"""Waits until there is room for a model; raises where there is none."""


async def admit_all(size: ModelSize) -> None:
    """Admit any model."""


class ModelProcess:
    """Loads one model in a process, and carries calls to it. Used once: another load takes another one.

    Args:
        spec: what to load.
        program: module that the process runs; it calls `model_process_main.run`.
        end_timeout_s: how long the process may take to end in order, before it is killed.
    """

    def __init__(self, spec: ModelSpec, *, program: str = PROGRAM, end_timeout_s: float = 10.0) -> None:
        self._spec = spec
        self._program = program
        self._end_timeout_s = end_timeout_s
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._channel = Channel(self._take, self._lost.set)
        self._process: asyncio.subprocess.Process | None = None
        self._owner: asyncio.Task[None] | None = None
        self._output = Output(spec.label)
        self._news: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._calls: dict[int, asyncio.Future[Frame]] = {}
        self._num_calls = 0
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._info: ServiceInfo | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ended.done() else "not loaded" if self._info is None else "ready"
        return f"<process {self.pid} of {self._spec.label}: {state}, {len(self._calls)} calls>"

    @property
    def spec(self) -> ModelSpec:
        """What it loads."""
        return self._spec

    @property
    def pid(self) -> int | None:
        """The process; None before it was started."""
        return None if self._process is None else self._process.pid

    @property
    def info(self) -> ServiceInfo:
        """What is served. Known once it was loaded."""
        assert self._info is not None, "not loaded"
        return self._info

    async def load(
        self, admit: Admit = admit_all, on_progress: Callable[[LoadProgress], object] = lambda progress: None
    ) -> None:
        """Start the process and wait until the model is ready. When this raises, or is cancelled, nothing is left.

        Args:
            admit: asked once the size of the model is known, before its weights are read.
            on_progress: told how far it is.

        Raises:
            ModelLoadError: it cannot be loaded, or the process ended.
            BudgetExceededError: whatever else `admit` raises.
        """
        try:
            await self._start()
            await self._follow(admit, on_progress)
        except BaseException:
            await self._kill()
            raise

    def call(self, kind: Kind, payload: bytes = b"", session: int = 0) -> Awaitable[Frame]:
        """Ask the process for something.

        Raises:
            ServerUnavailableError: the process has ended, or ends before it answers.
        """
        self._num_calls += 1
        answer: asyncio.Future[Frame] = self._loop.create_future()
        if self._ended.done():
            answer.set_exception(self._unavailable())
        else:
            self._calls[self._num_calls] = answer
            self._channel.send(kind, payload, call=self._num_calls, session=session)
        return answer

    def tell(self, kind: Kind, session: int) -> None:
        """Ask for something whose answer nobody waits for."""
        self._num_calls += 1
        self._channel.send(kind, call=self._num_calls, session=session)

    async def wait_ended(self) -> str:
        """Wait for the end of the process; returns how it ended, in words. Nothing of it is left then."""
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        """Have the process end in order, or kill it when it does not. May be called twice."""
        self._channel.send(Kind.END)
        try:
            # A wait that is cancelled must not leave the process behind.
            await asyncio.wait_for(self._reaped(), self._end_timeout_s)
        except TimeoutError:
            logger.warning("the process of %s did not end in %g s: killing it", self._spec.label, self._end_timeout_s)
        finally:
            await self._kill()

    async def _reaped(self) -> None:
        if self._owner is not None:
            await asyncio.shield(self._owner)

    async def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self._owner is not None:
            await _completed(self._owner)

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        directory = tempfile.mkdtemp(prefix="splitlearn-model-")
        with theirs:
            try:
                self._process = await self._spawn(theirs.fileno(), directory)
            except BaseException:
                ours.close()
                shutil.rmtree(directory, ignore_errors=True)
                raise
        self._owner = self._loop.create_task(self._own(self._process, directory))
        await self._loop.create_unix_connection(lambda: self._channel, sock=ours)

    async def _spawn(self, descriptor: int, directory: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            # Nothing is imported from where the server happens to be started.
            *(sys.executable, "-P", "-m", self._program, str(descriptor)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(descriptor,),
            env=_environment(self._spec, directory),
            # An interrupt at the terminal is for the serving process.
            start_new_session=True,
        )

    async def _own(self, process: asyncio.subprocess.Process, directory: str) -> None:
        """See the process to its end, and leave nothing of it."""
        reading = asyncio.create_task(self._output.read(process))
        await self._wait_gone(process)
        await asyncio.wait([reading], timeout=OUTPUT_TIMEOUT_S)
        reading.cancel()
        self._channel.close()
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        assert process.returncode is not None
        self._ended.set_result(described(process.returncode, self._output.last_words()))
        self._news.put_nowait(None)
        calls, self._calls = self._calls, {}
        for answer in calls.values():
            if not answer.done():
                answer.set_exception(self._unavailable())

    async def _wait_gone(self, process: asyncio.subprocess.Process) -> None:
        exited, lost = asyncio.create_task(process.wait()), asyncio.create_task(self._lost.wait())
        await asyncio.wait([exited, lost], return_when=asyncio.FIRST_COMPLETED)
        lost.cancel()
        # A process that has hung up has nothing more to say, whatever keeps it.
        if not (await asyncio.wait([exited], timeout=self._end_timeout_s))[0]:
            process.kill()
            await exited

    async def _follow(self, admit: Admit, on_progress: Callable[[LoadProgress], object]) -> None:
        self._channel.send(Kind.LOAD, self._spec.to_json().encode())
        while (frame := await self._news.get()) is not None:
            match frame.kind:
                case Kind.PROGRESS:
                    on_progress(LoadProgress(**json.loads(frame.payload)))
                case Kind.SIZED:
                    await admit(ModelSize(**json.loads(frame.payload)))
                    self._channel.send(Kind.ADMIT)
                case Kind.READY:
                    self._info = decode_info(frame.payload)
                    return
                case _:
                    failure = json.loads(frame.payload)
                    message = f"{self._spec.label} cannot be loaded: {failure['message']}"
                    raise ModelLoadError(message, kind=failure["kind"])
        raise ModelLoadError(f"{self._spec.label} cannot be loaded: its process {self._ended.result()}")

    def _take(self, frame: Frame) -> None:
        if not frame.call:
            self._news.put_nowait(frame)
            return
        answer = self._calls.pop(frame.call, None)
        if answer is not None and not answer.done():
            answer.set_result(frame)

    def _unavailable(self) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"the process of {self._spec.label} {self._ended.result()}; its sessions are lost: open a new one"
        )


async def _completed(task: asyncio.Task[None]) -> None:
    """Wait for a task to its end, however often this is cancelled; then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _environment(spec: ModelSpec, directory: str) -> dict[str, str]:
    """Return the environment of a model's process: this one's, with temporary files where they can be cleared away."""
    threads = {} if spec.num_threads is None else {"OMP_NUM_THREADS": str(spec.num_threads)}
    return {**os.environ, **threads, "TMPDIR": directory}
