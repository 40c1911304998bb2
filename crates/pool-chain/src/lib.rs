//! Contracts, Superfluid and x402.
