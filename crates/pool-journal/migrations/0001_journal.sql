-- The journal: workflows, their steps, the transactions they want, and the log of all of it.
-- Times are milliseconds since the Unix epoch. Amounts, data and hashes are text: decimal or hexadecimal.

-- One row for each change of anything below, in the order in which it happened. Rows are never changed or removed.
CREATE TABLE journal_log (
    sequence BIGINT PRIMARY KEY NOT NULL,
    at       BIGINT NOT NULL,
    run      TEXT,
    step     TEXT,
    kind     TEXT NOT NULL,
    body     TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash     TEXT NOT NULL
);
CREATE INDEX journal_log_by_run ON journal_log (run, sequence);

CREATE TRIGGER journal_log_is_not_changed BEFORE UPDATE ON journal_log
BEGIN
    SELECT RAISE(ABORT, 'the journal''s log is append-only');
END;

CREATE TRIGGER journal_log_is_not_deleted BEFORE DELETE ON journal_log
BEGIN
    SELECT RAISE(ABORT, 'the journal''s log is append-only');
END;

-- A row that does not follow the last one is refused; so REPLACE, which deletes unseen, is refused as well.
CREATE TRIGGER journal_log_has_no_gap BEFORE INSERT ON journal_log
WHEN NEW.sequence <> 1 + (SELECT COALESCE(MAX(sequence), 0) FROM journal_log)
BEGIN
    SELECT RAISE(ABORT, 'the journal''s log has no gaps');
END;

-- Who drives: the number grows with every runner that starts, and only the newest may write as one.
CREATE TABLE journal_runner (
    place      BIGINT PRIMARY KEY NOT NULL CHECK (place = 1),
    generation BIGINT NOT NULL
);
INSERT INTO journal_runner (place, generation) VALUES (1, 0);

-- Runs keep the graph they began with, whatever the files say later.
CREATE TABLE journal_graphs (
    hash TEXT PRIMARY KEY NOT NULL,
    text TEXT NOT NULL
);

CREATE TABLE journal_runs (
    id         TEXT PRIMARY KEY NOT NULL,
    workflow   TEXT NOT NULL,
    key        TEXT NOT NULL,
    graph      TEXT NOT NULL REFERENCES journal_graphs (hash),
    input      TEXT NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('running', 'completed', 'failed')),
    started_at BIGINT NOT NULL,
    ended_at   BIGINT,
    UNIQUE (workflow, key)
);
CREATE INDEX journal_runs_by_state ON journal_runs (state, started_at);

-- A node of a run has a row from the moment it can begin, or is passed over. `due_at` is when the runner looks at it
-- next; `patience` is how long it may take, in milliseconds, from its beginning and again from the end of its
-- transaction.
CREATE TABLE journal_steps (
    run           TEXT NOT NULL REFERENCES journal_runs (id),
    node          TEXT NOT NULL,
    state         TEXT NOT NULL
                  CHECK (state IN ('ready', 'running', 'waiting', 'completed', 'failed', 'skipped', 'blocked')),
    attempt       BIGINT NOT NULL DEFAULT 0,
    failures      BIGINT NOT NULL DEFAULT 0,
    interruptions BIGINT NOT NULL DEFAULT 0,
    began_at      BIGINT,
    ended_at      BIGINT,
    patience      BIGINT NOT NULL,
    deadline_at   BIGINT,
    due_at        BIGINT,
    event         TEXT,
    intent        TEXT,
    output        TEXT,
    failure       TEXT,
    PRIMARY KEY (run, node)
);
CREATE INDEX journal_steps_by_due ON journal_steps (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX journal_steps_by_event ON journal_steps (event) WHERE event IS NOT NULL;
CREATE INDEX journal_steps_by_intent ON journal_steps (intent) WHERE intent IS NOT NULL;
CREATE INDEX journal_steps_running ON journal_steps (state) WHERE state = 'running';

CREATE TABLE journal_events (
    name TEXT PRIMARY KEY NOT NULL,
    body TEXT NOT NULL,
    at   BIGINT NOT NULL
);

-- Transactions that are wanted. `position` is the order of arrival; `receipt` and `block` tell of the variant that
-- a block holds now; `trouble` is why the nodes did not take it last. An outcome once given stays readable while a
-- transaction that a re-organisation took out of its block is brought back.
CREATE TABLE journal_intents (
    key          TEXT PRIMARY KEY NOT NULL,
    position     BIGINT NOT NULL UNIQUE,
    run          TEXT,
    step         TEXT,
    chain        BIGINT NOT NULL,
    signer       TEXT NOT NULL,
    lane         TEXT NOT NULL,
    supersedable BOOLEAN NOT NULL,
    target       TEXT NOT NULL,
    value        TEXT NOT NULL,
    data         TEXT NOT NULL,
    gas_limit    BIGINT NOT NULL,
    deadline_at  BIGINT,
    state        TEXT NOT NULL
                 CHECK (state IN ('queued', 'signed', 'included', 'final', 'settled', 'dropped')),
    nonce        BIGINT,
    receipt      TEXT,
    block        BIGINT,
    outcome      TEXT,
    trouble      TEXT,
    reopened     BIGINT NOT NULL DEFAULT 0,
    created_at   BIGINT NOT NULL,
    CHECK ((state IN ('queued', 'dropped')) = (nonce IS NULL)),
    UNIQUE (chain, signer, nonce)
);
CREATE INDEX journal_intents_by_state ON journal_intents (chain, signer, state, position);
CREATE INDEX journal_intents_by_lane ON journal_intents (chain, lane, state, position);
CREATE INDEX journal_intents_by_step ON journal_intents (run, step) WHERE run IS NOT NULL;

-- Every signed form of an intent, stored before it is broadcast. All of one nonce; whichever is included counts.
CREATE TABLE journal_variants (
    hash         TEXT PRIMARY KEY NOT NULL,
    intent       TEXT NOT NULL REFERENCES journal_intents (key),
    position     BIGINT NOT NULL,
    nonce        BIGINT NOT NULL,
    kind         TEXT NOT NULL CHECK (kind IN ('call', 'cancel')),
    max_fee      TEXT NOT NULL,
    priority_fee TEXT NOT NULL,
    raw          TEXT NOT NULL,
    signed_at    BIGINT NOT NULL,
    broadcast_at BIGINT
);
CREATE INDEX journal_variants_by_intent ON journal_variants (intent, position);

CREATE TABLE journal_nonces (
    chain  BIGINT NOT NULL,
    signer TEXT NOT NULL,
    next   BIGINT NOT NULL,
    PRIMARY KEY (chain, signer)
);
