//! Durable workflows.
