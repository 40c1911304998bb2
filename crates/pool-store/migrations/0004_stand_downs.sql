-- What members signed when they left. Times are Unix seconds.
CREATE TABLE stand_downs (
    id           INTEGER PRIMARY KEY NOT NULL,
    operator     TEXT NOT NULL,
    -- The epoch the member served in, 0 for none.
    epoch        BIGINT NOT NULL,
    manner       TEXT NOT NULL CHECK (manner IN ('yield', 'drain')),
    -- The signed statement as JSON.
    statement    TEXT NOT NULL,
    received_at  BIGINT NOT NULL
);
CREATE INDEX stand_downs_by_operator ON stand_downs (operator, epoch);
