//! Safe wrappers around the kernel interfaces that hsm stands on. The only unsafe code of the crate.
