"""The roster, who is logged in, and how far a running submission is."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "4", "3"


def upgrade() -> None:
    op.add_column("submissions", sa.Column("progress", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "people",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("number", sa.Text),
        sa.Column("email", sa.Text, nullable=False, server_default=""),
        sa.Column("nickname", sa.Text, nullable=False, server_default=""),
        sa.Column("token", sa.Text, nullable=False),
        sa.CheckConstraint("role IN ('student', 'teacher')"),
        sqlite_autoincrement=True,
    )
    op.create_index("people_by_number", "people", ["number"], unique=True)
    op.create_index("people_by_token", "people", ["token"], unique=True)
    op.create_table(
        "sessions",
        sa.Column("token", sa.Text, primary_key=True),
        sa.Column("person", sa.Integer, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
    )
    op.create_index("sessions_by_person", "sessions", ["person"])
