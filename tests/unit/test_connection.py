"""How connections to the database are set up."""

from __future__ import annotations

import sqlalchemy as sa

from dicom_node.connection import POSTGRESQL_CONNECTION
from dicom_node.engine import engine_url


def test_the_engine_s_connections_notice_a_server_that_is_gone_like_our_own() -> None:
    said = "postgresql+psycopg://node:p%40ss%2Fword@db.example:5433/node?sslmode=require&tcp_user_timeout=5000"
    url = sa.make_url(engine_url(said))
    assert url.query["tcp_user_timeout"] == "5000", "what the settings say is left as it is"
    assert url.query["sslmode"] == "require"
    assert url.query["keepalives_idle"] == str(POSTGRESQL_CONNECTION["keepalives_idle"])
    assert POSTGRESQL_CONNECTION.keys() <= url.query.keys()
    assert (url.username, url.password, url.host, url.port, url.database) == (
        *("node", "p@ss/word", "db.example"),
        *(5433, "node"),
    )
