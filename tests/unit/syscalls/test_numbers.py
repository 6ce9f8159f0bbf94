"""Numbers of system calls are the kernel's, and what is said of their arguments names calls that exist."""

from __future__ import annotations

import platform
import re
import subprocess
from pathlib import Path

import pytest

from garrison.minion.enforcers.syscalls.numbers import CALLS_MAX, NUMBERS
from garrison.minion.enforcers.syscalls.shapes import KEEPS_LINK, OFTEN, SHAPE_BYTES, SHAPES, encode_shape

ALL = set().union(*NUMBERS.values())
HEADERS = [
    p for p in (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")) if p.is_file()
]


@pytest.mark.skipif(platform.machine() != "x86_64" or not HEADERS, reason="needs the kernel headers of x86_64")
def test_numbers_of_x86_64_are_those_of_the_kernel_headers():
    said = dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADERS[0].read_text()))
    known = NUMBERS["x86_64"]

    assert {name: known.get(name) for name in said if int(said[name]) <= 450} == {
        name: int(number) for name, number in said.items() if int(number) <= 450
    }
    assert all(known[name] == int(number) for name, number in said.items() if name in known)


@pytest.mark.skipif(not Path("/usr/include/asm-generic/unistd.h").is_file(), reason="needs the kernel headers")
def test_numbers_of_aarch64_are_those_of_the_kernel_headers():
    switches = [f"-D__ARCH_WANT_{what}" for what in ("RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "SYS_CLONE3", "MEMFD_SECRET")]
    source = "#define __BITS_PER_LONG 64\n#include <asm-generic/unistd.h>\n"
    argv = ["gcc", "-E", "-dD", "-D__BITS_PER_LONG=64", *switches, "-"]
    macros = subprocess.run(argv, input=source, check=True, capture_output=True, text=True).stdout
    said = dict(re.findall(r"#define (__NR(?:3264)?_\w+) (\w+)", macros))
    numbers = {name.removeprefix("__NR_"): said.get(value, value) for name, value in said.items() if name.startswith("__NR_")}
    numbers = {
        name: int(value)
        for name, value in numbers.items()
        if value.isdigit() and name not in {"syscalls", "arch_specific_syscall"}
    }

    known = NUMBERS["aarch64"]
    assert len(numbers) > 300
    assert {name: known.get(name) for name, number in numbers.items() if number <= 450} == {
        name: number for name, number in numbers.items() if number <= 450
    }


def test_both_machines_have_the_same_numbers_from_424_on():
    shared = {name: number for name, number in NUMBERS["x86_64"].items() if number >= 424}
    assert {name: NUMBERS["aarch64"].get(name) for name in shared} == shared


def test_every_number_fits_the_kernel_half():
    for numbers in NUMBERS.values():
        assert max(numbers.values()) < CALLS_MAX
        assert len(set(numbers.values())) == len(numbers)


def test_shapes_speak_of_calls_that_exist():
    assert set(SHAPES) <= ALL
    assert ALL >= KEEPS_LINK
    assert set(SHAPES) >= OFTEN


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("getpid", b"\0\0\xff\xff\xff\xff\0\0"),
        ("unlinkat", b"\1\0\0\1\xff\xff\0\0"),
        ("renameat2", b"\2\0\0\1\2\3\0\0"),
        ("fchmod", b"\1\0\0\xff\xff\xff\0\0"),
        ("exit_group", b"\0\1\xff\xff\xff\xff\0\0"),
        ("execveat", b"\1\2\0\1\xff\xff\0\0"),
    ],
)
def test_shape_is_what_the_program_reads(name, raw):
    assert len(raw) == SHAPE_BYTES
    assert encode_shape(name) == raw
