-- +goose Up
-- A copy of an event that was redriven is a record of its own.
CREATE TABLE records_with_redrive (
    stream         INTEGER NOT NULL REFERENCES streams (ordinal),
    sequence       INTEGER NOT NULL,
    stream_time    INTEGER NOT NULL, -- nanoseconds since 1970, UTC
    id             TEXT    NOT NULL,
    source         TEXT    NOT NULL,
    redrive        TEXT    NOT NULL, -- of a copy: which
    type           TEXT    NOT NULL,
    cluster        TEXT    NOT NULL,
    key            TEXT    NOT NULL,
    pool           TEXT    NOT NULL,
    correlation_id TEXT    NOT NULL,
    causation_id   TEXT    NOT NULL,
    actor          TEXT    NOT NULL,
    reason         TEXT    NOT NULL,
    message        TEXT    NOT NULL,
    event          BLOB    NOT NULL,
    UNIQUE (stream, sequence),
    UNIQUE (id, source, redrive)
) STRICT;

INSERT INTO records_with_redrive
SELECT stream, sequence, stream_time, id, source, '', type, cluster, key, pool, correlation_id, causation_id, actor, reason, message, event
FROM records ORDER BY rowid;

DROP TABLE records;
ALTER TABLE records_with_redrive RENAME TO records;

CREATE INDEX records_by_key ON records (key, stream, sequence);
CREATE INDEX records_by_type ON records (type, stream, sequence);
CREATE INDEX records_by_time ON records (stream_time);
CREATE INDEX records_by_pool ON records (pool, stream, sequence) WHERE pool <> '';
CREATE INDEX records_by_correlation ON records (correlation_id, stream, sequence) WHERE correlation_id <> '';
CREATE INDEX records_by_causation ON records (causation_id, stream, sequence) WHERE causation_id <> '';
CREATE INDEX records_by_actor ON records (actor, stream, sequence) WHERE actor <> '';
