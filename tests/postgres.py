"""A real PostgreSQL for the tests; and each process of pytest is a machine of its own to the graders. A plugin of conftest.py."""

from __future__ import annotations

import multiprocessing.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

USER = "nobody" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root


@pytest.fixture(scope="session", autouse=True)
def a_machine_of_its_own() -> Iterator[None]:
    """One `grade` works on a machine at a time, and by the folder for temporary files they know which one it is."""
    multiprocessing.util.get_temp_dir()  # which it keeps until after the last test
    folder = tempfile.mkdtemp(prefix="convsprint-tests-")
    os.chmod(folder, 0o755)  # submissions run below it, as other users
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"], tempfile.tempdir = folder, None
    yield
    os.environ.pop("TMPDIR")
    if before is not None:
        os.environ["TMPDIR"] = before
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)


class Server:
    """A PostgreSQL server in a temporary folder, run by an ordinary user. Over TCP it asks for passwords."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # the path of a socket must be short
        if USER:
            shutil.chown(self.folder, USER)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", "data", "-U", "owner", "-E", "UTF8", "--no-locale", "--no-sync", "-A", "trust")
        (self.folder / "data" / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        self.count = 0
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        command = [self.programs / program, *arguments]
        subprocess.run(command, cwd=self.folder, user=USER, check=True, stdout=subprocess.DEVNULL, timeout=120)

    def start(self) -> None:
        options = f"-k {self.folder} -h 127.0.0.1 -p {self.port} -F -c max_connections=60"
        self._run("pg_ctl", "start", "-w", "-D", "data", "-l", "log", "-o", options)

    def stop(self) -> None:
        """As at a restart of the machine: nobody is waited for."""
        self._run("pg_ctl", "stop", "-w", "-D", "data", "-m", "immediate")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def address(self, database: str, user: str = "owner") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def schema(self) -> str:
        """The address of a new, empty schema, which for a store is as good as a database and quicker made and removed."""
        self.count += 1
        self.execute("postgres", f"CREATE SCHEMA s{self.count}")
        return self.address("postgres") + f"&options=-csearch_path%3Ds{self.count}"

    def execute(self, address: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run the statements where the address, or the name of a database, points to; the rows of the last one."""
        import psycopg

        address = address if "://" in address else self.address(address)
        with psycopg.connect(address, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def end_connections(self, address: str) -> int:
        """End all other connections to a database, as a broken network does; returns how many there were."""
        ended = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return len(self.execute(address, ended))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="requirements-postgres.txt is not installed")
    found = shutil.which("initdb") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed (Debian, Ubuntu: apt install postgresql)")
    server = Server(Path(found).resolve().parent)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store may be made, of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "deep" / "store.sqlite")
    return request.getfixturevalue("postgres").schema()
