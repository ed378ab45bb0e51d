"""Containers of the tests' own, as a runtime makes them: a cgroup, and namespaces in which php-fpm has own files."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from fpm import SCRIPTS, Fpm
from machine import lacking

# Where every container sees its site.
INSIDE = "/var/www/html"
SCRIPT = f"{INSIDE}/hello.php"
# The arguments: the cgroup's list of processes, the site, its place, and php-fpm's command.
_ENTER = (
    'if [ -n "$1" ]; then echo $$ > "$1"; fi; hostname "$2"; mount -t tmpfs tmpfs /var;'
    ' mkdir -p "$4" && mount --bind "$3" "$4" && shift 4 && exec "$@"'
)


def _hierarchy() -> Path:
    """A folder in which a cgroup can be made: version 2, or the hierarchy of processes of version 1."""
    root = Path("/sys/fs/cgroup")
    return root if (root / "cgroup.procs").exists() else root / "pids"


@contextlib.contextmanager
def cgroup(path: str) -> Iterator[Path]:
    """Make a cgroup, and those above it that are not there; removed afterwards. Yields its list of processes."""
    made: list[Path] = []
    folder = _hierarchy()
    try:
        for part in path.strip("/").split("/"):
            folder /= part
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
    except OSError as exc:
        lacking(f"no cgroup can be made in {folder.parent} ({exc.strerror}). Run as root, with cgroups mounted.")
    try:
        yield folder / "cgroup.procs"
    finally:
        for folder in reversed(made):
            folder.rmdir()


class Container:
    """A php-fpm with namespaces of its own, in a cgroup. `name` is its host name."""

    def __init__(self, fpm: Fpm, name: str, container_id: str, cgroup_path: str) -> None:
        self.fpm, self.name, self.id, self.cgroup = fpm, name, container_id, cgroup_path

    def get(self, number: int, script: str = SCRIPT) -> None:
        """Run that many requests of the script, which has one path in every container."""
        for _ in range(number):
            assert self.fpm.get("hello.php", SCRIPT_FILENAME=script).ended


@contextlib.contextmanager
def container(php_fpm: str, name: str, pools: dict[str, str], cgroup_path: str | None = None) -> Iterator[Container]:
    """Start a php-fpm in a container of that host name.

    `cgroup_path`: the cgroup to make for it; by default that of Docker for a new container, "" for the tests' own.
    """
    container_id = uuid.uuid4().hex + uuid.uuid4().hex
    path = f"/phptrace-test/docker-{container_id}.scope" if cgroup_path is None else cgroup_path
    with contextlib.ExitStack() as undo:
        processes = str(undo.enter_context(cgroup(path))) if path else ""
        site = Path(tempfile.mkdtemp(prefix="phptrace-test."))
        undo.callback(shutil.rmtree, site)
        site.chmod(0o755)
        shutil.copytree(SCRIPTS, site, dirs_exist_ok=True)
        unshare = shutil.which("unshare")
        if unshare is None or subprocess.run([unshare, "--mount", "--uts", "true"], capture_output=True).returncode:
            lacking("this process may not make namespaces. Run as root, with util-linux.")
        prefix = (unshare, "--mount", "--uts", "sh", "-c", _ENTER, "sh", processes, name, str(site), INSIDE)
        fpm = Fpm(php_fpm, site, pools, prefix=prefix)
        undo.callback(fpm.stop)
        yield Container(fpm, name, container_id, path)
