//! WHAT happened: [`record::Record`]s, the journal that keeps them, and their way to OTLP.

pub mod record;
