"""Show how far TensorRT's builder is, and let Ctrl-C stop it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

Step = Callable[[str, int, int], None]


@contextmanager
def watched(trt: ModuleType, config: Any, step: Step | None) -> Iterator[None]:
    """Report the builder's innermost phase while it builds; without effect where TensorRT has no progress monitor.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        config: The ``IBuilderConfig`` that is built with.
        step: Called with a phase, how much of it is done, and how much there is; None: nobody wants to know.

    Raises:
        KeyboardInterrupt: Ctrl-C came while it built; the builder stopped after its step.
        Exception: What ``step`` raised, after the builder stopped.
    """
    # In TensorRT since 8.6 (doc), in TensorRT-RTX 1.7.1 (seen).
    if step is None or not hasattr(trt, "IProgressMonitor"):
        yield
        return
    monitor = _make_monitor(trt, step)
    config.progress_monitor = monitor
    # Python raises KeyboardInterrupt in whatever Python code comes next, here one that C++ called: it would end the
    # process. Only the main thread has handlers.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda *_: monitor.stop(KeyboardInterrupt())) if main else None
    try:
        yield
    finally:
        config.progress_monitor = None
        if before is not None:
            signal.signal(signal.SIGINT, before)
        if monitor.error is not None:
            raise monitor.error


def _make_monitor(trt: ModuleType, step: Step) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]  # the base class is known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            # Phases lie inside of each other; the last one that started is shown.
            self._phases: dict[str, tuple[int, int]] = {}

        def stop(self, error: BaseException) -> None:
            self.error = self.error or error

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self._phases[name] = (0, steps)
            self._tell(name)

        def step_complete(self, name: str, done: int) -> bool:
            if name in self._phases:
                self._phases[name] = (done + 1, self._phases[name][1])
                self._tell(name)
            return self.error is None

        def phase_finish(self, name: str) -> None:
            self._phases.pop(name, None)
            for outer in [*self._phases][-1:]:
                self._tell(outer)

        def _tell(self, name: str) -> None:
            if self.error is not None:
                return
            try:
                step(name, *self._phases[name])
            except Exception as error:  # noqa: BLE001  # none may cross the builder's C++; it is raised afterwards
                self.stop(error)

    return Monitor()
