"""Where a store is: one SQLite file, or a PostgreSQL database. Here is what the two do differently; all else is in store.py.

Both tell whether the grader of a running submission is alive. Beside an SQLite file the kernel does: a grader locks one byte of
FILE.lock, and loses it when its process ends, however it ends. In PostgreSQL, whose graders are on other machines, it is the lease,
which a grader renews while it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    Engine,
    cast,
    create_engine,
    event,
    extract,
    func,
    inspect,
    literal,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from config import InputError
from course import schema
from course.text import printable

MAGIC = 0x436F6E76  # SQLite's application_id of a store, and the number of the lock under which one in PostgreSQL is made
LEASE = 60.0  # seconds after which a grader that has not been heard of counts as dead
SCHEMES = ("postgresql://", "postgres://")
# Of every connection: seconds and milliseconds after which a server, or here a grader, that has vanished is noticed.
CONNECTION = {
    "client_encoding": "utf8",
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
}
SESSION = "-c idle_in_transaction_session_timeout=60000 -c lock_timeout=60000"
LOST = ("08", "40", "57")  # classes of PostgreSQL's errors after which the same may work: connection, collision, shutdown
DISK_FULL = "53100"


def database(place: str | Path) -> SQLiteFile | PostgreSQL:
    """What `--store` names. Raises InputError where it can be none of the two, or not be opened."""
    if str(place).startswith(SCHEMES):
        return PostgreSQL(str(place))
    if "://" in str(place):
        raise InputError("a store is a file or postgresql://USER@HOST/DATABASE, and not at another kind of address")
    return SQLiteFile(Path(place))


class SQLiteFile:
    """A file for the processes of one machine, which its owner alone can read: it holds everybody's work."""

    lease = None

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self.locks = -1
        self.engine = create_engine("sqlite://", creator=self._connect, poolclass=QueuePool, hide_parameters=True)

        @event.listens_for(self.engine, "begin")
        def begin(connection: Connection) -> None:
            is_reader = connection.get_execution_options().get("reads_only")
            connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")  # a state that was told survives a power cut, too
        return connection

    @contextlib.contextmanager
    def opening(self, make: bool) -> Iterator[None]:
        """Open the file, or make it; until the end of the context no other process opens it."""
        if not make and not self.path.is_file():
            raise no_store(self.name)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self.locks = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"cannot open the store {self.path}: {error.strerror or error}") from error
        fcntl.lockf(self.locks, fcntl.LOCK_EX, 1, 0)  # while the journal changes SQLite refuses others instead of waiting
        with self.engine.connect() as connection:
            if not self._is_store(connection):
                connection.rollback()
                driver = connection.connection.driver_connection
                assert driver is not None  # it is open
                driver.execute("PRAGMA journal_mode = WAL")
        yield
        fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, 0)

    def _is_store(self, connection: Connection) -> bool:
        if connection.exec_driver_sql("PRAGMA application_id").scalar() == MAGIC:
            return True
        if connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar():
            raise InputError(f"{self.path} is a database, but not a store of submissions")
        return False

    def is_store(self, connection: Connection) -> bool:
        """Whether a store is there; where not, this will be one. Raises InputError where it is something else."""
        found = self._is_store(connection)
        connection.exec_driver_sql(f"PRAGMA application_id = {MAGIC}")
        return found

    def now(self) -> ColumnElement[float]:
        return literal(time.time())

    def may_have_died(self) -> ColumnElement[bool]:
        """Whether the grader of a running submission may be dead: then `hold` decides."""
        return literal(True)

    def hold(self, number: int) -> bool:
        """Take the lock of a submission, unless another process has it."""
        try:
            fcntl.lockf(self.locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, number: int) -> None:
        fcntl.lockf(self.locks, fcntl.LOCK_UN, 1, number)

    def one_at_a_time(self, connection: Connection, what: str) -> None:
        """Wait for other transactions about the same: a transaction here is alone anyway."""

    def is_lost(self, error: DBAPIError) -> bool:
        return False

    def problem(self, error: DBAPIError) -> str:
        """What has gone wrong, in a line; all that was written before is kept."""
        what = printable(str(error.orig))
        if "disk is full" in what or ("disk I/O" in what and shutil.disk_usage(self.path.parent).free < 1 << 20):
            return f"the disk is full: {self.path} is as it was before; make room and start again"
        if isinstance(error.orig, sqlite3.OperationalError):
            return f"cannot use the store {self.path}: {what}"
        return f"{self.path} is not a store of submissions, or is damaged: {what}"

    def close(self) -> None:
        self.engine.dispose()
        if self.locks >= 0:
            os.close(self.locks)
            self.locks = -1


