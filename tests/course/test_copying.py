"""A course goes on in another store: `course copy`."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import insert, select

from config import InputError
from conftest import assert_refused, run_main
from course import copying
from course.roster import Listed, Roster
from course.schema import people, sessions, submissions
from course.store import Store
from made_up import graded, submission

TABLES = (people, sessions, submissions)


@pytest.fixture
def old(tmp_path: Path) -> tuple[str, str]:
    """A store with a roster, a login and submissions of several states; and the cookie of the login."""
    place = str(tmp_path / "old.sqlite")
    with Store(place) as store:
        roster = Roster(store)
        ((_, token),) = roster.add([Listed("Ada", "ada", "ada@example.org")])
        roster.add_teacher("T. Cher")
        graded(store, 2.0, "ada")
        graded(store, None, "bob")
        store.add(submission("eve"))
        store.add(submission("eve"))
        session = roster.login(token)
        assert session
    return place, session


def contents(store: Store) -> list[list[tuple]]:
    return [
        [tuple(row) for row in store.read(lambda connection, table=table: connection.execute(select(table)).all())]
        for table in TABLES
    ]


def test_all_arrives_with_its_numbers(old: tuple[str, str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "ROWS", 3)  # so that there are several parts
    with Store(old[0]) as source, Store(place) as target:
        assert copying.copy(source, target) == {"people": 2, "sessions": 1, "submissions": 4}
        assert list(map(sorted, contents(target))) == list(map(sorted, contents(source)))
        with Store(tmp_path / "back.sqlite") as back:
            copying.copy(target, back)
            assert list(map(sorted, contents(back))) == list(map(sorted, contents(source)))
        person = Roster(target).logged_in(old[1])
        assert person and person.number == "ada"
        assert target.add(submission("joe"))[0] == 5
        Roster(target).add([Listed("Joe", "joe", "")])
        assert [each.id for each in Roster(target).people()] == [1, 2, 3]
        taken = target.take()
        assert taken and taken[0].id == 4 and taken[1] == submission("eve").files


def test_a_store_that_has_anything_is_refused(old: tuple[str, str], place: str) -> None:
    with Store(old[0]) as source, Store(place) as target:
        Roster(target).add_teacher("A. Nother")
        before = contents(target)
        with pytest.raises(InputError, match="is not empty: it has people"):
            copying.copy(source, target)
        assert contents(target) == before


def test_what_fails_in_the_middle_leaves_the_store_empty(old: tuple[str, str], place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(old[0]) as source, Store(place) as target:
        copy_one = copying._copy

        def fail(table, old, new):
            count = copy_one(table, old, new)
            if table is submissions:  # the last one is there already
                new.execute(insert(submissions), [{"id": 1}])
            return count

        monkeypatch.setattr(copying, "_copy", fail)
        with pytest.raises(InputError):
            copying.copy(source, target)
        assert contents(target) == [[], [], []]
        monkeypatch.undo()
        assert copying.copy(source, target)["submissions"] == 4


def test_a_store_in_which_something_is_graded_is_refused(old: tuple[str, str], tmp_path: Path) -> None:
    with Store(old[0]) as source, Store(tmp_path / "new.sqlite") as target:
        assert source.take()
        with pytest.raises(InputError, match=r"is in use: 1 submission is being graded\. End"):
            copying.copy(source, target)
        assert contents(target) == [[], [], []]


def test_the_command(old: tuple[str, str], place: str, tmp_path: Path) -> None:
    copied = run_main("course", "copy", "--store", old[0], "--to", place)
    assert copied.returncode == 0, copied.stderr
    assert "people: 2, sessions: 1, submissions: 4, copied from " in copied.stdout
    assert "1     Ada (ada)" in run_main("leaderboard", "--store", place).stdout
    assert_refused(run_main("course", "copy", "--store", old[0], "--to", place), "is not empty", "Nothing was copied")
    assert_refused(run_main("course", "copy", "--store", old[0], "--to", old[0]), "--to")
    assert_refused(run_main("course", "copy", "--store", tmp_path / "none.sqlite", "--to", place), "there is no store")
