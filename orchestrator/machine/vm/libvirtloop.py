"""libvirt's event loop. libvirt is loaded by hypervisor.py, which see."""

from __future__ import annotations

import threading

import libvirt

_loop_lock = threading.Lock()
_loop_started = False


def start_event_loop() -> None:
    """Start an event loop, once. libvirt's embedded driver hangs without one."""
    global _loop_started  # noqa: PLW0603  # libvirt has one loop for each process
    with _loop_lock:
        if _loop_started:
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        threading.Thread(target=run, name="libvirt-events", daemon=True).start()
        _loop_started = True
