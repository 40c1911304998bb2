-- What an owner's node worked, used and earned. Amounts are wei of USDCx as text; energy is millijoules.

-- Spells of serving. Times are Unix milliseconds.
CREATE TABLE shifts (
    id        INTEGER PRIMARY KEY NOT NULL,
    began     BIGINT NOT NULL,
    -- When it was last known to run.
    seen      BIGINT NOT NULL,
    -- Whether it has ended; one that was cut off ended when it was last seen.
    ended     BOOLEAN NOT NULL,
    model     TEXT NOT NULL,
    layers    TEXT NOT NULL,
    members   BIGINT NOT NULL,
    -- Tokens that went through its layers.
    tokens    BIGINT NOT NULL,
    energy    BIGINT NOT NULL,
    -- Milliseconds of serving: without those in which the machine slept. Then those whose energy was measured.
    served    BIGINT NOT NULL,
    measured  BIGINT NOT NULL,
    cost      TEXT NOT NULL
);
CREATE INDEX shifts_by_time ON shifts (began);

-- The same by hours since 1970 (UTC), whatever the shift.
CREATE TABLE hours (
    hour      BIGINT PRIMARY KEY NOT NULL,
    -- Milliseconds.
    served    BIGINT NOT NULL,
    measured  BIGINT NOT NULL,
    tokens    BIGINT NOT NULL,
    energy    BIGINT NOT NULL,
    cost      TEXT NOT NULL
);

-- What had been earned in all when the rate changed, from the chain's own events, and the rate from then on (wei a
-- second). Times are Unix seconds of the chain's blocks.
CREATE TABLE income (
    at      BIGINT PRIMARY KEY NOT NULL,
    earned  TEXT NOT NULL,
    rate    TEXT NOT NULL
);
