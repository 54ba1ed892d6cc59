"""The steps from a store of before to the present one; Alembic runs those that a store lacks, the first of them on an empty one."""
