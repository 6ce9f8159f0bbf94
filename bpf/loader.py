"""Loads BPF objects, sets what is read-only, attaches, pins, and talks to maps.

Rules of this file:
- An ``Object`` owns everything made from it; ``close`` detaches and frees. Programs stop then, unless their links are pinned.
- All or nothing: when one program does not load, none is loaded, and the error carries the verifier's last words.
- Keys and values are ``bytes`` of exactly the map's sizes; layouts belong to whoever wrote the program.
Owns: life of objects, links and maps. Does not own: what programs mean, ring buffers (``ring``), signatures (``libbpf``).
"""

from __future__ import annotations

import contextlib
import ctypes as c
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

from garrison.bpf.libbpf import check, libbpf, recent_log
from garrison.common.errors import CompileError, KernelError

__all__ = [
    "ANY",
    "NOEXIST",
    "NO_PREALLOC",
    "BpfMap",
    "Link",
    "MapType",
    "Object",
    "Program",
    "enabled_stats",
    "object_path",
    "open_pinned_map",
]

ANY: Final = 0  # BPF_ANY: make or replace
NOEXIST: Final = 1  # BPF_NOEXIST: only make
_BTF_KIND_DATASEC: Final = 15
_BTF_TYPE: Final = struct.Struct("=III")  # struct btf_type: name_off, info, size
_VAR_SECINFO: Final = struct.Struct("=III")  # struct btf_var_secinfo: type, offset, size
_MAP_INFO_BYTES: Final = 128  # struct bpf_map_info; the kernel takes and fills what both know
_PROG_INFO_BYTES: Final = 232  # struct bpf_prog_info up to verified_insns
_RUN_TIME_AT: Final = 192  # struct bpf_prog_info: run_time_ns, then run_cnt
# Option structs begin with their size, by which libbpf knows how much of them was filled in.
_MAP_CREATE_OPTS: Final = struct.Struct("=QIIIIIIQII")  # struct bpf_map_create_opts; map_flags is the seventh
_TEST_RUN_OPTS: Final = struct.Struct("=QQQIIQQIIIIIIII")  # struct bpf_test_run_opts; retval is the tenth


class MapType:
    """The types of maps that we make or treat in a special way. Source: enum bpf_map_type."""

    HASH: Final = 1
    ARRAY: Final = 2
    PERCPU_HASH: Final = 5
    PERCPU_ARRAY: Final = 6
    LRU_PERCPU_HASH: Final = 10


_PER_CPU: Final = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
NO_PREALLOC: Final = 1  # BPF_F_NO_PREALLOC: memory per entry, when it is made


def object_path(name: str) -> Path:
    """Return where the built object ``name`` (without ``.bpf.o``) is.

    Raises:
        CompileError: It was not built.
    """
    path = Path(__file__).with_name(f"{name}.bpf.o")
    if not path.is_file():
        raise CompileError(f"{path} is missing", hint="build it: make -C bpf, or install the wheel")
    return path


