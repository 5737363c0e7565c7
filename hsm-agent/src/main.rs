//! The `hsm` command.

fn main() {}
