//! Plain-old-data types that the kernel programs and the agent share.
#![no_std]
