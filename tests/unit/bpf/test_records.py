"""What comes from the kernel is shown whole, or marked as cut; never as something shorter."""

from hypothesis import given
from hypothesis import strategies as st

from garrison.bpf.cgroups import container_of, unit_of
from garrison.bpf.records import CUT, cut_args, decode_names
from garrison.common import limits

words = st.binary(min_size=1, max_size=30).filter(lambda w: b"\0" not in w and b"/" not in w)


@given(st.lists(words, max_size=8))
def test_components_from_the_leaf_up_become_the_path(parts):
    raw = b"".join(part + b"\0" for part in reversed(parts))

    path, complete = decode_names(raw.ljust(400, b"\xee"), len(raw))

    assert complete
    assert path == "/" + "/".join(part.decode("utf-8", "replace") for part in parts)


def test_path_that_was_cut_is_marked_and_not_absolute():
    assert decode_names(b"nc\0bin\0", -1 - 7) == (f"{CUT}/bin/nc", False)
    assert decode_names(b"", -1) == ("", False)


def test_arguments_are_kept_as_they_are():
    raw = b"/usr/bin/id\0-u\0\0root\0"

    assert cut_args(raw, len(raw)) == (("/usr/bin/id", "-u", "", "root"), True)


def test_long_arguments_and_many_arguments_are_cut_and_marked():
    raw = b"a\0" + b"x" * (limits.EVENT_ARG_MAX_CHARS + 1) + b"\0"
    args, whole = cut_args(raw, len(raw))
    many, all_of_many = cut_args(b"a\0" * 100, 200)

    assert (len(args[1]), args[1].endswith(CUT), whole) == (limits.EVENT_ARG_MAX_CHARS, True, False)
    assert (len(many), many[-1], all_of_many) == (limits.EVENT_ARGS_MAX, CUT, False)


def test_what_the_kernel_did_not_copy_is_marked():
    args, whole = cut_args(b"tar\0-c\0", 4000)

    assert (args, whole) == (("tar", "-c", CUT), False)


@given(st.binary(max_size=3000), st.integers(0, 5000))
def test_arguments_always_fit_the_limits(raw, total):
    args, _ = cut_args(raw, total)

    assert len(args) <= limits.EVENT_ARGS_MAX
    assert all(len(arg) <= limits.EVENT_ARG_MAX_CHARS for arg in args)


def test_unit_and_container_are_read_from_the_cgroup():
    box = "ab12" * 16

    assert unit_of("/system.slice/ssh.service") == "ssh.service"
    assert unit_of("/user.slice/user-0.slice/user@0.service/app.slice/x.scope") == "x.scope"
    assert unit_of("/edge-1") == "/edge-1"
    assert unit_of("/") == ""
    assert container_of(f"/system.slice/docker-{box}.scope") == box
    assert container_of("/system.slice/ssh.service") == ""
