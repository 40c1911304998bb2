-- Sessions that a voucher was presented for. Amounts are whole units as text; times are Unix seconds.
CREATE TABLE sessions (
    id             TEXT PRIMARY KEY NOT NULL,
    model          TEXT NOT NULL,
    payer          TEXT NOT NULL,
    vault          TEXT NOT NULL UNIQUE,
    -- The terms that the vault's address is a function of, and the quote, as JSON.
    terms          TEXT NOT NULL,
    quote          TEXT NOT NULL,
    -- The signed authorization, as JSON. It can only move money into the vault.
    voucher        TEXT NOT NULL,
    voucher_nonce  TEXT NOT NULL,
    -- SHA-256 of the bearer token; the token itself is told once and kept nowhere.
    token_hash     TEXT UNIQUE,
    one_request    BOOLEAN NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('opening', 'open', 'closing', 'closed', 'failed')),
    reason         TEXT,
    -- How many rates were intended so far: each has a number of its own.
    rates          BIGINT NOT NULL DEFAULT 0,
    created_at     BIGINT NOT NULL,
    opened_at      BIGINT,
    closed_at      BIGINT,
    receipt        TEXT,
    UNIQUE (payer, voucher_nonce)
);
CREATE INDEX sessions_by_state ON sessions (state);