class BpfMap:
    """A map, by its descriptor.

    Args:
        fd: Descriptor; closed by ``close`` when ``owned``, otherwise by whoever it was borrowed from.
        map_type: See ``MapType``.
        key_bytes: Size of a key.
        value_bytes: Size of a value, as the program sees it (of one CPU in a per-CPU map).
        name: For error texts.
        owned: Whether ``close`` closes the descriptor.
    """

    def __init__(self, fd: int, map_type: int, key_bytes: int, value_bytes: int, *, name: str = "", owned: bool = False) -> None:
        self.fd, self.type, self.key_bytes, self.value_bytes, self.name = fd, map_type, key_bytes, value_bytes, name
        self._owned = owned
        self._cpus = check(libbpf().libbpf_num_possible_cpus(), "count CPUs") if map_type in _PER_CPU else 1
        self._stride = (value_bytes + 7) & ~7 if map_type in _PER_CPU else value_bytes

    @classmethod
    def create(cls, map_type: int, key_bytes: int, value_bytes: int, max_entries: int, *, name: str, flags: int = 0) -> BpfMap:
        """Make a map of its own, such as an inner one.

        Raises:
            KernelError: The kernel refused.
        """
        options = _MAP_CREATE_OPTS.pack(_MAP_CREATE_OPTS.size, 0, 0, 0, 0, 0, flags, 0, 0, 0)
        fd = libbpf().bpf_map_create(map_type, name.encode()[:15], key_bytes, value_bytes, max_entries, options)
        return cls(check(fd, f"make map {name}"), map_type, key_bytes, value_bytes, name=name, owned=True)

    @classmethod
    def by_id(cls, map_id: int, *, name: str) -> BpfMap:
        """Open the map with the kernel's number ``map_id``, such as an outer map gives for its inner ones.

        Raises:
            KernelError: There is none, or it may not be used.
        """
        return _opened(check(libbpf().bpf_map_get_fd_by_id(map_id), f"open map {name} by number"), name)

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of ``key``; ``None`` when there is none. Of a per-CPU map: those of all CPUs, each padded to 8."""
        buffer = c.create_string_buffer(self._stride * self._cpus)
        if libbpf().bpf_map_lookup_elem(self.fd, self._key(key), buffer) == 0:
            return buffer.raw
        if c.get_errno() == errno.ENOENT:
            return None
        raise KernelError(c.get_errno(), f"look up in map {self.name}")

    def lookup_sum(self, key: bytes) -> int:
        """Return the sum over all CPUs of a map of 64-bit counters; 0 when there is no such key."""
        raw = self.lookup(key)
        return sum(struct.unpack(f"={len(raw) // 8}Q", raw)) if raw else 0

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set ``key`` to ``value``.

        Raises:
            KernelError: ``E2BIG`` when the map is full, ``EEXIST`` with ``NOEXIST``.
        """
        if len(value) != self._stride * self._cpus:
            raise ValueError(f"map {self.name} takes values of {self._stride * self._cpus} bytes, not {len(value)}")
        check(libbpf().bpf_map_update_elem(self.fd, self._key(key), value, flags), f"update map {self.name}")

    def delete(self, key: bytes) -> bool:
        """Remove ``key``; whether it was there."""
        if libbpf().bpf_map_delete_elem(self.fd, self._key(key)) == 0:
            return True
        if c.get_errno() == errno.ENOENT:
            return False
        raise KernelError(c.get_errno(), f"remove from map {self.name}")

    def keys(self) -> Iterator[bytes]:
        """Give all keys. One that is deleted meanwhile makes the walk begin again."""
        key, following = None, c.create_string_buffer(self.key_bytes)
        while libbpf().bpf_map_get_next_key(self.fd, key, following) == 0:
            key = following.raw
            yield key

    def update_batch(self, items: Mapping[bytes, bytes]) -> None:
        """Set many keys in one call.

        Raises:
            KernelError: Not all fitted; some may be set.
        """
        if not items:
            return
        count = c.c_uint32(len(items))
        keys, values = b"".join(map(self._key, items)), b"".join(items.values())
        if len(values) != self._stride * self._cpus * len(items):
            raise ValueError(f"map {self.name} takes values of {self._stride * self._cpus} bytes")
        check(libbpf().bpf_map_update_batch(self.fd, keys, values, c.byref(count), None), f"update map {self.name}")

    def delete_batch(self, keys: Iterable[bytes]) -> None:
        """Remove many keys in one call; all must be there."""
        wanted = [self._key(key) for key in keys]
        if wanted:
            count = c.c_uint32(len(wanted))
            check(libbpf().bpf_map_delete_batch(self.fd, b"".join(wanted), c.byref(count), None), f"remove from map {self.name}")

    @property
    def id(self) -> int:
        """The kernel's number of it."""
        return _id_of(self.fd, _MAP_INFO_BYTES, f"look at map {self.name}")

    def pin(self, path: Path) -> None:
        """Keep it alive at ``path``, on a bpffs."""
        check(libbpf().bpf_obj_pin(self.fd, os.fsencode(path)), f"pin map {self.name} at {path}")

    def close(self) -> None:
        """Give back the descriptor if it is ours. Idempotent."""
        if self._owned and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _key(self, key: bytes) -> bytes:
        if len(key) != self.key_bytes:
            raise ValueError(f"map {self.name} takes keys of {self.key_bytes} bytes, not {len(key)}")
        return key


