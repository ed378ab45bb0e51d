"""Containers from the cgroups of a process, and their names from what runtimes keep: all of it is untrusted."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import PROPERTY

from tracer.targets import containers
from tracer.targets.containers import Surroundings, cgroup_path, surroundings

ID, OTHER_ID = "3f2a91b04c77" + "5d" * 26, "77" * 32
POD = "kubepods-besteffort-pod6f1c.slice"
TASK = "0a1b2c3d" * 4 + "-1234567890"


def container_of(path: str) -> tuple[str | None, str | None]:
    """(id, name) of the container that a cgroup is in, by its path alone."""
    found = containers._container(path)
    return (None, None) if found is None else (found.container_id, found.name)


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{ID}",
        f"/system.slice/docker-{ID}.scope",
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
        f"/docker/{ID}/system.slice/php8.2-fpm.service",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/libpod_parent/libpod-{ID}",
        f"/kubepods.slice/kubepods-besteffort.slice/{POD}/crio-{ID}.scope",
        f"/kubepods.slice/kubepods-besteffort.slice/{POD}/cri-containerd-{ID}.scope",
        f"/kubepods/besteffort/pod6f1c/{ID}",
        f"/system.slice/containerd.service/{POD}:cri-containerd:{ID}",
        f"/system.slice/nerdctl-{ID}.scope",
        f"/../../docker/{ID}",
        f"/ecs/task/{ID}",
    ],
)
def test_a_cgroup_of_a_runtime_has_the_id_of_its_container(path):
    assert container_of(path) == (ID, None)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/lxc/web/system.slice", (None, "web")),
        ("/lxc.payload.web/init.scope", (None, "web")),
        ("/machine.slice/systemd-nspawn@web.service/payload", (None, "web")),
        ("/machine.slice/machine-web\\x2dshop.scope", (None, "web-shop")),
        (f"/ecs/0a1b/{TASK}", (TASK, None)),
    ],
)
def test_a_machine_and_a_task_are_named_by_their_cgroup(path, found):
    assert container_of(path) == found


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/system.slice/php8.2-fpm.service",
        "/user.slice/user-0.slice/session-3.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/kubepods.slice/crio-conmon-{ID}.scope",
        "/lxc.monitor.web",
        f"/docker/{ID[:-1]}",
        f"/docker/{ID}0",
        f"/docker/{ID.upper()}",
        f"/process/{'0a1b2c3d' * 4}",
    ],
)
def test_other_cgroups_are_not_containers(path):
    assert container_of(path) == (None, None)


def test_a_process_in_a_container_cannot_name_another_one_by_a_cgroup_of_its_own():
    assert container_of(f"/docker/{ID}/docker-{OTHER_ID}.scope") == (ID, None)


def named(top: Path, container_id: str = ID) -> tuple[str | None, str]:
    return containers._name_in_files(container_id, str(top))


def stored(top: Path, path: str, content: object) -> Path:
    """A file of a runtime: JSON, or the bytes as they are."""
    file = top / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


DOCKER = f"var/lib/docker/containers/{ID}/config.v2.json"
CRI = f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json"
CRIO = f"var/lib/containers/storage/overlay-containers/{ID}/userdata/config.json"


@pytest.mark.parametrize(
    ("path", "content", "name"),
    [
        (DOCKER, {"ID": ID, "Name": "/shop"}, "shop"),
        (CRI, {"annotations": {"io.kubernetes.cri.sandbox-namespace": "default",
                               "io.kubernetes.cri.sandbox-name": "shop-7d9f",
                               "io.kubernetes.cri.container-name": "php"}}, "default/shop-7d9f/php"),
        (CRIO, {"annotations": {"io.kubernetes.pod.namespace": "prod", "io.kubernetes.pod.name": "shop-0",
                                "io.kubernetes.container.name": "fpm"}}, "prod/shop-0/fpm"),
        (f"run/containerd/io.containerd.runtime.v2.task/default/{ID}/config.json",
         {"annotations": {"nerdctl/name": "blog"}}, "blog"),
        ("var/lib/containers/storage/overlay-containers/containers.json",
         [{"id": OTHER_ID, "names": ["other"]}, 7, {"id": ID, "names": ["shop", "alias"]}], "shop"),
    ],
    ids=["docker", "containerd", "CRI-O", "nerdctl", "podman"],
)  # fmt: skip
def test_a_runtime_keeps_the_name_of_a_container(tmp_path, path, content, name):
    stored(tmp_path, path, content)

    assert named(tmp_path) == (name, "")
    assert named(tmp_path, OTHER_ID)[0] in (None, "other")


def test_a_container_without_a_file_has_no_name_and_a_reason(tmp_path):
    assert named(tmp_path) == (None, "no file of Docker, podman, CRI-O or containerd has its name")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is malformed"),
        (b"\xff\xfe", "is malformed"),
        (b"[" * 100_000, "is malformed"),
        ({"Name": 7}, "no file of"),
        ({"Name": "/"}, "no file of"),
        ({"Name": "/" + "x" * 254}, "no file of"),
        (["/shop"], "no file of"),
        (7, "no file of"),
        (b'{"Name": "/shop", "x": "' + b"x" * (1 << 20) + b'"}', "it has more than 1,048,576 bytes"),
    ],
)
def test_a_file_that_has_no_name_is_no_reason_to_guess(tmp_path, content, why):
    stored(tmp_path, DOCKER, content)

    found, reason = named(tmp_path)
    assert found is None
    assert why in reason


def test_a_name_that_is_not_text_can_be_stored(tmp_path):
    stored(tmp_path, DOCKER, b'{"Name": "/a\\ud800b\\u001b"}')

    assert named(tmp_path) == ("a?b\x1b", "")


def test_a_link_is_not_followed_and_a_fifo_is_not_opened(tmp_path):
    secret = stored(tmp_path, "secret", {"Name": "/shop"})
    file = stored(tmp_path, DOCKER, {})
    file.unlink()
    file.symlink_to(secret)
    (tmp_path / CRI).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / CRI)

    found, reason = named(tmp_path)
    assert found is None
    assert f"/{DOCKER} cannot be read" in reason
    assert f"/{CRI} cannot be read (it is not a regular file)" in reason


def test_a_folder_that_is_a_link_is_not_followed(tmp_path):
    stored(tmp_path, f"elsewhere/{ID}/config.v2.json", {"Name": "/shop"})
    (tmp_path / "var/lib/docker/containers").mkdir(parents=True)
    (tmp_path / f"var/lib/docker/containers/{ID}").symlink_to(tmp_path / "elsewhere" / ID)

    found, reason = named(tmp_path)
    assert found is None
    assert f"/{DOCKER} cannot be read (Not a directory)" in reason


def test_the_folder_of_a_runtime_may_be_on_another_disk(tmp_path):
    stored(tmp_path, f"data/containers/{ID}/config.v2.json", {"Name": "/shop"})
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/docker").symlink_to(tmp_path / "data")

    assert named(tmp_path) == ("shop", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away. Run as root.")
def test_a_file_of_another_user_is_not_believed(tmp_path):
    os.chown(stored(tmp_path, DOCKER, {"Name": "/shop"}), 65534, 65534)

    found, reason = named(tmp_path)
    assert (found, reason) == (None, f"/{DOCKER} cannot be read (it belongs to another user)")


def test_this_process_shares_phptraces_own_namespaces_and_root():
    found = surroundings(os.getpid())

    assert found.namespaces is None
    assert found.cgroup is not None
    assert found.cgroup in found.cgroups
    assert containers.root_of(os.getpid()) == "/"


def test_nothing_is_known_of_a_process_that_has_ended():
    found = surroundings((1 << 22) + 1)  # more than the largest pid_max

    assert found == Surroundings(why="its cgroups cannot be read (No such file or directory)")
    assert (found.in_container, found.shown) == (False, "unknown")
    assert containers.root_of((1 << 22) + 1) is None


def in_namespaces(flags: int, host_name: bytes) -> tuple[Surroundings, str | None]:
    """The surroundings, and the host name, of a child in new namespaces."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.unshare(flags) == 0 and libc.sethostname(host_name, len(host_name)) == 0
        os.write(ready[1], b"1" if done else b"0")
        os.read(go[0], 1)
        os._exit(0)
    try:
        if os.read(ready[0], 1) != b"1":
            pytest.skip("this process may not make namespaces. Run as root.")
        return surroundings(pid), containers._host_name(pid)
    finally:
        os.write(go[1], b"1")
        os.waitpid(pid, 0)
        for descriptor in (*ready, *go):
            os.close(descriptor)


