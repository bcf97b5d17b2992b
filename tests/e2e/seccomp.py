"""Seccomp filters by hand: what a container's profile does that does not know io_uring, and what a unit of systemd does."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
IO_URING_SETUP = 425  # the same number on every architecture


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def deny(system_call, error=errno.EPERM):
    """A function for `preexec_fn` after which this system call fails with this error, for the process and its children."""
    return _filter([(_JUMP_IF_EQUAL, 0, 1, system_call), (_RETURN, 0, 0, _ERRNO | error), (_RETURN, 0, 0, _ALLOW)])


def allow_only(names, error=errno.EPERM):
    """Likewise, after which every other system call fails. Names that this machine does not have are left out, as systemd does."""
    resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name
    numbers = sorted(number for name in names if (number := resolve(name.encode())) >= 0)
    assert numbers, "no system call is known"
    allowed = [instruction for number in numbers for instruction in ((_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW))]
    return _filter([*allowed, (_RETURN, 0, 0, _ERRNO | error)])


def _filter(judgement):
    """`judgement` has the system call's number before it; another architecture's calls are allowed."""
    instructions = [
        (_LOAD, 0, 0, 4),                           # the architecture, of struct seccomp_data
        (_JUMP_IF_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]),
        (_RETURN, 0, 0, _ALLOW),
        (_LOAD, 0, 0, 0),                           # the system call's number
        *judgement,
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))
    program = _Program(len(instructions), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)

    def install(code=code):
        # Without new privileges a filter needs none.
        for arguments in [(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)]:
            if libc.prctl(*arguments) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    return install
