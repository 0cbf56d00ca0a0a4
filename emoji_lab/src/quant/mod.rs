//! quant (being built).
