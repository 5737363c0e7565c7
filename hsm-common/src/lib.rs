//! Plain-old-data types that the kernel programs and the agent share, and the rules that both must
//! apply in the same way. Every stored type is little-endian, has no implicit padding, and has its
//! offsets asserted where it is declared.
#![no_std]

pub mod chunk;
pub mod filter;
pub mod marker;
pub mod resident;
