//! The whole of Millrace on one machine.
fn main() {}
