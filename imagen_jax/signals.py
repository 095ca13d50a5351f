"""End a command on SIGINT or SIGTERM at any time, with one line on stderr and exit status 130 or 143.

Commands call `install` before they import anything slow, so this module imports nothing slow. A separate thread reads
the signals: no import, compilation in C++ or code that catches all exceptions delays the end, and nothing is raised in
the main thread. Files are written atomically; other clean-up is registered with `clean_up`. A second signal ends the
process immediately.
"""

import _thread
import atexit
import os
import signal
import sys
import time

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_CLEAN_UP_S = 3.0  # for cleaning up and flushing; then the process ends without
_watch = None
format_line = str  # of the line about a signal


def install(advice: str = "") -> None:
    """Have SIGINT and SIGTERM end this process. The main thread calls it.

    Args:
      advice: the end of the line, such as "the same command continues".
    """
    global _watch
    if _watch is None:
        _watch = _Watch(advice)


def uninstall() -> None:
    """Undo `install`."""
    global _watch
    if _watch is not None:
        _watch.close()
        _watch = None


def defer(received: list) -> bool:
    """Until `resume`, append the numbers of signals to `received` instead of ending the process.

    A SIGINT after another signal still ends it; a SIGTERM does not, since some clusters repeat it.

    Returns:
      whether `install` was called: without it nothing is deferred.
    """
    if _watch is not None:
        _watch.received = received
    return _watch is not None


def resume() -> None:
    """Have signals end the process again, after `defer`."""
    if _watch is not None:
        _watch.received = None


class clean_up:  # not contextlib.contextmanager, whose import takes time
    """Context in which a signal that ends the process first calls `callback`, which must be quick."""

    def __init__(self, callback):
        self._callback = callback

    def __enter__(self):
        if _watch is not None:
            _watch.callbacks.append(self._callback)

    def __exit__(self, *_):
        if _watch is not None and self._callback in _watch.callbacks:
            _watch.callbacks.remove(self._callback)


class starting_processes:
    """Context for starting child processes.

    A terminal sends Ctrl-C to the whole process group: children block SIGINT from their start, so that this process
    alone handles it. This process does not end between starting a child and giving it its work.
    """

    def __enter__(self):
        if _watch is None:
            return
        from multiprocessing import resource_tracker

        _watch.held += 1
        resource_tracker.ensure_running()  # its start changes the signal mask
        # Children inherit the mask; in this process the reading thread receives SIGINT.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def __exit__(self, *_):
        if _watch is not None:
            _watch.held -= 1
            _watch.park()


def wait_for_signals() -> None:
    """Wait for a signal sent to several processes, before the end of another process is reported as an error."""
    if _watch is not None:
        time.sleep(0.1)


def exit_immediately(status: int) -> None:
    """End the process without waiting for threads, after flushing stdout and stderr."""
    _thread.start_new_thread(_after, (_CLEAN_UP_S, status))
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass
    os._exit(status)


def _after(seconds: float, status: int) -> None:
    time.sleep(seconds)
    os._exit(status)


class _Watch:
    def __init__(self, advice: str):
        self.received, self.callbacks, self.held = None, [], 0
        self._line = f"; {advice}" if advice else ""
        self._is_ending = False
        # Its warning about leaked semaphores would be a second line.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")
        try:
            self._stderr = os.dup(2)  # since the program may redirect it
        except OSError:  # a process without stderr
            self._stderr = os.open(os.devnull, os.O_WRONLY)
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        _thread.start_new_thread(self._read, ())
        self._before = {number: signal.signal(number, self._note) for number in _NUMBERS}
        atexit.register(self._ignore)  # before all others are, so that it runs after them

    @staticmethod
    def _ignore() -> None:
        """Ignore signals from now on: the work is done, and Python's own end would restore the default handlers."""
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        atexit.unregister(self._ignore)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writing)  # ends the thread
        os.close(self._stderr)

    def _note(self, *_) -> None:
        """Signal handler: runs in the main thread, which stops here unless the signal is deferred."""
        limit = time.monotonic() + 1  # within which the reading thread handles it
        while not self._is_ending and self.received is None and self is _watch and time.monotonic() < limit:
            time.sleep(0.01)
        self.park()

    def park(self) -> None:
        """Stop the calling thread if the process is about to end."""
        while self._is_ending and not self.held:
            time.sleep(0.1)

    def _read(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)
        while numbers := os.read(self._reading, 64):
            for number in numbers:
                if number in _NUMBERS:
                    self._receive(number)
        os.close(self._reading)

    def _receive(self, number: int) -> None:
        status = 128 + number
        if self._is_ending:
            os._exit(status)
        if self.received is not None:
            self.received.append(number)
            if number == signal.SIGTERM or len(self.received) == 1:
                return
            self._line = ", at once; the same command continues from the newest checkpoint"
        self._is_ending = True
        name = os.path.basename(sys.argv[0])
        line = f"{format_line(f'{name}: ended by {signal.Signals(number).name}{self._line}')}\n"
        if os.isatty(self._stderr):
            line = f"\n{line}"  # below a progress bar
        try:
            os.write(self._stderr, line.encode(errors="replace"))
        except OSError:
            pass
        _thread.start_new_thread(_after, (_CLEAN_UP_S, status))
        _thread.start_new_thread(self._end, (status,))

    def _end(self, status: int) -> None:
        while self.held:
            time.sleep(0.01)
        for callback in reversed(self.callbacks):
            try:
                callback()
            except Exception:
                pass
        exit_immediately(status)
