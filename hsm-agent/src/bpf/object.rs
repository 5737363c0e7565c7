//! The programs' object file, if this hsm was built with it.

/// Makes the bytes behind it start at a multiple of 16.
#[repr(C, align(16))]
struct Aligned<Bytes: ?Sized>(Bytes);

include!(concat!(env!("OUT_DIR"), "/bpf_object.rs"));

/// The object that `cargo xtask build` made; `None` when this was built without it.
pub fn object() -> Option<&'static [u8]> {
    OBJECT.map(|aligned| &aligned.0)
}
