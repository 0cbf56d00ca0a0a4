//! hub (being built).
