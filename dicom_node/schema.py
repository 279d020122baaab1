"""The tables: what DICOM needs remembered. Job state belongs to db.py, queueing to engine.py.

Times are seconds since the epoch, UTC. UIDs are text. JSON columns hold small plain values only.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

JOB_STATES = ("queued", "running", "complete", "rejected", "failed", "parked", "cancelled")
DELIVERY_STATES = ("waiting", "sending", "unknown", "stored", "committed", "parked", "cancelled")
COMMITMENT_STATES = ("asking", "asked", "answered", "refused", "lapsed")
COMMIT_REQUEST_STATES = ("due", "reported", "given up")
# given up: its workers died while they ran it, as often as they may.
SHADOW_STATES = ("queued", "running", "complete", "failed", "given up")
# waiting: for the end of an analysis. ours: our own object came back as it was. refused: `text` says why.
CORRECTION_STATES = ("waiting", "compared", "ours", "refused")
# found: its files are there; it becomes compared or not_registered. Else why nothing is compared.
PRIOR_OUTCOMES = ("found", "compared", "not_registered", "no_prior", "no_prior_result", "not_available")


def _one_of(column: str, values: tuple[str, ...]) -> sa.CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({allowed})", name=f"{column}_known")


instance = sa.Table(
    "instance",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("transfer_syntax_uid", sa.String(64), nullable=False),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("received_at", sa.Double, nullable=False),
)

# One row a series, kept by the receiver. released: the Associations that brought it ended in order, none is open.
# aborted: one broke off since the series was decided on last.
# assembled_sha256: the set of instances that was decided on last.
series = sa.Table(
    "series",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("source_ae", sa.String(16), nullable=False),
    sa.Column("source_ip", sa.String(45), nullable=False),
    sa.Column("first_at", sa.Double, nullable=False),
    sa.Column("last_at", sa.Double, nullable=False),
    sa.Column("released", sa.Boolean, nullable=False),
    sa.Column("aborted", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("assembled_sha256", sa.String(64), nullable=True),
    sa.Column("assembled_at", sa.Double, nullable=True),
)

# An Association that brought something new of a series and is not over.
carrier = sa.Table(
    "carrier",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("association", sa.String(32), primary_key=True),
)

# working_model, shadow_model: names in models:, as they stood when the job was decided; null in jobs of before, and
# where nothing runs in the shadow. promoted_over: the model that the settings name, where a promotion named another.
job = sa.Table(
    "job",
    metadata,
    sa.Column("job_id", sa.String(96), primary_key=True),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("manifest_sha256", sa.String(64), nullable=False),
    sa.Column("instance_count", sa.Integer, nullable=False),
    sa.Column("source_ae", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("reason", sa.String(64), nullable=True),
    sa.Column("reason_text", sa.Text, nullable=True),
    sa.Column("route", sa.String(64), nullable=True),
    sa.Column("priority", sa.String(16), nullable=False),
    sa.Column("working_model", sa.String(64), nullable=True),
    sa.Column("shadow_model", sa.String(64), nullable=True),
    sa.Column("promoted_over", sa.String(64), nullable=True),
    sa.Column("evidence", sa.JSON, nullable=False),
    sa.Column("explanation", sa.JSON, nullable=False),
    sa.Column("progress", sa.Double, nullable=False),
    sa.Column("executor", sa.String(128), nullable=True),
    sa.Column("timings_s", sa.JSON, nullable=False),
    sa.Column("model", sa.JSON, nullable=True),
    sa.Column("created_at", sa.Double, nullable=False, index=True),
    sa.Column("started_at", sa.Double, nullable=True),
    sa.Column("finished_at", sa.Double, nullable=True),
    _one_of("state", JOB_STATES),
)

finding = sa.Table(
    "finding",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.job_id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("values", sa.JSON, nullable=False),
)

result = sa.Table(
    "result",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.ForeignKey("job.job_id"), nullable=False, index=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("sop_class_uid", sa.String(64), nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
)

# The ledger: one row an object and destination. commit_due_at: when a stored object's destination is asked (again)
# whether it keeps it, null for at once. commit_rounds: how often the destination said that it does not.
delivery = sa.Table(
    "delivery",
    metadata,
    sa.Column("sop_instance_uid", sa.ForeignKey("result.sop_instance_uid"), primary_key=True),
    sa.Column("destination", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.ForeignKey("job.job_id"), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("status", sa.Integer, nullable=True),
    sa.Column("message", sa.Text, nullable=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("changed_at", sa.Double, nullable=False),
    sa.Column("commit_due_at", sa.Double, nullable=True),
    sa.Column("commit_rounds", sa.Integer, nullable=False, server_default="0"),
    _one_of("state", DELIVERY_STATES),
)

# Storage Commitment that we asked for (PS3.4 J): one row a transaction. lapsed: no word came in time, so it was asked
# again; a late word on it still counts.
commitment = sa.Table(
    "commitment",
    metadata,
    sa.Column("transaction_uid", sa.String(64), primary_key=True),
    sa.Column("destination", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("changed_at", sa.Double, nullable=False),
    sa.Column("message", sa.Text, nullable=True),
    _one_of("state", COMMITMENT_STATES),
)

# What a transaction asked about. reason: the Failure Reason that came for the object, 0 where it is kept.
commitment_object = sa.Table(
    "commitment_object",
    metadata,
    sa.Column("transaction_uid", sa.ForeignKey("commitment.transaction_uid"), primary_key=True),
    sa.Column("sop_instance_uid", sa.ForeignKey("result.sop_instance_uid"), primary_key=True, index=True),
    sa.Column("reason", sa.Integer, nullable=True),
)

# Storage Commitment that a peer asked us for. objects: [SOP Class UID, SOP Instance UID] of each reference.
commit_request = sa.Table(
    "commit_request",
    metadata,
    sa.Column("peer", sa.String(64), primary_key=True),
    sa.Column("transaction_uid", sa.String(64), primary_key=True),
    sa.Column("objects", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("due_at", sa.Double, nullable=False),
    sa.Column("message", sa.Text, nullable=True),
    _one_of("state", COMMIT_REQUEST_STATES),
)

event = sa.Table(
    "event",
    metadata,
    sa.Column("event_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("series_uid", sa.String(64), nullable=True, index=True),
    sa.Column("job_id", sa.String(96), nullable=True, index=True),
    sa.Column("details", sa.JSON, nullable=False),
)

# A series that we fetched or tried to. there: how many Instances the peer said that it has. route: decides for the
# series, where the pull named one. attempts: how often the peer sent less than that. done_at: all of them were here;
# kept after a purge, so that nothing is done twice.
pulled = sa.Table(
    "pulled",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("peer", sa.String(64), nullable=False),
    sa.Column("route", sa.String(64), nullable=True),
    sa.Column("there", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
    sa.Column("done_at", sa.Double, nullable=True),
)

# The last round of each scheduled pull. ended_at null: it runs, or its process died in it.
pull_round = sa.Table(
    "pull_round",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double, nullable=True),
    sa.Column("fetched", sa.Integer, nullable=False),
    sa.Column("left_over", sa.Integer, nullable=False),
    sa.Column("problem", sa.Text, nullable=True),
)

# The earlier CT that a job is compared with, where its route wants that. outcome null: it is being looked for, since
# wanted_at.
# folder: where in the job's own folder its files are. size_bytes: of those that lie nowhere else.
prior = sa.Table(
    "prior",
    metadata,
    sa.Column("job_id", sa.ForeignKey("job.job_id"), primary_key=True),
    sa.Column("archive", sa.String(64), nullable=False),
    sa.Column("wanted_at", sa.Double, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=True),
    sa.Column("text", sa.Text, nullable=True),
    sa.Column("folder", sa.String(64), nullable=True),
    sa.Column("study_uid", sa.String(64), nullable=True),
    sa.Column("series_uid", sa.String(64), nullable=True, index=True),
    sa.Column("size_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("settled_at", sa.Double, nullable=True),
    _one_of("outcome", PRIOR_OUTCOMES),
)

# A series that an archive sends us by C-MOVE, for a comparison alone. until: what comes of it before is not analysed.
prior_series = sa.Table(
    "prior_series",
    metadata,
    sa.Column("series_uid", sa.String(64), primary_key=True),
    sa.Column("archive", sa.String(64), nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
    sa.Column("until", sa.Double, nullable=False),
)

# What a second model made of a job's input, for comparison alone. No foreign key, and the first one's findings are kept
# here, too: the numbers outlive the job. model, first: identities as in job.model, once complete. job_created_at: which
# job of that id, where it was purged and came again.
shadow = sa.Table(
    "shadow",
    metadata,
    sa.Column("job_id", sa.String(96), primary_key=True),
    sa.Column("job_created_at", sa.Double, nullable=False),
    sa.Column("route", sa.String(64), nullable=False),
    sa.Column("model_name", sa.String(64), nullable=False, index=True),
    sa.Column("first_name", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("executor", sa.String(128), nullable=True),
    sa.Column("problem", sa.Text, nullable=True),
    sa.Column("model", sa.JSON, nullable=True),
    sa.Column("first", sa.JSON, nullable=True),
    sa.Column("timings_s", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("finished_at", sa.Double, nullable=True, index=True),
    _one_of("state", SHADOW_STATES),
)

# of_shadow: found by the second model; else by the first. values: as in finding.
shadow_finding = sa.Table(
    "shadow_finding",
    metadata,
    sa.Column("job_id", sa.ForeignKey("shadow.job_id"), primary_key=True),
    sa.Column("of_shadow", sa.Boolean, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("values", sa.JSON, nullable=False),
)

# Where the settings say `in_file` for this route, `model` works. The latest one of a route that was not rolled back
# counts.
promotion = sa.Table(
    "promotion",
    metadata,
    sa.Column("promotion_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("route", sa.String(64), nullable=False, index=True),
    sa.Column("in_file", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("bundle_sha256", sa.String(64), nullable=False),
    sa.Column("forced", sa.Boolean, nullable=False),
    sa.Column("promoted_at", sa.Double, nullable=False),
    sa.Column("promoted_by", sa.String(128), nullable=False),
    sa.Column("rolled_back_at", sa.Double, nullable=True),
    sa.Column("rolled_back_by", sa.String(128), nullable=True),
)

# A login to the web role. token_sha256: of the secret in the browser's cookie. method: password or oidc. mark: of the
# password by which it was made; it ends when the password is another. seen_at: to the minute.
web_session = sa.Table(
    "web_session",
    metadata,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("user_name", sa.String(128), nullable=False, index=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("method", sa.String(16), nullable=False),
    sa.Column("mark", sa.String(64), nullable=True),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
)

# What a program calls the JSON API with. expires_at null: never.
api_token = sa.Table(
    "api_token",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=True),
    sa.Column("used_at", sa.Double, nullable=True),
)

# Tries to log in of the last minutes (web/access/limits.py). name_mark: a few bits of the name's hash.
login_try = sa.Table(
    "login_try",
    metadata,
    sa.Column("try_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("network", sa.String(64), nullable=False, index=True),
    sa.Column("name_mark", sa.String(4), nullable=False),
    sa.Column("at", sa.Double, nullable=False, index=True),
)

# What the pages and the JSON API read by (web/answers): a page of jobs, however deep and whatever is asked for, is a
# range of one of these. That of deliveries also serves alerts and Storage Commitment.
sa.Index("ix_job_place", job.c.created_at, job.c.job_id, job.c.study_uid, job.c.reason)
sa.Index("ix_job_state_place", job.c.state, job.c.created_at, job.c.job_id)
sa.Index("ix_job_peer_place", job.c.source_ae, job.c.created_at, job.c.job_id, job.c.route, job.c.state)
sa.Index("ix_job_route_place", job.c.route, job.c.created_at, job.c.job_id, job.c.state)
sa.Index("ix_job_state_finished", job.c.state, job.c.finished_at)
sa.Index("ix_series_last_at", series.c.last_at)
sa.Index("ix_series_source", series.c.source_ae, series.c.last_at)
sa.Index("ix_delivery_destination", delivery.c.destination, delivery.c.state, delivery.c.changed_at)

# A series that brought something since it was decided on last.
ARRIVING = sa.or_(series.c.assembled_at.is_(None), series.c.last_at > series.c.assembled_at)
sa.Index("ix_series_arriving", series.c.first_at, sqlite_where=ARRIVING, postgresql_where=ARRIVING)

# What an operator should know of, since when. ended_at: it was not there any more at that look.
alert = sa.Table(
    "alert",
    metadata,
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("subject", sa.String(192), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("job_id", sa.String(96), nullable=True),
    sa.Column("since", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double, nullable=True),
)

# Which channel was told of an alert, and when last. It goes once that channel was told that the alert is over.
alert_notice = sa.Table(
    "alert_notice",
    metadata,
    sa.Column("channel", sa.String(16), primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("subject", sa.String(192), primary_key=True),
    sa.Column("sent_at", sa.Double, nullable=False),
)

# When each channel had its last message of each kind. failures: in a row since; error: why the last one failed.
alert_channel = sa.Table(
    "alert_channel",
    metadata,
    sa.Column("channel", sa.String(16), primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("sent_at", sa.Double, nullable=True),
    sa.Column("failed_at", sa.Double, nullable=True),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("error", sa.Text, nullable=True),
)

# When each role of a machine was last alive. unbroken_since: it was seen again and again since then. stopped_at: it
# ended in order, and nobody misses it.
role_seen = sa.Table(
    "role_seen",
    metadata,
    sa.Column("host", sa.String(128), primary_key=True),
    sa.Column("role", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("unbroken_since", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
    sa.Column("stopped_at", sa.Double, nullable=True),
)

# The last round of each task of retention. ended_at null: it runs, or its process died in it.
upkeep = sa.Table(
    "upkeep",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("ended_at", sa.Double, nullable=True),
    sa.Column("series", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)

# A result of ours that somebody corrected: one row an Instance. of_series_uid: the series that was analysed. job_id:
# the revision that it was compared with; no foreign key, for what was learned stays when a purge takes the job.
# recognised_by: see reviews/analyses.py. made: content date and time, the newest counts. verdicts: as JSON of
# corrections.Compared.
correction = sa.Table(
    "correction",
    metadata,
    sa.Column("sop_instance_uid", sa.String(64), primary_key=True),
    sa.Column("series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("study_uid", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("source_ae", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=True),
    sa.Column("recognised_by", sa.String(32), nullable=False),
    sa.Column("of_series_uid", sa.String(64), nullable=False, index=True),
    sa.Column("job_id", sa.String(96), nullable=True, index=True),
    sa.Column("made", sa.String(64), nullable=False),
    sa.Column("verdicts", sa.JSON, nullable=False),
    sa.Column("received_at", sa.Double, nullable=False, index=True),
    sa.Column("changed_at", sa.Double, nullable=False),
    _one_of("state", CORRECTION_STATES),
)
