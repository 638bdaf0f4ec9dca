-- +goose Up
CREATE TABLE streams (
    ordinal       INTEGER PRIMARY KEY AUTOINCREMENT, -- the latest incarnation has the highest
    incarnation   TEXT    NOT NULL UNIQUE,
    last_sequence INTEGER NOT NULL
) STRICT;

CREATE TABLE records (
    stream         INTEGER NOT NULL REFERENCES streams (ordinal),
    sequence       INTEGER NOT NULL,
    stream_time    INTEGER NOT NULL, -- nanoseconds since 1970, UTC
    id             TEXT    NOT NULL,
    source         TEXT    NOT NULL,
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
    UNIQUE (id, source)
) STRICT;

CREATE INDEX records_by_key ON records (key, stream, sequence);
CREATE INDEX records_by_type ON records (type, stream, sequence);
CREATE INDEX records_by_time ON records (stream_time);
CREATE INDEX records_by_pool ON records (pool, stream, sequence) WHERE pool <> '';
CREATE INDEX records_by_correlation ON records (correlation_id, stream, sequence) WHERE correlation_id <> '';
CREATE INDEX records_by_causation ON records (causation_id, stream, sequence) WHERE causation_id <> '';
CREATE INDEX records_by_actor ON records (actor, stream, sequence) WHERE actor <> '';

CREATE TABLE gaps (
    stream        INTEGER NOT NULL REFERENCES streams (ordinal),
    from_sequence INTEGER NOT NULL,
    to_sequence   INTEGER NOT NULL,
    found_at      INTEGER NOT NULL, -- nanoseconds since 1970, UTC
    PRIMARY KEY (stream, from_sequence)
) STRICT;
