//! A local chain.
