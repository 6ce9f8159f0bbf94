"""Descriptors of devices are read whole or said not to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.usb import KEYBOARD, STICK, descriptors
from garrison.common.policy.devices import DeviceFunction
from garrison.minion.enforcers.usb.descriptors import read_descriptors
from garrison.minion.enforcers.usb.sysfs import escaped


def test_every_interface_counts_once():
    said = read_descriptors(descriptors(STICK, KEYBOARD, STICK, vendor=0x46F4, product=1))

    assert said.functions == (DeviceFunction(*KEYBOARD), DeviceFunction(*STICK))
    assert (said.vendor, said.product, said.whole) == (0x46F4, 1, True)


def test_interfaces_of_further_configurations_count():
    raw = descriptors(KEYBOARD) + descriptors(STICK)[18:]

    assert DeviceFunction(*STICK) in read_descriptors(raw).functions


def test_device_has_a_function_of_its_own_unless_it_leaves_that_to_interfaces():
    assert read_descriptors(descriptors((9, 0, 0), device=(9, 0, 1))).functions[1] == DeviceFunction(9, 0, 1, whole=True)
    assert not any(one.whole for one in read_descriptors(descriptors(STICK)).functions)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        descriptors(STICK)[:17],
        b"\x12\x02" + descriptors(STICK)[2:],
        descriptors(STICK)[:-1],
        descriptors(STICK) + b"\x00\x04",
        descriptors(STICK) + b"\x01\x04",
        descriptors(STICK) + b"\xff\x04",
        descriptors(STICK) + b"\x09",
    ],
)
def test_what_does_not_add_up_is_not_whole(raw):
    assert not read_descriptors(raw).whole


def test_flood_of_functions_is_not_whole():
    flood = [(class_, subclass, 0) for class_ in range(1, 11) for subclass in range(100)]

    said = read_descriptors(descriptors(*flood[:255])), read_descriptors(descriptors(*flood))

    assert (said[0].whole, said[1].whole, len(said[1].functions)) == (True, False, 256)


@given(st.binary(max_size=400) | st.binary(max_size=100).map(lambda rest: descriptors(STICK) + rest))
def test_any_bytes_are_read(raw):
    assert len(read_descriptors(raw).functions) <= 257


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"Keyboard \xc3\xa9\n", "Keyboard é"),
        (b"a\nb\x1b[2J\0", "a\\nb\\x1b[2J\\x00"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        (b"\\n \xff", "\\\\n \\\\xff"),
        (b"x" * 500, "x" * 128),
    ],
)
def test_strings_of_a_device_are_one_printable_line(raw, text):
    assert escaped(raw) == text


@given(st.binary(max_size=300))
def test_no_string_of_a_device_can_do_more(raw):
    assert escaped(raw).isprintable()
