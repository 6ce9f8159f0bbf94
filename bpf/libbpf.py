"""libbpf through ctypes: the functions that we use, their signatures, and what it had to say when it failed.

Rules of this file:
- Every function is declared with its types; one that is not declared here is not called. Tests call each of them.
- libbpf returns NULL or a negative number and sets ``errno``; ``check`` makes a ``KernelError`` of that.
- libbpf writes to one sink a process: ours keeps the last lines of each thread, for the error's text.
Owns: the library handle. Does not own: objects and their life (``loader``), ring buffers (``ring``).
"""

from __future__ import annotations

import ctypes as c
import errno
import threading
from collections import deque
from functools import cache
from typing import Any, Final

from garrison.common.errors import BackendUnsupportedError, KernelError

__all__ = ["RING_CALLBACK", "check", "libbpf", "recent_log"]

_SONAME: Final = "libbpf.so.1"
_LOG_LINE_BYTES: Final = 17 << 20  # libbpf hands over a verifier log, at most 16 MiB, as one line; untouched pages are free
_LOG_LINES: Final = 12  # of libbpf's and of a verifier log: the last ones say what was wrong

_PTR, _INT, _UINT, _STR, _SIZE, _U64 = c.c_void_p, c.c_int, c.c_uint, c.c_char_p, c.c_size_t, c.c_uint64
RING_CALLBACK: Final = c.CFUNCTYPE(_INT, _PTR, _PTR, _SIZE)
_PRINT_CALLBACK: Final = c.CFUNCTYPE(_INT, _INT, _PTR, _PTR)

# name: (result, arguments). Source: bpf.h, libbpf.h and btf.h of libbpf 1.0.
_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libbpf_version_string": (_STR, ()),
    "libbpf_set_print": (_PTR, (_PRINT_CALLBACK,)),
    "libbpf_num_possible_cpus": (_INT, ()),
    "bpf_object__open_mem": (_PTR, (_PTR, _SIZE, _PTR)),
    "bpf_object__load": (_INT, (_PTR,)),
    "bpf_object__close": (None, (_PTR,)),
    "bpf_object__btf": (_PTR, (_PTR,)),
    "bpf_object__next_program": (_PTR, (_PTR, _PTR)),
    "bpf_object__next_map": (_PTR, (_PTR, _PTR)),
    "bpf_program__name": (_STR, (_PTR,)),
    "bpf_program__fd": (_INT, (_PTR,)),
    "bpf_program__set_autoload": (_INT, (_PTR, c.c_bool)),
    "bpf_program__attach": (_PTR, (_PTR,)),
    "bpf_program__attach_cgroup": (_PTR, (_PTR, _INT)),
    "bpf_raw_tracepoint_open": (_INT, (_STR, _INT)),
    "bpf_link_create": (_INT, (_INT, _INT, _INT, _PTR)),
    "bpf_prog_test_run_opts": (_INT, (_INT, _PTR)),
    "bpf_link__fd": (_INT, (_PTR,)),
    "bpf_link__pin": (_INT, (_PTR, _STR)),
    "bpf_link__unpin": (_INT, (_PTR,)),
    "bpf_link__destroy": (_INT, (_PTR,)),
    "bpf_map__name": (_STR, (_PTR,)),
    "bpf_map__fd": (_INT, (_PTR,)),
    "bpf_map__type": (_INT, (_PTR,)),
    "bpf_map__key_size": (_UINT, (_PTR,)),
    "bpf_map__value_size": (_UINT, (_PTR,)),
    "bpf_map__reuse_fd": (_INT, (_PTR, _INT)),
    "bpf_map__set_max_entries": (_INT, (_PTR, _UINT)),
    "bpf_map__initial_value": (_PTR, (_PTR, c.POINTER(_SIZE))),
    "bpf_map__pin": (_INT, (_PTR, _STR)),
    "bpf_map__unpin": (_INT, (_PTR, _STR)),
    "bpf_map_create": (_INT, (_INT, _STR, _UINT, _UINT, _UINT, _PTR)),
    "bpf_map_lookup_elem": (_INT, (_INT, _PTR, _PTR)),
    "bpf_map_update_elem": (_INT, (_INT, _PTR, _PTR, _U64)),
    "bpf_map_delete_elem": (_INT, (_INT, _PTR)),
    "bpf_map_get_next_key": (_INT, (_INT, _PTR, _PTR)),
    "bpf_map_update_batch": (_INT, (_INT, _PTR, _PTR, c.POINTER(c.c_uint32), _PTR)),
    "bpf_map_delete_batch": (_INT, (_INT, _PTR, c.POINTER(c.c_uint32), _PTR)),
    "bpf_map_get_fd_by_id": (_INT, (c.c_uint32,)),
    "bpf_obj_get": (_INT, (_STR,)),
    "bpf_obj_pin": (_INT, (_INT, _STR)),
    "bpf_obj_get_info_by_fd": (_INT, (_INT, _PTR, c.POINTER(c.c_uint32))),
    "bpf_enable_stats": (_INT, (_INT,)),
    "btf__find_by_name_kind": (c.c_int32, (_PTR, _STR, c.c_uint32)),
    "btf__type_by_id": (_PTR, (_PTR, c.c_uint32)),
    "btf__name_by_offset": (_STR, (_PTR, c.c_uint32)),
    "ring_buffer__new": (_PTR, (_INT, RING_CALLBACK, _PTR, _PTR)),
    "ring_buffer__poll": (_INT, (_PTR, _INT)),
    "ring_buffer__consume": (_INT, (_PTR,)),
    "ring_buffer__free": (None, (_PTR,)),
}

_said = threading.local()


@cache
def libbpf() -> Any:
    """Return the library, its signatures declared.

    Raises:
        BackendUnsupportedError: It is not installed, or is older than 1.0.
    """
    try:
        library = c.CDLL(_SONAME, use_errno=True)
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as err:
        raise BackendUnsupportedError(
            f"{_SONAME} cannot be used: {err}", hint="install libbpf 1.0 or newer (Debian: libbpf1)"
        ) from err
    library.libbpf_set_print(_print)
    return library


def check(result: int | None, operation: str, *, hint: str = "") -> int:
    """Return ``result`` unless it says that a call failed.

    Raises:
        KernelError: It is NULL or negative; ``operation`` says what was attempted.
    """
    if result is not None and result >= 0:
        return result
    number = c.get_errno() or (-result if result else errno.EINVAL)
    raise KernelError(number, operation, hint=hint)


def recent_log(*, clear: bool = False) -> str:
    """Return the last lines that libbpf or the verifier wrote in this thread."""
    lines: deque[str] = _lines()
    text = "\n".join(lines)
    if clear:
        lines.clear()
    return text


def _lines() -> deque[str]:
    if not hasattr(_said, "lines"):
        _said.lines = deque[str](maxlen=_LOG_LINES)
    lines: deque[str] = _said.lines
    return lines


def _on_print(level: int, text_format: int, arguments: int) -> int:
    if level < _DEBUG:  # what goes wrong, and with it the verifier's log; never the relocations of each instruction
        buffer = c.create_string_buffer(_LOG_LINE_BYTES)
        _vsnprintf(buffer, len(buffer), text_format, arguments)
        _lines().extend(buffer.value.decode(errors="replace").splitlines())
    return 0


_DEBUG: Final = 2  # enum libbpf_print_level
_vsnprintf: Final = c.CDLL(None).vsnprintf
_vsnprintf.restype, _vsnprintf.argtypes = _INT, (_STR, _SIZE, _PTR, _PTR)
_print: Final = _PRINT_CALLBACK(_on_print)
