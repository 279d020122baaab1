"""Alembic's entry: runs the versions over the connection that Database.migrate hands in."""

from alembic import context

from dicom_node.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
