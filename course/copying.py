"""From one store to another: a course that has outgrown its SQLite file goes on in PostgreSQL, or comes back."""

from __future__ import annotations

from sqlalchemy import Connection, Table, func, insert, select

from config import InputError
from course.schema import people, sessions, submissions
from course.store import Store

TABLES = (people, sessions, submissions)
ROWS = 100  # that are in memory at a time: each has a submission's files


def copy(source: Store, target: Store) -> dict[str, int]:
    """Copy people, logins and submissions in one transaction; returns how many there are of each, by the name of the table.

    Raises InputError where something is graded meanwhile, or where `target` has anything: it is then as it was before.
    """

    def read(old: Connection) -> dict[str, int]:
        running = old.scalar(select(func.count()).where(submissions.c.state == "running"))
        if running:
            raise InputError(
                f"{source.database.name} is in use: {running} submission{' is' if running == 1 else 's are'} being graded. "
                "End `grade` and `course serve` first"
            )

        def write(new: Connection) -> dict[str, int]:
            target.database.one_at_a_time(new, "copy")
            for table in TABLES:
                if new.scalar(select(func.count()).select_from(table)):
                    raise InputError(f"{target.database.name} is not empty: it has {table.name}. Nothing was copied")
            return {table.name: _copy(table, old, new) for table in TABLES}

        return target.change(write)

    return source.read(read)


def _copy(table: Table, old: Connection, new: Connection) -> int:
    """All rows with their numbers; returns how many."""
    rows = old.execute(select(table), execution_options={"stream_results": True})
    for part in rows.mappings().partitions(ROWS):
        new.execute(insert(table), [dict(row) for row in part])
    if new.dialect.name == "postgresql" and "id" in table.c:  # which would number new rows from 1 again
        last = select(func.max(table.c.id)).scalar_subquery()
        new.execute(select(func.setval(func.pg_get_serial_sequence(table.name, "id"), last)))
    return new.scalar(select(func.count()).select_from(table)) or 0
