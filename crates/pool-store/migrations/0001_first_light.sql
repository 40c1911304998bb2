-- What an orchestrator remembers: which nodes it has met, which coalitions it formed, and its settings.
-- Times are Unix seconds.
CREATE TABLE nodes (
    address      TEXT PRIMARY KEY NOT NULL,
    name         TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    first_seen   BIGINT NOT NULL,
    last_seen    BIGINT NOT NULL
);

CREATE TABLE coalitions (
    epoch        BIGINT PRIMARY KEY NOT NULL,
    model        TEXT NOT NULL,
    assignment   TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('formed', 'active', 'ended')),
    reason       TEXT,
    formed_at    BIGINT NOT NULL,
    active_at    BIGINT,
    ended_at     BIGINT
);

CREATE TABLE settings (
    key          TEXT PRIMARY KEY NOT NULL,
    value        TEXT NOT NULL
);