def open_pinned_map(path: Path) -> BpfMap:
    """Return the map pinned at ``path``.

    Raises:
        KernelError: There is none, or it may not be used.
    """
    return _opened(check(libbpf().bpf_obj_get(os.fsencode(path)), f"open {path}"), path.name)


def _opened(fd: int, name: str) -> BpfMap:
    info, size = c.create_string_buffer(_MAP_INFO_BYTES), c.c_uint32(_MAP_INFO_BYTES)
    check(libbpf().bpf_obj_get_info_by_fd(fd, info, c.byref(size)), f"look at map {name}")
    map_type, _, key_bytes, value_bytes = struct.unpack_from("=IIII", info.raw)
    return BpfMap(fd, map_type, key_bytes, value_bytes, name=name, owned=True)


def _id_of(fd: int, info_bytes: int, operation: str) -> int:
    info, size = c.create_string_buffer(info_bytes), c.c_uint32(info_bytes)
    check(libbpf().bpf_obj_get_info_by_fd(fd, info, c.byref(size)), operation)
    number: int = struct.unpack_from("=I", info.raw, 4)[0]
    return number


class Link:
    """One attachment of a program. Destroying it detaches the program, unless the link is pinned."""

    def __init__(self, pointer: int, what: str) -> None:
        self._pointer, self._what = pointer, what

    def pin(self, path: Path) -> None:
        """Keep the program attached after this process, until ``path`` (on a bpffs) is removed."""
        check(libbpf().bpf_link__pin(self._pointer, os.fsencode(path)), f"pin {self._what} at {path}")

    def unpin(self) -> None:
        """Undo ``pin``."""
        check(libbpf().bpf_link__unpin(self._pointer), f"unpin {self._what}")

    @property
    def fd(self) -> int:
        """Its descriptor, borrowed."""
        return check(libbpf().bpf_link__fd(self._pointer), f"descriptor of {self._what}")

    def close(self) -> None:
        """Detach. Idempotent."""
        if self._pointer:
            libbpf().bpf_link__destroy(self._pointer)
            self._pointer = 0