class PostgreSQL:
    """A database, for processes of many machines. Its address may hold a password, so no message shows more of it than `name`."""

    def __init__(self, address: str) -> None:
        try:
            url = make_url(address.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError):
            url = None
        if url is None or address.count("@") > 1:  # the second may be a password's, whose rest would be taken for the host
            raise InputError(
                "cannot read the store's address: it is postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with @ : / ? # and % in the "
                "password written as %40 %3A %2F %3F %23 %25"
            )
        plain = url.set(drivername="postgresql", query={})
        self.name = printable(plain.render_as_string(hide_password=True))
        self.lease = LEASE
        query = {**CONNECTION, **url.query, "options": " ".join([SESSION, *_texts(url.query.get("options", ()))])}
        try:
            self.engine: Engine = create_engine(
                url.set(query=query), pool_size=4, pool_pre_ping=True, isolation_level="READ COMMITTED", hide_parameters=True
            )
        except ImportError:
            raise InputError(
                "a store in PostgreSQL needs psycopg: .venv/bin/python -m pip install -r requirements-postgres.txt"
            ) from None

    @contextlib.contextmanager
    def opening(self, make: bool) -> Iterator[None]:
        yield

    def is_store(self, connection: Connection) -> bool:
        """Whether a store is there. No other process makes or changes one until this transaction ends. Raises InputError."""
        connection.execute(select(func.pg_advisory_xact_lock(MAGIC)))
        tables = inspect(connection).get_table_names()
        if tables and schema.VERSION_TABLE not in tables:
            raise InputError(f"{self.name} is a database, but not a store of submissions: give it a database of its own")
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise InputError(
                f"the encoding of {self.name} is {encoding}: make it with `createdb --encoding UTF8 --template template0`"
            )
        return bool(tables)

    def now(self) -> ColumnElement[float]:
        return cast(extract("epoch", func.clock_timestamp()), Double)

    def may_have_died(self) -> ColumnElement[bool]:
        """Whether a lease has ended. While the server was down nobody could renew one: its start counts as such."""
        started = cast(extract("epoch", func.pg_postmaster_start_time()), Double)
        return self.now() > func.greatest(schema.submissions.c.lease, started + self.lease)

    def hold(self, number: int) -> bool:
        return True

    def release(self, number: int) -> None:
        pass

    def one_at_a_time(self, connection: Connection, what: str) -> None:
        """Wait until every other transaction about the same has ended."""
        connection.execute(select(func.pg_advisory_xact_lock(MAGIC, func.hashtext(what))))

    def is_lost(self, error: DBAPIError) -> bool:
        """Whether the reason is the connection, or something else that goes away."""
        state = getattr(error.orig, "sqlstate", None)
        return error.connection_invalidated or (state[:2] in LOST if state else isinstance(error, OperationalError))

    def problem(self, error: DBAPIError) -> str:
        """What has gone wrong, in a line; all that was written before is kept."""
        if getattr(error.orig, "sqlstate", None) == DISK_FULL:
            return f"the disk is full on the server of {self.name}, which is as it was before; make room and start again"
        return f"cannot use the store {self.name}: {printable(str(error.orig))}"

    def close(self) -> None:
        self.engine.dispose()


def no_store(name: str) -> InputError:
    return InputError(f"there is no store {name}: `./run.sh submit DIR` makes it")


def _texts(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value
