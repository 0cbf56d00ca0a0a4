//! display (being built).
