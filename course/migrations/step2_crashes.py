"""How many graders have died over a submission. Stores of before there were steps have the column, but for the oldest."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "2", "1"


def upgrade() -> None:
    if "crashes" not in {column["name"] for column in sa.inspect(op.get_bind()).get_columns("submissions")}:
        op.add_column("submissions", sa.Column("crashes", sa.Integer, nullable=False, server_default="0"))
