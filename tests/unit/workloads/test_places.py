"""A path in the cgroup tree says which user, unit and container it belongs to."""

from __future__ import annotations

import pytest

from garrison.minion.workloads.places import ROOT, descends, place_of, slice_path

BOX = "0123456789abcdef" * 4
POD = "fedcba9876543210" * 4
KUBE = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"


@pytest.mark.parametrize(
    ("path", "uid", "unit", "container"),
    [
        ("/system.slice/nginx.service", ROOT, "nginx.service", ""),
        ("/system.slice/system-getty.slice/getty@tty1.service", ROOT, "getty@tty1.service", ""),
        ("/init.scope", ROOT, "init.scope", ""),
        (f"/system.slice/docker-{BOX}.scope", ROOT, "", BOX),
        (f"/docker/{BOX}", ROOT, "", BOX),
        (f"/machine.slice/libpod-{BOX}.scope", ROOT, "", BOX),
        (f"/machine.slice/machine-libpod_pod_{POD}.slice/libpod-{BOX}.scope", ROOT, "", BOX),
        (f"/machine.slice/libpod-conmon-{BOX}.scope", ROOT, "", ""),
        (f"/libpod_parent/{POD}", ROOT, "", ""),
        (f"/libpod_parent/{POD}/{BOX}", ROOT, "", BOX),
        (f"/libpod_parent/libpod-{BOX}", ROOT, "", BOX),
        (f"/system.slice/web.service/libpod-payload-{BOX}", ROOT, "web.service", BOX),
        (f"{KUBE}/cri-containerd-{BOX}.scope", ROOT, "", BOX),
        (f"/kubepods/besteffort/pod1-2/{BOX}", ROOT, "", BOX),
        ("/default/redis", ROOT, "", "redis"),
        ("/default/other", ROOT, "", ""),
        ("/user.slice/user-1000.slice", 1000, "", ""),
        ("/user.slice/user-1000.slice/session-3.scope", 1000, "", ""),
        ("/user.slice/user-1000.slice/user@1000.service", 1000, "", ""),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", 1000, "", ""),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", 1000, "x.service", ""),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{BOX}.scope", 1000, "", BOX),
    ],
)
def test_path_names_what_runs_there(path: str, uid: int, unit: str, container: str) -> None:
    place = place_of(path, lambda namespace, name: (namespace, name) == ("default", "redis"))

    assert (place.uid, place.unit, place.container, place.inside) == (uid, unit, container, False)


@pytest.mark.parametrize(
    "path",
    [f"/machine.slice/libpod-{BOX}.scope/container", f"/docker/{BOX}/docker/{POD}", "/system.slice/web.service/worker"],
)
def test_what_a_workload_makes_below_itself_is_its_own(path: str) -> None:
    assert place_of(path).inside
    assert not descends(path, place_of(path))


def test_a_user_cannot_make_a_directory_count_as_another_users() -> None:
    """Whoever has a delegated cgroup may give directories in it any name."""
    for path in (
        "/user.slice/user-1000.slice/user@1000.service/user.slice/user-0.slice",
        "/user.slice/user-1000.slice/user@1000.service/user-0.slice/x.service",
    ):
        assert place_of(path).uid == 1000
    assert place_of("/elsewhere/user-0.slice").uid == ROOT


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ("user-1000.slice", "/user.slice/user-1000.slice"),
        ("-.slice", ""),
        ("a/../b.slice", ""),
        ("-a.slice", ""),
        ("a.service", ""),
    ],
)
def test_slices_are_inside_one_another_by_their_names(name: str, path: str) -> None:
    assert slice_path(name) == path
