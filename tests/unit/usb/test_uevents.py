"""Messages about USB devices are understood; whatever else comes is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from garrison.minion.enforcers.usb.uevents import Uevent, decode_uevent

PATH = b"/devices/pci0000:00/0000:00:0a.0/usb1/1-1/1-1.4"


def message(action=b"add", path=PATH, **fields) -> bytes:
    said = {"ACTION": action, "DEVPATH": path, "SUBSYSTEM": b"usb", "DEVTYPE": b"usb_device", "PRODUCT": b"46f4/1/0", **fields}
    lines = [key.encode() + b"=" + value for key, value in said.items()]
    return b"\0".join([action + b"@" + path, *lines, b""])


def test_device_that_comes_and_goes_is_named_by_its_place():
    assert decode_uevent(message()) == Uevent("1-1.4")
    assert decode_uevent(message(b"remove")) == Uevent("1-1.4", gone=True)
    assert decode_uevent(message(path=b"/devices/x/usb12")) == Uevent("usb12")


def test_interface_is_news_of_its_device_and_its_end_is_not_the_devices():
    assert decode_uevent(message(path=PATH + b"/1-1.4:1.0", DEVTYPE=b"usb_interface")) == Uevent("1-1.4")
    assert decode_uevent(message(b"remove", PATH + b"/1-1.4:1.0", DEVTYPE=b"usb_interface")) == Uevent("1-1.4")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\0",
        b"libudev\0\xfe\xed\xca\xfe",
        message(SUBSYSTEM=b"block"),
        message(SUBSYSTEM=b"usbmisc"),
        message(DEVTYPE=b"usb_interface"),
        message(path=PATH + b"/1-1.4:1.0"),
        message(path=b"/devices/../../etc/passwd"),
        message(path=b"/devices/1-1/.."),
        message(path=b"/devices/1-1.4\n"),
        message(path=b"/devices/1-1.4.1.1.1.1.1.1"),
        message(path="/devices/\u0661-\u0661".encode()),
        message(path=b"1-99999"),
        b"add@/devices/1-2" + message()[message().index(b"\0") :],
        message()[:20],
    ],
)
def test_what_does_not_have_the_shape_of_a_device_is_not_one(raw):
    assert decode_uevent(raw) is None


@given(st.binary(max_size=300) | st.builds(lambda path: message(path=path), st.binary(max_size=80)))
def test_any_bytes_give_a_plain_name_or_nothing(raw):
    uevent = decode_uevent(raw)

    assert uevent is None or set(uevent.device) <= set("usb0123456789-.")
