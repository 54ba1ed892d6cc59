"""The tables of a store, in SQLite and in PostgreSQL, and how a store of before comes to them.

What a student wrote and a grader measured is JSON in text columns. Times are seconds since 1970 by the database's clock.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, Double, Index, Integer, MetaData, Table, Text, inspect, text

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "convsprint_version"  # where Alembic notes the last step; by it a PostgreSQL database is known for a store
MAX_NUMBER = 2**31 - 1  # of a submission, as PostgreSQL counts
VERSION = "4"  # the last of the steps in migrations/

metadata = MetaData()
submissions = Table(
    "submissions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("state", Text, nullable=False, server_default="queued"),
    Column("reason", Text, nullable=False, server_default=""),  # why it failed
    Column("assignment", Text, nullable=False),
    Column("contributors", Text, nullable=False),  # [[name, pennkey], ...]
    Column("pennkeys", Text, nullable=False),  # sorted: who it is from
    Column("sources", Text, nullable=False),
    Column("warnings", Text, nullable=False),
    Column("files", Text, nullable=False),  # {name: text}
    Column("submitted", Double, nullable=False),
    Column("started", Double),
    Column("finished", Double),
    Column("score", Double),  # seconds, of a graded one
    Column("result", Text),  # what the grader measured
    Column("crashes", Integer, nullable=False, server_default="0"),  # of graders over it
    Column("grader", Text),  # the mark of the grader that has taken it; another one each time
    Column("lease", Double),  # until when that grader counts as alive; None where the kernel tells whether it is
    Column("progress", Text, nullable=False, server_default=""),  # how far a running one is
    Index("by_state", "state", "id"),
    Index("by_pennkeys", "pennkeys"),
    sqlite_autoincrement=True,
)
people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("role", Text, nullable=False),  # student or teacher
    Column("name", Text, nullable=False),
    Column("number", Text),  # of a student: what submission.json calls the pennkey, in lower case
    Column("email", Text, nullable=False, server_default=""),
    Column("nickname", Text, nullable=False, server_default=""),  # on the board; "" is anonymous
    Column("token", Text, nullable=False),  # SHA-256 of it, in hexadecimal digits
    Index("people_by_number", "number", unique=True),
    Index("people_by_token", "token", unique=True),
    sqlite_autoincrement=True,
)
sessions = Table(
    "sessions",
    metadata,
    Column("token", Text, primary_key=True),  # SHA-256 of what the cookie holds
    Column("person", Integer, nullable=False),
    Column("expires", Double, nullable=False),
    Index("sessions_by_person", "person"),
)


def version(connection: Connection) -> str | None:
    """The last step that a store has; None of a store of before there were steps, or of none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


def migrate(connection: Connection) -> None:
    """Take the steps that the store lacks, in the transaction that is open."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    steps = ScriptDirectory(str(MIGRATIONS), version_locations=[str(MIGRATIONS)])
    with EnvironmentContext(Config(), steps, fn=lambda revision, _: steps._upgrade_revs("head", revision)) as environment:
        environment.configure(connection, version_table=VERSION_TABLE, transactional_ddl=True)
        environment.run_migrations()
