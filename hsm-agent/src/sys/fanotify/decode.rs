//! Parses the bytes of `read(2)` on a fanotify group. Pure: no descriptor is touched.
//!
//! The layout is that of `struct fanotify_event_metadata` (24 bytes, `event_len` counts the info
//! records behind it) and `struct fanotify_event_info_range`
//! (`{u8 type, u8 pad, u16 len, u32 pad, u64 offset, u64 count}`).

use super::abi::{EventMask, INFO_TYPE_RANGE, METADATA_LEN, METADATA_VERSION};

/// One event as the kernel delivered it. `fd` is a plain number: whoever reads the group owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub mask: EventMask,
    /// Descriptor on the file; negative errno when the kernel could not open one.
    pub fd: i32,
    /// Process (thread group) that waits.
    pub pid: i32,
    /// Range of the access, when the kernel told one.
    pub range: Option<ByteRange>,
}

/// A range of a file's content. `count` 0 means "to the end" or "unknown".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// Bytes; may reach past the end of the file.
    pub count: u64,
}

/// Why the bytes are no event stream. The reader cannot go on: what it does not understand it
/// cannot answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the structure that must be there.
    #[error("fanotify event is cut off: {have} bytes, {need} needed")]
    Truncated {
        /// Bytes that are there.
        have: usize,
        /// Bytes that the structure needs.
        need: usize,
    },
    /// The kernel speaks another version of the interface.
    #[error("fanotify metadata version {0}, this build knows {METADATA_VERSION}")]
    Version(u8),
    /// A length field contradicts the structure it measures.
    #[error("fanotify event has an impossible length field: {0}")]
    Length(usize),
}

/// Iterates over the events in `buf`. Ends after the first error.
pub fn events(buf: &[u8]) -> impl Iterator<Item = Result<Event, DecodeError>> + '_ {
    let mut rest = buf;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match event(rest) {
            Ok((event, len)) => {
                rest = &rest[len..];
                Some(Ok(event))
            }
            Err(e) => {
                rest = &[];
                Some(Err(e))
            }
        }
    })
}

fn event(buf: &[u8]) -> Result<(Event, usize), DecodeError> {
    let head = buf
        .first_chunk::<METADATA_LEN>()
        .ok_or(DecodeError::Truncated { have: buf.len(), need: METADATA_LEN })?;
    if head[4] != METADATA_VERSION {
        return Err(DecodeError::Version(head[4]));
    }
    let event_len = le_u32(head, 0) as usize;
    let metadata_len = usize::from(le_u16(head, 6));
    if metadata_len < METADATA_LEN || event_len < metadata_len {
        return Err(DecodeError::Length(event_len));
    }
    if event_len > buf.len() {
        return Err(DecodeError::Truncated { have: buf.len(), need: event_len });
    }
    let event = Event {
        mask: EventMask::from_bits_retain(le_u64(head, 8)),
        fd: le_u32(head, 16) as i32,
        pid: le_u32(head, 20) as i32,
        range: range_record(&buf[metadata_len..event_len])?,
    };
    Ok((event, event_len))
}

/// Finds the range among the info records; records of other types are passed over.
fn range_record(mut info: &[u8]) -> Result<Option<ByteRange>, DecodeError> {
    const HEADER: usize = 4;
    const RANGE: usize = 24;
    while !info.is_empty() {
        if info.len() < HEADER {
            return Err(DecodeError::Truncated { have: info.len(), need: HEADER });
        }
        let len = usize::from(le_u16(info, 2));
        if len < HEADER {
            return Err(DecodeError::Length(len));
        }
        if len > info.len() {
            return Err(DecodeError::Truncated { have: info.len(), need: len });
        }
        if info[0] == INFO_TYPE_RANGE {
            if len < RANGE {
                return Err(DecodeError::Length(len));
            }
            return Ok(Some(ByteRange { offset: le_u64(info, 8), count: le_u64(info, 16) }));
        }
        info = &info[len..];
    }
    Ok(None)
}

fn le_u16(b: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([b[at], b[at + 1]])
}

fn le_u32(b: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn le_u64(b: &[u8], at: usize) -> u64 {
    u64::from(le_u32(b, at)) | u64::from(le_u32(b, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(e: &Event, extra: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut info = Vec::new();
        for (kind, payload) in extra {
            info.extend([*kind, 0]);
            info.extend(u16::try_from(payload.len() + 4).unwrap().to_ne_bytes());
            info.extend(payload);
        }
        if let Some(r) = e.range {
            info.extend([INFO_TYPE_RANGE, 0]);
            info.extend(24u16.to_ne_bytes());
            info.extend([0; 4]);
            info.extend(r.offset.to_ne_bytes());
            info.extend(r.count.to_ne_bytes());
        }
        let mut out = Vec::new();
        out.extend(u32::try_from(METADATA_LEN + info.len()).unwrap().to_ne_bytes());
        out.extend([METADATA_VERSION, 0]);
        out.extend(u16::try_from(METADATA_LEN).unwrap().to_ne_bytes());
        out.extend(e.mask.bits().to_ne_bytes());
        out.extend(e.fd.to_ne_bytes());
        out.extend(e.pid.to_ne_bytes());
        out.extend(info);
        out
    }

    prop_compose! {
        fn any_event()(
            mask in any::<u64>(), fd in any::<i32>(), pid in any::<i32>(),
            range in prop::option::of((any::<u64>(), any::<u64>())),
        ) -> Event {
            let range = range.map(|(offset, count)| ByteRange { offset, count });
            Event { mask: EventMask::from_bits_retain(mask), fd, pid, range }
        }
    }

    proptest! {
        #[test]
        fn streams_decode_to_what_was_encoded(
            list in prop::collection::vec(
                (any_event(), prop::collection::vec((7u8.., prop::collection::vec(any::<u8>(), 0..40)), 0..3)),
                0..5,
            )
        ) {
            let bytes: Vec<u8> = list.iter().flat_map(|(e, x)| encode(e, x)).collect();
            let got: Result<Vec<_>, _> = events(&bytes).collect();
            prop_assert_eq!(got.unwrap(), list.into_iter().map(|(e, _)| e).collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_always_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let n = events(&bytes).count();
            prop_assert!(n <= bytes.len() / METADATA_LEN + 1);
        }

        #[test]
        fn a_cut_stream_is_an_error(e in any_event(), cut in 1usize..24) {
            let bytes = encode(&e, &[]);
            let last = events(&bytes[..bytes.len() - cut]).last().unwrap();
            prop_assert!(last.is_err());
        }
    }
}
