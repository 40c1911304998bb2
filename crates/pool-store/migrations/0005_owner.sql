-- What an owner's node remembers of itself. Times are Unix milliseconds.

-- Every change of what the node does and why, kept for seven days.
CREATE TABLE decisions (
    id        INTEGER PRIMARY KEY NOT NULL,
    at        BIGINT NOT NULL,
    state     TEXT NOT NULL,
    -- What the person reads: the reason, and what comes next.
    sentence  TEXT NOT NULL,
    -- The decision and the signals that caused it, as JSON.
    decision  TEXT NOT NULL,
    signals   TEXT NOT NULL
);
CREATE INDEX decisions_by_time ON decisions (at);

-- Every time the machine was given back. Lengths are milliseconds from the event that asked for it.
CREATE TABLE yields (
    id            INTEGER PRIMARY KEY NOT NULL,
    at            BIGINT NOT NULL,
    reason        TEXT NOT NULL,
    -- Until the node noticed; until the process was gone; until the memory was free again, where that can be seen.
    noticed       BIGINT NOT NULL,
    process_gone  BIGINT NOT NULL,
    memory_back   BIGINT
);
