"""The table of submissions. A store of before there were steps has it: that stays as it is."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "1", None


def upgrade() -> None:
    if sa.inspect(op.get_bind()).has_table("submissions"):
        return
    op.create_table(
        "submissions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("state", sa.Text, nullable=False, server_default="queued"),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
        sa.Column("assignment", sa.Text, nullable=False),
        sa.Column("contributors", sa.Text, nullable=False),
        sa.Column("pennkeys", sa.Text, nullable=False),
        sa.Column("sources", sa.Text, nullable=False),
        sa.Column("warnings", sa.Text, nullable=False),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("submitted", sa.Double, nullable=False),
        sa.Column("started", sa.Double),
        sa.Column("finished", sa.Double),
        sa.Column("score", sa.Double),
        sa.Column("result", sa.Text),
        sa.CheckConstraint("state IN ('queued', 'running', 'graded', 'failed', 'cancelled')"),
        sqlite_autoincrement=True,
    )
    op.create_index("by_state", "submissions", ["state", "id"])
    op.create_index("by_pennkeys", "submissions", ["pennkeys"])
