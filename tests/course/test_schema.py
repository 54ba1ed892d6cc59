"""Stores of before open as they are, with all that is in them; and the tables that the steps make are those that the code reads."""

import sqlite3

import pytest
from sqlalchemy import text

from config import InputError
from course import schema
from course.databases import MAGIC
from course.store import Store
from made_up import submission

# As it was made before there were steps; the oldest had no column `crashes`.
OLD = f"""
CREATE TABLE submissions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'graded', 'failed', 'cancelled')),
    reason TEXT NOT NULL DEFAULT '',
    assignment TEXT NOT NULL,
    contributors TEXT NOT NULL,
    pennkeys TEXT NOT NULL,
    sources TEXT NOT NULL,
    warnings TEXT NOT NULL,
    files TEXT NOT NULL,
    submitted REAL NOT NULL,
    started REAL,
    finished REAL,
    score REAL,
    result TEXT
);
CREATE INDEX by_state ON submissions (state, id);
CREATE INDEX by_pennkeys ON submissions (pennkeys);
PRAGMA application_id = {MAGIC};
PRAGMA journal_mode = WAL;
INSERT INTO submissions (state, assignment, contributors, pennkeys, sources, warnings, files, submitted, started, score, result)
VALUES ('graded', 'hw', '[["Ada", "ada"]]', '["ada"]', '["none"]', '[]', '{{"model.py": "1"}}', 10.5, 11.5, 2.5, '{{"runs": []}}'),
       ('running', 'hw', '[["Bob", "bob"]]', '["bob"]', '["none"]', '["w"]', '{{"model.py": "2"}}', 20.5, 21.5, NULL, NULL),
       ('queued', 'hw', '[["Eve", "eve"]]', '["eve"]', '["none"]', '[]', '{{"model.py": "3"}}', 30.5, NULL, NULL, NULL);
"""
CRASHES = "ALTER TABLE submissions ADD COLUMN crashes INTEGER NOT NULL DEFAULT 0; UPDATE submissions SET crashes = 1 WHERE id = 3"


def columns(path) -> list[str]:
    with sqlite3.connect(path) as database:
        return [row[1] for row in database.execute("PRAGMA table_info(submissions)")]


@pytest.mark.parametrize("more", ["", CRASHES], ids=["oldest", "old"])
def test_an_old_store_opens_with_all_that_is_in_it(tmp_path, more):
    path = tmp_path / "store.sqlite"
    sqlite3.connect(path).executescript(OLD + more).connection.close()
    with Store(path, make=False) as store:
        ada, bob, eve = store.entries()
        assert (ada.state, ada.score, ada.result, ada.submitted) == ("graded", 2.5, {"runs": []}, 10.5)
        assert (bob.state, bob.started, bob.warnings) == ("queued", None, ["w"])  # its grader is gone
        assert eve.contributors == [("Eve", "eve")]
        assert store.add(submission("eve")) == (4, [3])
        entry, files = store.take()  # the others have seen a grader die
        assert (entry.id, files) == ((4, {"model.py": b"# \xc3\xa9"}))
        assert store.finish(4, "graded", "", 1.0, {})
        assert store.take()[1] == {"model.py": b"2"}
        store.give_back(2)
    assert set(columns(path)) == set(schema.submissions.c.keys())
    with Store(path) as store:  # once more
        assert [entry.state for entry in store.entries()] == ["graded", "queued", "cancelled", "graded"]


def test_what_is_cut_off_in_the_middle_of_the_steps_has_not_happened(tmp_path, monkeypatch):
    path = tmp_path / "store.sqlite"
    sqlite3.connect(path).executescript(OLD).connection.close()
    before = columns(path)
    migrate = schema.migrate

    def and_then_fail(connection):
        migrate(connection)
        raise InputError("cut off")

    monkeypatch.setattr(schema, "migrate", and_then_fail)
    with pytest.raises(InputError, match="cut off"):
        Store(path)
    assert columns(path) == before
    monkeypatch.undo()
    with Store(path) as store:
        assert len(store.entries()) == 3


def test_the_steps_make_the_tables_that_the_code_reads(place):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(schema.MIGRATIONS), version_locations=[str(schema.MIGRATIONS)]).get_heads() == [schema.VERSION]
    with Store(place) as store, store.database.engine.connect() as connection:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata) == []


def test_a_store_of_a_newer_version_is_left_alone(place):
    with Store(place) as store, store.database.engine.begin() as connection:
        connection.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '{int(schema.VERSION) + 1}'"))
    with pytest.raises(InputError, match="newer version of this program"):
        Store(place)