def test_a_process_in_other_namespaces_is_distinguished_by_them():
    new_mounts, new_uts = 0x00020000, 0x04000000  # CLONE_NEWNS, CLONE_NEWUTS: include/uapi/linux/sched.h
    before = os.uname().nodename

    found, host_name = in_namespaces(new_mounts | new_uts, b"blog")

    assert host_name == "blog"
    assert os.uname().nodename == before
    if not found.in_container and not (found.cgroup or "").endswith(".service"):
        assert found.namespaces is not None
        assert found.namespaces.startswith("mnt:")
        assert found.namespaces != f"mnt:{os.stat('/proc/self/ns/mnt').st_ino}"


@pytest.mark.parametrize(
    ("wanted", "is_it"),
    [("shop", True), (ID, True), (ID[:12], True), (ID[:13], True), (ID[:11], False), ("sho", False), ("", False),
     (OTHER_ID, False), (ID + "0", False)],
)  # fmt: skip
def test_a_container_is_found_by_its_name_or_twelve_characters_of_its_id(wanted, is_it):
    assert Surroundings(container_id=ID, name="shop").is_container(wanted) is is_it


@pytest.mark.parametrize(
    ("path", "inside"),
    [("/", True), ("/docker", True), ("/docker/", True), ("/docker/abc", True), ("/a", True), ("/dock", False),
     ("/docker/abc/d", False), ("/docker/ab", False)],
)  # fmt: skip
def test_a_process_is_in_its_cgroups_and_those_above(path, inside):
    found = Surroundings(cgroups=frozenset({"/docker/abc", "/a"}))

    assert found.is_in_cgroup(path) is inside


def test_a_cgroup_may_be_written_as_its_folder():
    assert cgroup_path("/docker/abc/") == "/docker/abc"
    assert cgroup_path("docker/abc") == "/docker/abc"
    assert cgroup_path("/sys/fs/cgroup") == "/"
    hierarchies = [path.name for path in Path("/sys/fs/cgroup").glob("*") if (path / "cgroup.procs").exists()]
    if os.path.exists("/sys/fs/cgroup/cgroup.procs"):
        assert cgroup_path("/sys/fs/cgroup/system.slice/x") == "/system.slice/x"
    elif hierarchies:
        assert cgroup_path(f"/sys/fs/cgroup/{hierarchies[0]}/docker/abc") == "/docker/abc"


_PART = st.sampled_from(
    ["docker", "..", "lxc", "lxc.payload", f"docker-{ID}.scope", ID, "", "a:b", "\udcff", "ecs", TASK]
)


@PROPERTY
@given(st.lists(st.one_of(_PART, st.text(max_size=80)), max_size=9))
def test_any_path_of_a_cgroup_is_read(parts):
    container_id, name = container_of("/" + "/".join(parts))

    assert container_id is None or container_id in parts or len(container_id) == 64
    assert name is None or name
