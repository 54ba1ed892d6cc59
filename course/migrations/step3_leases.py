"""Who is grading a submission, and until when others have to believe that."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "3", "2"


def upgrade() -> None:
    op.add_column("submissions", sa.Column("grader", sa.Text))
    op.add_column("submissions", sa.Column("lease", sa.Double))