class Program:
    """One loaded program of an object."""

    def __init__(self, pointer: int, name: str, keep: Callable[[Link], None]) -> None:
        self._pointer, self.name, self._keep = pointer, name, keep

    @property
    def fd(self) -> int:
        """Its descriptor, borrowed; an error before load or when autoload was off."""
        return check(libbpf().bpf_program__fd(self._pointer), f"descriptor of {self.name}")

    @property
    def id(self) -> int:
        """The kernel's number of it."""
        return _id_of(self.fd, _PROG_INFO_BYTES, f"look at {self.name}")

    def attach(self) -> Link:
        """Attach it where its section says: tracepoint, raw tracepoint, LSM hook, uprobe."""
        return self._linked(libbpf().bpf_program__attach(self._pointer), "")

    def attach_cgroup(self, directory: Path) -> Link:
        """Attach it to a cgroup v2 directory, beside programs of others."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return self._linked(libbpf().bpf_program__attach_cgroup(self._pointer, fd), f" to {directory}")
        finally:
            os.close(fd)

    def run(self) -> int:
        """Run it once, here and now, and return what it returned. For programs of type ``syscall``.

        Raises:
            KernelError: It cannot be run like this.
        """
        options = c.create_string_buffer(_TEST_RUN_OPTS.pack(_TEST_RUN_OPTS.size, *[0] * 14), _TEST_RUN_OPTS.size)
        check(libbpf().bpf_prog_test_run_opts(self.fd, options), f"run {self.name}")
        return int(_TEST_RUN_OPTS.unpack(options.raw)[9])

    def run_stats(self) -> tuple[int, int]:
        """Return (nanoseconds, runs) since load, counted while somebody holds ``enabled_stats``."""
        info, size = c.create_string_buffer(_PROG_INFO_BYTES), c.c_uint32(_PROG_INFO_BYTES)
        check(libbpf().bpf_obj_get_info_by_fd(self.fd, info, c.byref(size)), f"look at {self.name}")
        ns, runs = struct.unpack_from("=QQ", info.raw, _RUN_TIME_AT)
        return ns, runs

    def _linked(self, pointer: int | None, where: str) -> Link:
        check(pointer, f"attach {self.name}{where}")
        link = Link(pointer or 0, self.name)
        self._keep(link)
        return link


@contextlib.contextmanager
def enabled_stats() -> Iterator[None]:
    """Have the kernel count runs and run time of all programs meanwhile."""
    fd = check(libbpf().bpf_enable_stats(0), "count run times")
    try:
        yield
    finally:
        os.close(fd)


class Object:
    """One BPF object: opened, adjusted, loaded, attached, closed; in this order. Also a context manager.

    Args:
        source: Path of the object, or its bytes.

    Raises:
        KernelError: It is not a BPF object.
    """

    def __init__(self, source: Path | bytes) -> None:
        self._name = source.name if isinstance(source, Path) else "object"
        self._bytes = source.read_bytes() if isinstance(source, Path) else source
        recent_log(clear=True)
        self._pointer: Any = self._check(libbpf().bpf_object__open_mem(self._bytes, len(self._bytes), None), f"open {self._name}")
        self._links: list[Link] = []
        self._program_pointers = dict(self._each(libbpf().bpf_object__next_program, libbpf().bpf_program__name))
        self._map_pointers = dict(self._each(libbpf().bpf_object__next_map, libbpf().bpf_map__name))
        self.maps: dict[str, BpfMap] = {}
        self.programs: dict[str, Program] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # ---- before load ---------------------------------------------------------------------------------------------------
    def autoload(self, names: Iterable[str]) -> None:
        """Load these programs and no others.

        Raises:
            KeyError: It has no such program.
        """
        wanted = set(names)
        if missing := wanted - self._program_pointers.keys():
            raise KeyError(f"{self._name} has no program {', '.join(sorted(missing))}")
        for name, pointer in self._program_pointers.items():
            check(libbpf().bpf_program__set_autoload(pointer, name in wanted), f"choose {name}")

    def enable(self, name: str) -> None:
        """Load also the program ``name``, whose section begins with ``?``: one that not every kernel has a hook for."""
        check(libbpf().bpf_program__set_autoload(self._program_pointers[name], True), f"choose {name}")

    def set_max_entries(self, name: str, count: int) -> None:
        """Give the map ``name`` another size."""
        check(libbpf().bpf_map__set_max_entries(self._map_pointers[name], count), f"resize map {name}")

    def reuse_map(self, name: str, existing: BpfMap) -> None:
        """Use a map that exists instead of making ``name``: how objects share maps.

        Raises:
            KernelError: Its type or sizes differ.
        """
        check(libbpf().bpf_map__reuse_fd(self._map_pointers[name], existing.fd), f"share map {name} with {self._name}")

    @property
    def map_names(self) -> frozenset[str]:
        """Names of its maps, those of libbpf's own (data sections) left out."""
        return frozenset(name for name in self._map_pointers if "." not in name)

    @property
    def program_names(self) -> tuple[str, ...]:
        """Names of its programs."""
        return tuple(self._program_pointers)

    def set_rodata(self, values: Mapping[str, bytes]) -> None:
        """Set ``const volatile`` variables by name; the verifier then treats them as constants.

        Raises:
            KeyError: It has no such variable.
            ValueError: A value has another size than its variable.
        """
        pointer = next(p for name, p in self._map_pointers.items() if name.endswith(".rodata"))
        size = c.c_size_t()
        base = check(libbpf().bpf_map__initial_value(pointer, c.byref(size)), f"read-only data of {self._name}")
        variables = self._variables(".rodata")
        for name, value in values.items():
            offset, length = variables[name]
            if len(value) != length:
                raise ValueError(f"{name} takes {length} bytes, not {len(value)}")
            c.memmove(base + offset, value, length)

    def _variables(self, section: str) -> dict[str, tuple[int, int]]:
        """Return name → (offset, size) of the variables in a data section. From BTF: compilers reorder variables."""
        btf = libbpf().bpf_object__btf(self._pointer)
        at = self._btf_type(btf, check(libbpf().btf__find_by_name_kind(btf, section.encode(), _BTF_KIND_DATASEC), section))
        count = _BTF_TYPE.unpack(c.string_at(at, _BTF_TYPE.size))[1] & 0xFFFF
        found = {}
        for raw in _VAR_SECINFO.iter_unpack(c.string_at(at + _BTF_TYPE.size, count * _VAR_SECINFO.size)):
            type_id, offset, size = raw
            name_offset = _BTF_TYPE.unpack(c.string_at(self._btf_type(btf, type_id), _BTF_TYPE.size))[0]
            found[libbpf().btf__name_by_offset(btf, name_offset).decode()] = (offset, size)
        return found

    def _btf_type(self, btf: int, type_id: int) -> int:
        return check(libbpf().btf__type_by_id(btf, type_id), f"type {type_id} of {self._name}")

    # ---- load and after ------------------------------------------------------------------------------------------------
    def load(self) -> Self:
        """Load all chosen programs and make all maps; returns itself.

        Raises:
            KernelError: The kernel refused; ``hint`` holds the last lines of the verifier or of libbpf.
        """
        recent_log(clear=True)
        self._check(libbpf().bpf_object__load(self._pointer), f"load {self._name}")
        for name, pointer in self._map_pointers.items():
            sizes = libbpf().bpf_map__key_size(pointer), libbpf().bpf_map__value_size(pointer)
            self.maps[name] = BpfMap(libbpf().bpf_map__fd(pointer), libbpf().bpf_map__type(pointer), *sizes, name=name)
        self.programs = {name: Program(p, name, self._links.append) for name, p in self._program_pointers.items()}
        return self

    def pin_map(self, name: str, path: Path) -> None:
        """Keep the map ``name`` alive at ``path``, on a bpffs."""
        check(libbpf().bpf_map__pin(self._map_pointers[name], os.fsencode(path)), f"pin map {name} at {path}")

    def unpin_map(self, name: str, path: Path) -> None:
        """Undo ``pin_map``."""
        check(libbpf().bpf_map__unpin(self._map_pointers[name], os.fsencode(path)), f"unpin map {name}")

    def detach(self) -> None:
        """Detach all programs, leaving maps as they are. Idempotent."""
        for link in self._links:
            link.close()
        self._links.clear()

    def close(self) -> None:
        """Detach and free everything. Idempotent."""
        self.detach()
        if self._pointer:
            libbpf().bpf_object__close(self._pointer)
            self._pointer = None

    def _each(self, following: Callable[[Any, Any], Any], name: Callable[[Any], bytes]) -> Iterator[tuple[str, int]]:
        pointer = following(self._pointer, None)
        while pointer:
            yield name(pointer).decode(), pointer
            pointer = following(self._pointer, pointer)

    def _check(self, result: int | None, operation: str) -> int:
        try:
            return check(result, operation)
        except KernelError as err:
            raise KernelError(err.errno or errno.EINVAL, operation, hint=recent_log()) from None
